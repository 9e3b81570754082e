"""The texts of a recipe's data sets, tokenised, one after the other. Does not know models or activations."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from crosscope_proto.left_out import reasons_line
from crosscope_proto.roots import Roots
from crosscope_proto.specs import DataSpec, TokenPolicy
from crosscope_worker.data import chats, tally
from crosscope_worker.data.chats import RefusedText
from crosscope_worker.data.file_rows import FileRows
from crosscope_worker.data.hub_rows import HubRows
from crosscope_worker.data.part import WHOLE, Part
from crosscope_worker.data.rows import Columns, DataError, Row, Rows, Tell
from crosscope_worker.data.tally import Counts
from crosscope_worker.tokenizer.token_policy import policy_positions
from crosscope_worker.tokenizer.tokens import PromptError, TextTokenizer

Split = Literal["train", "held_out", "all"]

ENOUGH = 100
"""From this number of refused texts on, a data set's refused share is checked while it is read."""


@dataclass(frozen=True)
class TaggedBehaviour:
    """A tagged behaviour of an assistant turn."""

    name: str
    decision: int
    """Position of the last token before the turn's content, which ends the assistant's header."""
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
    behaviours: tuple[TaggedBehaviour, ...] = ()
    place: str = "a text"
    """File and line, for messages."""


