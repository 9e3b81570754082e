"""The texts of a recipe's data sets, tokenised, one after the other. Does not know models or activations."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crosscope_proto.specs import DataSpec, TokenPolicy
from crosscope_worker.tokens import PromptError, TextTokenizer, TokenisedText, Turn

Split = Literal["train", "held_out"]


class DataError(ValueError):
    """Data that cannot be read; the sentence names the file and line."""


class RefusedText(DataError):
    """A text that the tokenizer or the chat template refuses."""


@dataclass(frozen=True)
class Behaviour:
    """A tagged behaviour of an assistant turn."""

    name: str
    decision: int
    """Position of the last token in front of the turn's content: of the assistant's header."""
    start: int
    """Position of its first token."""
    end: int
    """One past its last token."""


@dataclass(frozen=True, eq=False)
class Text:
    """A tokenised text."""

    dataset: int
    """Index of its data set."""
    ids: np.ndarray
    """[pos] int64"""
    roles: np.ndarray
    """[pos] uint8, TokenRole"""
    behaviours: tuple[Behaviour, ...] = ()
    place: str = "a text"
    """File and line, for messages."""


@dataclass(frozen=True)
class _Row:
    """A row of a data set and where it stands, for messages."""

    place: str
    values: Mapping[str, Any]


class TextStream:
    """Tokenised texts of several data sets, one of each in turn; a set that has ended drops out.

    Every `policy.held_out_every`-th text of each set, by its index in the set, is in split "held_out", all others in
    "train", where a set also ends at its max_tokens. Texts are cut to `policy.max_length` tokens.
    Iterating again goes on where the stream stands; after its end it starts over.
    """

    def __init__(
        self,
        data: Sequence[DataSpec],
        tokenizer: TextTokenizer,
        policy: TokenPolicy,
        folders: Sequence[Path],
        split: Split,
    ) -> None:
        """`folders`: where relative paths are looked up, in this order. Raises DataError if a file is missing."""
        self._data = tuple(data)
        self._tokenizer = tokenizer
        self._policy = policy
        self._split: Split = split
        self._files = [_files(spec, folders) for spec in self._data]
        self.num_skipped = 0
        """Texts that were refused and left out (DataSpec.skip_refused), those of every pass counted."""
        self._start()

    @property
    def files(self) -> list[list[Path]]:
        """Files of each data set in the order in which they are read; none for a hub data set."""
        return self._files

    @cached_property
    def _num_rows(self) -> list[int | None]:
        """Of each data set; counting them reads all files."""
        return [_num_rows(spec, files) for spec, files in zip(self._data, self._files, strict=True)]

    def check_held_out(self) -> None:
        """Raises DataError if a data set is too small for a held-out text; of a hub data set only its end tells."""
        every = self._policy.held_out_every
        for spec, files in zip(self._data, self._files, strict=True):
            num_rows = _num_rows(spec, files, every)
            if num_rows is not None and num_rows < every:
                raise DataError(
                    f"data set {spec.name!r} has {num_rows} texts, none of them held out for the analysis; "
                    f"lower tokens.held_out_every ({every}) or add texts"
                )

    def _start(self) -> None:
        self._next_row = [0] * len(self._data)
        self._num_tokens = [0] * len(self._data)
        self._ended = [False] * len(self._data)
        self._turn = 0

    def state(self) -> dict[str, Any]:
        """Where the stream stands, as plain values."""
        return {
            "next_row": list(self._next_row),
            "num_tokens": list(self._num_tokens),
            "ended": list(self._ended),
            "turn": self._turn,
            "num_skipped": self.num_skipped,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on where a stream over the same data stood. Raises DataError if there are not as many data sets."""
        if len(state["next_row"]) != len(self._data):
            raise DataError(f"the saved state has {len(state['next_row'])} data sets, the recipe {len(self._data)}")
        self._next_row = list(state["next_row"])
        self._num_tokens = list(state["num_tokens"])
        self._ended = list(state["ended"])
        self._turn = state["turn"]
        self.num_skipped = state["num_skipped"]

    def fraction(self) -> float:
        """Share of the texts that has been given, 0 to 1, of the set that is least far; 0 where it is not known."""
        return min(self._share(index) for index in range(len(self._data)))

    def _share(self, index: int) -> float:
        if self._ended[index]:
            return 1.0
        num_rows = self._num_rows[index]
        limit = self._data[index].max_tokens if self._split == "train" else None
        by_rows = self._next_row[index] / num_rows if num_rows else 0.0
        by_tokens = self._num_tokens[index] / limit if limit else 0.0
        return min(1.0, max(by_rows, by_tokens))

    def __iter__(self) -> Iterator[Text]:
        sets = [self._texts(index) for index in range(len(self._data))]
        while not all(self._ended):
            index = self._turn
            self._turn = (self._turn + 1) % len(self._data)
            if self._ended[index]:
                continue
            text = next(sets[index], None)
            if text is None:
                self._ended[index] = True
            else:
                yield text
        self._start()

    def _texts(self, index: int) -> Iterator[Text]:
        """Texts of one set from its next row on; advances the set's state before each text is given."""
        spec, every = self._data[index], self._policy.held_out_every
        limit = spec.max_tokens if self._split == "train" else None
        row_number = -1
        for row_number, row in enumerate(_rows(spec, self._files[index])):
            if row_number < self._next_row[index] or (row_number % every == every - 1) != (self._split == "held_out"):
                continue
            if limit is not None and self._num_tokens[index] >= limit:
                return
            self._next_row[index] = row_number + 1
            try:
                text = self._tokenised(index, row)
            except RefusedText:
                if not spec.skip_refused:
                    raise
                self.num_skipped += 1
                continue
            self._num_tokens[index] += len(text.ids)
            yield text
        if row_number < 0:
            raise DataError(f"data set {spec.name!r} is empty: {spec.path}")

    def _tokenised(self, index: int, row: _Row) -> Text:
        spec = self._data[index]
        try:
            if spec.chat_column is None:
                tokens = self._tokenizer.text(_document(spec, row))
                behaviours: tuple[Behaviour, ...] = ()
            else:
                turns = _turns(spec, row)
                tokens = self._tokenizer.conversation(turns)
                behaviours = _behaviours(spec, row, turns, tokens)
        except PromptError as error:
            raise RefusedText(f"{row.place}: {error}") from error
        length = self._policy.max_length
        kept = tuple(behaviour for behaviour in behaviours if behaviour.end <= length)
        return Text(index, tokens.ids[:length], tokens.roles[:length], kept, row.place)


