"""Reads the rows of files: JSON lines, Parquet, and plain text with a row a line. Does not know what they mean."""

import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from crosscope_proto.roots import RootError, Roots
from crosscope_proto.specs import DataSpec
from crosscope_worker.data.rows import Columns, DataError, Row, Wanted, said
from crosscope_worker.roots import files_below, open_file


class FileRows:
    """The rows of files."""

    def __init__(self, spec: DataSpec, folders: list[Path], roots: Roots, columns: Columns) -> None:
        self._spec, self._roots, self._columns = spec, roots, columns
        self.files = _files(spec, folders, roots)
        self.retries = 0
        self.deals_part = False

    def read(self, first: int, wanted: Wanted | None = None) -> Iterator[tuple[int, Row]]:
        """See Rows."""
        read = {"jsonl": self._jsonl, "parquet": self._parquet, "text": self._text}[self._spec.source]
        number = 0
        for file in self.files:
            rows = read(file, _Wanted(number, first, wanted))
            while True:
                try:
                    row = next(rows, None)
                except (DataError, MemoryError):
                    raise
                except Exception as error:  # readers raise what they like; people need to know where
                    place = f"data set {self._spec.name!r}: {file}, row {number}"
                    raise DataError(f"{place} cannot be read: {said(error)}") from error
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
        """None: reading passes over the rows before the one that is wanted."""

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """See Rows."""

    def _jsonl(self, file: Path, wanted: "_Wanted") -> Iterator[Row]:
        for index, (number, line) in enumerate(self._lines(file)):
            yield Row(f"{file}, line {number}", _json_object(file, number, line) if wanted(index) else {})

    def _text(self, file: Path, wanted: "_Wanted") -> Iterator[Row]:
        del wanted
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

    def _parquet(self, file: Path, wanted: "_Wanted") -> Iterator[Row]:
        number = 0
        with self._open_parquet(file) as table:
            known = table.schema_arrow.names
            for column in self._columns.needed:
                if column not in known:
                    raise DataError(f"{file}: there is no column {column!r}; there are {', '.join(known)}")
            columns = [*self._columns.needed, *(name for name in self._columns.optional if name in known)]
            try:
                for batch in table.iter_batches(batch_size=256, columns=columns):
                    places = [place for place in range(len(batch)) if wanted(number + place)]
                    found = iter(batch.take(places).to_pylist() if places else ())
                    for place in range(len(batch)):
                        yield Row(f"{file}, row {number + place}", next(found) if wanted(number + place) else {})
                    number += len(batch)
            except (OSError, pa.ArrowException) as error:
                raise DataError(f"{file} cannot be read as Parquet after row {number}: {error}") from error

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
            return open_file(self._roots, file)
        except RootError as error:
            raise DataError(f"data set {self._spec.name!r}: {error}") from error
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error}") from error


@dataclass(frozen=True)
class _Wanted:
    """Which rows of a file are looked at, by their index in the file."""

    before: int
    """Rows in the files before it."""
    first: int
    """Number of the first row that is wanted."""
    also: Wanted | None

    def __call__(self, index: int) -> bool:
        number = self.before + index
        return number >= self.first and (self.also is None or self.also(number))


def _json_object(file: Path, number: int, line: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}, line {number}: not JSON ({error}); mend or remove the line") from error
    if not isinstance(values, dict):
        raise DataError(f"{file}, line {number}: not a JSON object but {type(values).__name__}")
    return values


def _files(spec: DataSpec, folders: list[Path], roots: Roots) -> list[Path]:
    """Files of a data set, sorted. Does not look into a folder that jobs may not read."""
    pattern, closed = Path(spec.path).expanduser(), []
    if pattern.is_absolute():
        folders, pattern = [Path(pattern.anchor)], pattern.relative_to(pattern.anchor)
    else:
        closed = [folder for folder in folders if not roots.allows(folder)]
    for folder in folders:
        if folder not in closed and (files := files_below(roots, folder, str(pattern))):
            return files
    places = " or ".join(str(folder) for folder in folders if folder not in closed)
    hint = "".join(
        f"; {folder} was passed over, since jobs read other folders only: {roots.advice()}" for folder in closed
    )
    raise DataError(f"data set {spec.name!r}: no file matches {spec.path} in {places}{hint}")
