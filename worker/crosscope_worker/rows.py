"""The rows of a data set, from files or from the hub, each with the place where it stands.

Does not know what they mean.
"""

import json
import re
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from crosscope_proto.specs import DataSpec
from crosscope_worker.roots import RootError, Roots

if TYPE_CHECKING:
    from datasets import IterableDataset

Tell = Callable[[str], None]
"""Hears what a person who waits should know; may raise to stop the reading."""

PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0, 60.0)
"""Pauses before a read from the hub is made again; after the last one the data set cannot be read."""
_FIRST_PAUSES = 5
"""How many of them are made before the first row: a job that has just begun has little to lose."""
_PAUSES_OF_LASTING = 2
"""How many for errors that lie in the data itself most of the time."""
_LASTING = (ValueError, KeyError, TypeError, FileNotFoundError, PermissionError)
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_REMOTE = frozenset(("hf", "http", "https", "s3", "gs", "zip", "tar", "gzip", "bz2", "xz", "lz4", "zstd"))
"""Protocols of data files that name no file of this machine: remote ones, and places inside an archive."""
_COMMIT = re.compile(r"^hf://[^@]*@([0-9a-f]{40})/")


class DataError(ValueError):
    """Data that cannot be read; the sentence names the data set, or the file and line."""


@dataclass(frozen=True)
class Row:
    """A row of a data set and where it stands, for messages."""

    place: str
    values: Mapping[str, Any]