def _files(spec: DataSpec, folders: Sequence[Path]) -> list[Path]:
    """Files of a data set, sorted; none for a hub data set."""
    if spec.source == "hub":
        return []
    pattern = Path(spec.path).expanduser()
    if pattern.is_absolute():
        folders, pattern = [Path(pattern.anchor)], pattern.relative_to(pattern.anchor)
    for folder in folders:
        if files := sorted(path for path in folder.glob(str(pattern)) if path.is_file()):
            return files
    places = " or ".join(map(str, folders)) or "the current folder"
    raise DataError(f"data set {spec.name!r}: no file matches {spec.path} in {places}")


def _num_rows(spec: DataSpec, files: list[Path], at_most: int | None = None) -> int | None:
    """Rows of a data set, or of its first `at_most`; None for a hub data set, whose length only its end tells."""
    if spec.source == "hub":
        return None
    if spec.source == "parquet":
        return sum(_parquet(file).metadata.num_rows for file in files)
    return sum(1 for _ in islice(chain.from_iterable(map(_lines, files)), at_most))


def _rows(spec: DataSpec, files: list[Path]) -> Iterator[_Row]:
    if spec.source == "hub":
        yield from _hub_rows(spec)
        return
    read = {"jsonl": _jsonl_rows, "parquet": _parquet_rows, "text": _text_rows}[spec.source]
    columns = [name for name in (spec.text_column, spec.chat_column, spec.behaviours_column) if name]
    for file in files:
        yield from read(file, columns)