class TextStream:
    """Tokenised texts of several data sets, one of each in turn; a set that has ended drops out.

    Every `policy.held_out_every`-th text of each set, by its index in the set, is in split "held_out", all others in
    "train"; "all" has both. There, and in "train", a set also ends at its max_tokens, of which a part has its share.
    Texts are cut to `policy.max_length` tokens.
    Iterating again goes on where the stream stands; after its end it starts over. Raises DataError for a text or set
    that cannot be read, and for a set with too many refused texts or without a token that is kept.
    """

    def __init__(
        self,
        data: Sequence[DataSpec],
        tokenizer: TextTokenizer,
        policy: TokenPolicy,
        folders: Sequence[Path],
        split: Split,
        roots: Roots | None = None,
        tell: Tell = lambda _: None,
        part: Part = WHOLE,
    ) -> None:
        """`folders`: where relative paths are looked up, in this order. `roots`: what may be read; unset: `folders`.

        `tell` hears of reads that are tried again. What a `part` lost is judged once all parts were read
        (`check_together`). Raises DataError if a file is missing or may not be read.
        """
        self.part = part
        self._data = tuple(data)
        self._tokenizer = tokenizer
        self._policy = policy
        self._split: Split = split
        roots = roots or Roots(folders)
        self._rows = [open_rows(spec, folders, roots, chats.columns(spec), tell, part) for spec in self._data]
        self._counts = [Counts() for _ in self._data]
        self._examples: list[str | None] = [None] * len(self._data)
        """The first refusal of each data set, whole."""
        self._start()

    @property
    def files(self) -> list[list[Path]]:
        """Files of each data set in the order in which they are read; none for a hub data set."""
        return [rows.files for rows in self._rows]

    @property
    def counts(self) -> list[Counts]:
        """What became of the texts of each data set so far, in all passes."""
        return self._counts

    @cached_property
    def _num_rows(self) -> list[int | None]:
        """Number of rows of each data set; counting them reads all files."""
        return [rows.count() for rows in self._rows]

    def check_held_out(self) -> None:
        """Raises DataError if a data set is too small for a held-out text; a hub data set is known only at its end."""
        every = self._policy.held_out_every
        for index, rows in enumerate(self._rows):
            num_rows = rows.count(every)
            if num_rows is not None and num_rows < every:
                raise self._too_small(index, num_rows)

    def check_losses(self) -> None:
        """Raises DataError if too many texts of a data set were refused in a reading that ended early."""
        for index in range(len(self._data)):
            self._check_losses(index, 1)

    def check_together(self, counts: Sequence[Counts], ended: bool) -> None:
        """Raises DataError where a data set lost too many texts, or has no token; `counts` are those of all its parts.

        `ended`: whether each part was read to its end.
        """
        self._counts = list(counts)
        for index in range(len(self._data)):
            self._check_losses(index, 1, of_a_part=not ended)
            if ended:
                self._check_tokens(index, 1)

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
            "counts": tally.as_state(self._counts),
            "rows": [rows.state() for rows in self._rows],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on where a stream over the same data stood. Raises DataError if there are not as many data sets."""
        if len(state["next_row"]) != len(self._data):
            raise DataError(f"the saved state has {len(state['next_row'])} data sets, the recipe {len(self._data)}")
        if "counts" not in state:
            raise DataError("the saved state is of an older version, which counted other things; start the job anew")
        self._next_row = list(state["next_row"])
        self._num_tokens = list(state["num_tokens"])
        self._ended = list(state["ended"])
        self._turn = state["turn"]
        self._counts = tally.from_state(state["counts"])
        for rows, saved in zip(self._rows, state["rows"], strict=True):
            rows.restore(saved)

    def fraction(self, state: Mapping[str, Any] | None = None) -> float:
        """Share of its texts, 0 to 1, that the data set furthest behind has given; 0 if that is unknown.

        `state`: an earlier one, of which it is told instead.
        """
        state = state or self.state()
        return min(self._share(index, state) for index in range(len(self._data)))

    def _share(self, index: int, state: Mapping[str, Any]) -> float:
        if state["ended"][index]:
            return 1.0
        num_rows = self._num_rows[index]
        limit = self._limit(index)
        by_rows = state["next_row"][index] / num_rows if num_rows else 0.0
        by_tokens = state["num_tokens"][index] / limit if limit else 0.0
        return min(1.0, max(by_rows, by_tokens))

    def _limit(self, index: int) -> int | None:
        limit = None if self._split == "held_out" else self._data[index].max_tokens
        return None if limit is None else self.part.share(limit)

    def _is_full(self, index: int) -> bool:
        """Whether a set has given its max_tokens."""
        limit = self._limit(index)
        return limit is not None and self._num_tokens[index] >= limit

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
        rows, wanted = self._rows[index], None if self.part == WHOLE else partial(self._has, index)
        first = num_rows = self._next_row[index]
        retries = rows.retries
        for number, row in rows.read(first, wanted) if not self._is_full(index) else ():
            num_rows = number + 1
            self._counts[index].retries += rows.retries - retries
            retries = rows.retries
            if not self._has(index, number):
                continue
            self._next_row[index] = number + 1
            text = self._text(index, row)
            if text is None:
                continue
            self._num_tokens[index] += len(text.ids)
            yield text
            if self._is_full(index):
                break
        self._counts[index].stopped += self._is_full(index)
        self._check_end(index, num_rows)

    def _has(self, index: int, number: int) -> bool:
        """Whether the row of a number in a data set is in the split and in the part."""
        part, every = WHOLE if self._rows[index].deals_part else self.part, self._policy.held_out_every
        if self._split == "all":
            return part.has(number)
        is_held_out, num_before = number % every == every - 1, number // every
        in_split = num_before if self._split == "held_out" else number - num_before
        return is_held_out == (self._split == "held_out") and part.has(in_split)

    def _text(self, index: int, row: Row) -> Text | None:
        """The text of a row, counted; None if it is left out."""
        counts = self._counts[index]
        counts.read += 1
        try:
            text = self._tokenised(index, row)
        except RefusedText as error:
            if not self._data[index].skip_refused:
                raise
            counts.refuse(error.reason)
            self._examples[index] = self._examples[index] or str(error)
            self._check_losses(index, ENOUGH)
            return None
        if not len(policy_positions(text.roles, self._policy)):
            counts.without_tokens += 1
            self._check_tokens(index, ENOUGH)
        return text

    def _tokenised(self, index: int, row: Row) -> Text:
        spec, counts, length = self._data[index], self._counts[index], self._policy.max_length
        found: list[TaggedBehaviour] = []
        try:
            if not spec.has_chats:
                tokens = self._tokenizer.text(chats.document(spec, row))
            else:
                turns = chats.turns(spec, row)
                tokens = self._tokenizer.conversation(turns)
                for name, turn, start, end in chats.behaviours(spec, row, turns):
                    first, last = tokens.token_span(turn, start, end)
                    found.append(TaggedBehaviour(name, tokens.content_spans[turn][0] - 1, first, last))
        except PromptError as error:
            raise RefusedText(row.place, str(error)) from error
        kept = tuple(behaviour for behaviour in found if behaviour.start < behaviour.end <= length)
        counts.lost_behaviours += len(found) - len(kept)
        counts.cut += len(tokens.ids) > length
        counts.cut_tokens += max(0, len(tokens.ids) - length)
        return Text(index, tokens.ids[:length], tokens.roles[:length], kept, row.place)

    def _check_end(self, index: int, num_rows: int) -> None:
        """Raises DataError at the end of a set that gave no text, or that lost too many."""
        spec, counts = self._data[index], self._counts[index]
        if not num_rows and not self._rows[index].deals_part:  # files of one part may be empty
            raise DataError(f"data set {spec.name!r} is empty: {spec.path}")
        if not counts.read and self._split == "held_out" and self.part == WHOLE:
            raise self._too_small(index, num_rows)
        if self.part == WHOLE:
            self._check_losses(index, 1, of_a_part=False)
            self._check_tokens(index, 1)

    def _check_losses(self, index: int, enough: int, *, of_a_part: bool = True) -> None:
        """Raises DataError if at least `enough` texts were refused and their share is too large.

        If only a part of the set was read, it is a sample, and three standard errors more are allowed.
        """
        spec, counts = self._data[index], self._counts[index]
        refused, share = counts.num_refused, spec.max_refused_share
        spare = 3 * math.sqrt(share * (1 - share) * counts.read) if of_a_part else 0.0
        none_left = not of_a_part and not counts.given
        if refused < enough or not (none_left or refused > share * counts.read + spare):
            return
        why = "so none is left" if none_left else f"more than max_refused_share {share:g} allows"
        first = f" (the first: {self._examples[index]})" if self._examples[index] else ""
        raise DataError(
            f"data set {spec.name!r}: {refused} of {counts.read} texts were refused, {why}: "
            f"{reasons_line(counts.refused)}{first}; mend the data, name its format, or raise max_refused_share"
        )

    def _check_tokens(self, index: int, enough: int) -> None:
        counts, policy = self._counts[index], self._policy
        if enough <= counts.without_tokens == counts.given:
            raise DataError(
                f"data set {self._data[index].name!r}: the token policy keeps no token of its {counts.given} texts; "
                f"lower skip_first ({policy.skip_first}), raise max_length ({policy.max_length}), or leave the set out"
            )

    def _too_small(self, index: int, num_rows: int) -> DataError:
        return DataError(
            f"data set {self._data[index].name!r} has {num_rows} texts, none of them held out for the analysis; "
            f"lower tokens.held_out_every ({self._policy.held_out_every}) or add texts"
        )


def open_rows(
    spec: DataSpec,
    folders: Sequence[Path],
    roots: Roots,
    columns: Columns | None = None,
    tell: Tell = lambda _: None,
    part: Part = WHOLE,
) -> Rows:
    """The rows of a data set, at least those of a part. `folders`: where relative paths are looked up, in this order.

    Raises DataError if there is no such file or if jobs may not read it.
    """
    try:
        if spec.source == "hub":
            return HubRows(spec, roots, tell, part)
        return FileRows(spec, list(folders), roots, columns or Columns())
    except DataError:
        raise
    except (ValueError, OSError, RuntimeError) as error:  # a root, or a path or pattern that the system refuses
        raise DataError(f"data set {spec.name!r}: {error}") from error