class Rows(Protocol):
    """Where rows come from."""

    files: list[Path]
    """Files in the order in which they are read; none for a hub data set."""
    retries: int
    """Reads that failed and were made again."""

    def read(self, first: int) -> Iterator[tuple[int, Row]]:
        """Rows with their numbers, from number `first` on. Raises DataError that names the row."""
        ...

    def count(self, at_most: int | None = None) -> int | None:
        """How many rows there are, or are at least up to `at_most`; None where only the end tells."""
        ...

    def state(self) -> dict[str, Any] | None:
        """Where the source itself stands, as plain values, if that is worth keeping."""
        ...

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Lets the next reading go on from there."""
        ...


def open_rows(spec: DataSpec, folders: list[Path], roots: Roots, columns: "Columns", tell: Tell) -> Rows:
    """The rows of a data set. `folders`: where relative paths are looked up, in this order.

    Raises DataError if there is no such file or if jobs may not read it.
    """
    try:
        return HubRows(spec, roots, tell) if spec.source == "hub" else FileRows(spec, folders, roots, columns)
    except DataError:
        raise
    except (ValueError, OSError, RuntimeError) as error:  # a root, or a path or pattern that the system refuses
        raise DataError(f"data set {spec.name!r}: {error}") from error


@dataclass(frozen=True)
class Columns:
    """The columns that are read of a Parquet file."""

    needed: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    """Read where there are such."""


class FileRows:
    """The rows of files."""

    def __init__(self, spec: DataSpec, folders: list[Path], roots: Roots, columns: Columns) -> None:
        self._spec, self._roots, self._columns = spec, roots, columns
        self.files = _files(spec, folders, roots)
        self.retries = 0

    def read(self, first: int) -> Iterator[tuple[int, Row]]:
        """See Rows."""
        read = {"jsonl": self._jsonl, "parquet": self._parquet, "text": self._text}[self._spec.source]
        number = 0
        for file in self.files:
            rows = read(file, max(0, first - number))
            while True:
                try:
                    row = next(rows, None)
                except (DataError, MemoryError):
                    raise
                except Exception as error:  # readers raise what they like; people need to know where
                    place = f"data set {self._spec.name!r}: {file}, row {number}"
                    raise DataError(f"{place} cannot be read: {_said(error)}") from error
                if row is None:
                    break
                if number >= first:
                    yield number, row
                number += 1

    def count(self, at_most: int | None = None) -> int | None:
        """See Rows."""
        if self._spec.source != "parquet":
            return sum(1 for _ in islice(chain.from_iterable(map(self._lines, self.files)), at_most))
        total = 0
        for file in self.files:
            with self._open_parquet(file) as table:
                total += table.metadata.num_rows
        return total

    def state(self) -> None:
        """Nothing: rows before the one that is wanted are passed over."""

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """See Rows."""

    def _jsonl(self, file: Path, passed_over: int) -> Iterator[Row]:
        for index, (number, line) in enumerate(self._lines(file)):
            yield Row(f"{file}, line {number}", {} if index < passed_over else _json_object(file, number, line))

    def _text(self, file: Path, passed_over: int) -> Iterator[Row]:
        del passed_over
        for number, line in self._lines(file):
            yield Row(f"{file}, line {number}", {"text": line})

    def _lines(self, file: Path) -> Iterator[tuple[int, str]]:
        """Lines with text, numbered from 1."""
        number = 0
        try:
            with self._open(file) as lines:
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        yield number, line.decode("utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{file} cannot be read as UTF-8 text, line {number}: {error}") from error

    def _parquet(self, file: Path, passed_over: int) -> Iterator[Row]:
        number = 0
        with self._open_parquet(file) as table:
            known = table.schema_arrow.names
            for column in self._columns.needed:
                if column not in known:
                    raise DataError(f"{file}: there is no column {column!r}; there are {', '.join(known)}")
            columns = [*self._columns.needed, *(name for name in self._columns.optional if name in known)]
            try:
                for batch in table.iter_batches(batch_size=256, columns=columns):
                    beyond = number + len(batch) > passed_over
                    for values in batch.to_pylist() if beyond else len(batch) * ({},):
                        yield Row(f"{file}, row {number}", values)
                        number += 1
            except (OSError, pa.ArrowException) as error:
                raise DataError(f"{file} cannot be read as Parquet behind row {number}: {error}") from error

    @contextmanager
    def _open_parquet(self, file: Path) -> Generator[pq.ParquetFile]:
        with self._open(file) as opened:
            try:
                table = pq.ParquetFile(opened)
            except (OSError, pa.ArrowException) as error:
                raise DataError(f"{file} cannot be read as Parquet: {error}") from error
            with table:
                yield table

    def _open(self, file: Path) -> Any:
        try:
            return self._roots.open(file)
        except RootError as error:
            raise DataError(f"data set {self._spec.name!r}: {error}") from error
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error}") from error


def _json_object(file: Path, number: int, line: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}, line {number}: not JSON ({error}); mend or remove the line") from error
    if not isinstance(values, dict):
        raise DataError(f"{file}, line {number}: not a JSON object but {type(values).__name__}")
    return values


def _files(spec: DataSpec, folders: list[Path], roots: Roots) -> list[Path]:
    """Files of a data set, sorted. A folder that jobs may not read is not looked into."""
    pattern, closed = Path(spec.path).expanduser(), []
    if pattern.is_absolute():
        folders, pattern = [Path(pattern.anchor)], pattern.relative_to(pattern.anchor)
    else:
        closed = [folder for folder in folders if not roots.allows(folder)]
    for folder in folders:
        if folder not in closed and (files := roots.files(folder, str(pattern))):
            return files
    places = " or ".join(str(folder) for folder in folders if folder not in closed)
    hint = "".join(
        f"; {folder} was not looked into, for jobs may read other folders only: {roots.advice()}" for folder in closed
    )
    raise DataError(f"data set {spec.name!r}: no file matches {spec.path} in {places}{hint}")


class HubRows:
    """The rows of a data set of the hub, or of a folder in the hub's layout, as a stream.

    A read that fails is made again after a pause, from the row where it stood, at the commit that was read first.
    """

    def __init__(self, spec: DataSpec, roots: Roots, tell: Tell) -> None:
        self._spec, self._roots, self._tell = spec, roots, tell
        self.files: list[Path] = []
        self.retries = 0
        self._number = 0
        """Of the next row."""
        self._position: dict[str, Any] | None = None
        """The stream's own state in front of it; None: at the beginning."""
        self._commit: str | None = None
        """Of the hub's repository, once it is known."""
        _check_hub_source(spec, roots)

    def count(self, at_most: int | None = None) -> None:
        """See Rows."""

    def state(self) -> dict[str, Any]:
        """See Rows."""
        return {"row": self._number, "position": self._position, "commit": self._commit}

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """See Rows."""
        if state is not None:
            self._number, self._position, self._commit = state["row"], state["position"], state["commit"]

    def read(self, first: int) -> Iterator[tuple[int, Row]]:
        """See Rows."""
        if self._number > first:
            self._number, self._position = 0, None
        failures = 0
        while True:
            opened = False
            try:
                stream = self._open()
                for values in stream:
                    opened, failures = True, 0
                    number = self._number
                    # In front of the next row: what stands is what was handed on.
                    self._number, self._position = number + 1, stream.state_dict()
                    if number >= first:
                        yield number, Row(f"{self._spec.path} ({self._spec.split}), row {number}", values)
                return
            except (DataError, MemoryError):
                raise
            except Exception as error:  # any library below may fail in its own way
                self._pause(error, failures, opened)
            failures += 1
            self.retries += 1

    def _open(self) -> "IterableDataset":
        import datasets

        spec = self._spec
        builder = datasets.load_dataset_builder(spec.path, spec.config, revision=self._commit)
        for file in map(str, chain.from_iterable((builder.config.data_files or {}).values())):
            self._check_file(file)
            if self._commit is None and (found := _COMMIT.match(file)):
                self._commit = found[1]
        stream = builder.as_streaming_dataset(split=spec.split)
        assert isinstance(stream, datasets.IterableDataset)  # of one split
        if self._position is not None:
            stream.load_state_dict(self._position)
        return stream

    def _check_file(self, file: str) -> None:
        """Raises DataError for a file of this machine that jobs may not read: a repository may name such, too."""
        for part in file.split("::"):
            protocol, marked, path = part.rpartition("://")
            if marked and protocol in _REMOTE:
                continue
            try:
                if protocol not in ("", "file", "local"):
                    raise RootError(f"{part} has the unknown protocol {protocol}")
                self._roots.check(Path(path))
            except RootError as error:
                raise DataError(f"data set {self._spec.name!r}: {error}") from error

    def _pause(self, error: Exception, failures: int, opened: bool) -> None:
        """Waits before the next try. Raises DataError if there is none."""
        lasting = isinstance(error, _LASTING)
        num_pauses = len(PAUSES_S) if self._number else _FIRST_PAUSES
        if lasting:
            num_pauses = _PAUSES_OF_LASTING if opened or self._number else 0
        spec = self._spec
        where = f"row {self._number} of {spec.path} ({spec.split})"
        if failures >= min(num_pauses, len(PAUSES_S)):
            tries = f" after {failures + 1} tries" if failures else ""
            raise DataError(
                f"data set {spec.name!r}: {where} cannot be read from the hub{tries}: {_said(error)}"
            ) from error
        left_s = PAUSES_S[failures]
        while True:
            self._tell(
                f"{where} could not be read ({_said(error)[:200]}); "
                f"trying again in {left_s:.0f} s, {failures + 1} of {num_pauses}"
            )
            if left_s <= 0:
                return
            time.sleep(min(1.0, left_s))
            left_s -= 1.0


def _check_hub_source(spec: DataSpec, roots: Roots) -> None:
    """Raises DataError unless it is a hub id, or a folder that jobs may read."""
    path = Path(spec.path)
    if path.is_absolute() or path.exists():
        roots.check(path)
    elif not _HUB_ID.fullmatch(spec.path.removeprefix("hf://datasets/")):
        raise DataError(
            f"data set {spec.name!r}: {spec.path} is neither the id of a data set of the hub (owner/name) nor a folder"
        )


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