def _hub_rows(spec: DataSpec) -> Iterator[_Row]:
    import datasets

    try:
        stream = datasets.load_dataset(spec.path, spec.config, split=spec.split, streaming=True)
        for number, row in enumerate(stream):
            yield _Row(f"{spec.path} ({spec.split}), row {number}", row)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"data set {spec.name!r}: {spec.path} cannot be read from the hub: {error}") from error


def _jsonl_rows(file: Path, columns: list[str]) -> Iterator[_Row]:
    del columns
    for number, line in _lines(file):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file}, line {number}: not JSON ({error}); mend or remove the line") from error
        if not isinstance(values, dict):
            raise DataError(f"{file}, line {number}: not a JSON object but {type(values).__name__}")
        yield _Row(f"{file}, line {number}", values)


def _text_rows(file: Path, columns: list[str]) -> Iterator[_Row]:
    del columns
    for number, line in _lines(file):
        yield _Row(f"{file}, line {number}", {"text": line})


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Lines with text, numbered from 1."""
    try:
        with file.open(encoding="utf-8", newline="\n") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as UTF-8 text: {error}") from error


def _parquet(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file} cannot be read as Parquet: {error}") from error


def _parquet_rows(file: Path, columns: list[str]) -> Iterator[_Row]:
    table = _parquet(file)
    try:
        known = table.schema_arrow.names
        for column in columns:
            if column not in known:
                raise DataError(f"{file}: there is no column {column!r}; there are {', '.join(known)}")
        number = 0
        for batch in table.iter_batches(batch_size=256, columns=columns):
            for values in batch.to_pylist():
                yield _Row(f"{file}, row {number}", values)
                number += 1
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file} cannot be read as Parquet: {error}") from error


def _value(row: _Row, column: str) -> Any:
    if column not in row.values:
        raise DataError(f"{row.place}: there is no column {column!r}; there are {', '.join(map(str, row.values))}")
    return row.values[column]


def _document(spec: DataSpec, row: _Row) -> str:
    text = _value(row, spec.text_column or "text")
    if not isinstance(text, str):
        raise DataError(f"{row.place}: column {spec.text_column!r} holds {type(text).__name__}, not text")
    return text


def _turns(spec: DataSpec, row: _Row) -> list[Turn]:
    column = spec.chat_column or ""
    turns = _value(row, column)
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        raise DataError(f"{row.place}: column {column!r} holds {type(turns).__name__}, not a list of turns")
    result: list[Turn] = []
    for index, turn in enumerate(turns):
        for key in (spec.role_key, spec.content_key):
            if not isinstance(turn, Mapping) or not isinstance(turn.get(key), str):
                raise DataError(f"{row.place}, turn {index}: {key!r} must be a text; the turn is {str(turn)[:80]!r}")
        result.append(Turn(turn[spec.role_key], turn[spec.content_key]))
    return result


def _behaviours(spec: DataSpec, row: _Row, turns: list[Turn], tokens: TokenisedText) -> tuple[Behaviour, ...]:
    if spec.behaviours_column is None:
        return ()
    result: list[Behaviour] = []
    tags = _value(row, spec.behaviours_column) or ()
    if not isinstance(tags, Sequence) or isinstance(tags, str):
        raise DataError(f"{row.place}: column {spec.behaviours_column!r} holds {type(tags).__name__}, not a list")
    for tag in tags:
        try:
            name, turn, start, end = str(tag["behaviour"]), int(tag["turn"]), int(tag["start"]), int(tag["end"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{row.place}: a tagged behaviour needs turn, start, end and behaviour: {tag}") from error
        if not (0 <= turn < len(turns) and 0 <= start < end <= len(turns[turn].content)):
            raise DataError(f"{row.place}: behaviour {name!r} lies outside its conversation: {tag}")
        first, last = tokens.token_span(turn, start, end)
        result.append(Behaviour(name, tokens.content_spans[turn][0] - 1, first, last))
    return tuple(result)
