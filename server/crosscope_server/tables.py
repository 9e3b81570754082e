"""Reads the Parquet files of a version's folder, and checks checksum, schema and content.

Knows nothing about what the tables mean.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from crosscope_proto.column import Column, arrow_schema
from crosscope_server.errors import BrokenArtefact, Unavailable
from crosscope_store.errors import StoreAway
from crosscope_store.shelf import ALONE, Shelf


@dataclass(frozen=True)
class TableFolder:
    """The folder of a version. All methods block."""

    folder: Path
    hashes: Mapping[str, str]
    """SHA-256 of files, by their name below the folder. A file without one is not compared."""
    mend: str = "publish the crosscoder again"
    """What a person does about a broken file."""
    shelf: Shelf = ALONE
    """What brings files that are not here yet."""

    def checked(self, name: str) -> Path:
        """The path of a file that matches its checksum. Raises BrokenArtefact if it is missing or does not."""
        path = self._here(name)
        try:
            self._check_sum(path, name)
            if path.is_file():
                return path
        except FileNotFoundError:
            pass
        except OSError as error:
            raise self._unreadable(path, error) from error
        raise BrokenArtefact(f"{path} is missing; {self.mend}")

    def open(self, name: str, columns: tuple[Column, ...]) -> pq.ParquetFile:
        """An open file. It may lack columns that are newer than it (Column.absent).

        Raises BrokenArtefact, which names the file, if it is missing, is truncated, does not match its checksum, or has
        another schema.
        """
        path = self._here(name)
        try:
            self._check_sum(path, name)
            file = pq.ParquetFile(path, memory_map=True)
        except FileNotFoundError as error:
            raise BrokenArtefact(f"{path} is missing; {self.mend}") from error
        except (OSError, pa.ArrowException) as error:
            raise self._unreadable(path, error) from error
        for column, field in zip(columns, arrow_schema(columns), strict=True):
            index = file.schema_arrow.get_field_index(field.name)
            if index < 0 and column.absent is not None:
                continue
            if index < 0:
                raise BrokenArtefact(f"{path} has no column {field.name}; {self.mend}")
            if not _alike(found := file.schema_arrow.field(index).type, field.type):
                raise BrokenArtefact(f"{path}: column {field.name} is {found}, not {field.type}; {self.mend}")
        return file

    def _here(self, name: str) -> Path:
        """The path of a file, which is brought if it is not here. Raises Unavailable, or BrokenArtefact."""
        path = self.folder / name
        try:
            self.shelf.need(path)
        except StoreAway as error:
            raise Unavailable(f"{path.name} is not here yet, and {error}") from error
        except OSError as error:
            raise BrokenArtefact(f"{path} cannot be brought here: {error}") from error
        return path

    def read(self, name: str, columns: tuple[Column, ...]) -> pa.Table:
        """The columns of a file; absent ones are filled in. Raises BrokenArtefact like `open`."""
        path, file = self.folder / name, self.open(name, columns)
        try:
            there = set(file.schema_arrow.names)
            table = file.read([column.name for column in columns if column.name in there], use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise self._unreadable(path, error) from error
        finally:
            file.close()
        for column, field in zip(columns, arrow_schema(columns), strict=True):
            if column.name not in there:
                table = table.append_column(field, pa.repeat(pa.scalar(column.absent, field.type), table.num_rows))
        self._check(name, table)
        return table

    def read_groups(self, name: str, file: pq.ParquetFile, columns: tuple[Column, ...], groups: list[int]) -> pa.Table:
        """The columns of row groups of an open file, without absent ones. Raises BrokenArtefact like `read`."""
        there = set(file.schema_arrow.names)
        wanted = [column.name for column in columns if column.name in there]
        try:
            table = file.read_row_groups(groups, wanted, use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise self._unreadable(self.folder / name, error) from error
        self._check(name, table)
        return table

    def _check(self, name: str, table: pa.Table) -> None:
        """Raises BrokenArtefact if a cell is empty, or a text is not UTF-8."""
        path = self.folder / name
        try:
            table.validate(full=True)
        except pa.ArrowException as error:
            raise self._unreadable(path, error) from error
        for column in table.column_names:
            count = table[column].null_count
            if pa.types.is_list(table[column].type):
                chunks: list[Any] = table[column].chunks
                count += sum(chunk.flatten().null_count for chunk in chunks)
            if count:
                raise BrokenArtefact(f"{path}: column {column} has {count} empty cells; {self.mend}")

    def _check_sum(self, path: Path, name: str) -> None:
        if (expected := self.hashes.get(name)) is None:
            return
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            sentence = f"{path} has the SHA-256 {found[:16]}…, but was published with {expected[:16]}…"
            raise BrokenArtefact(f"{sentence}; restore the file, or {self.mend}")

    def _unreadable(self, path: Path, error: Exception) -> BrokenArtefact:
        return BrokenArtefact(f"{path} cannot be read: {' '.join(str(error).split())[:300]}; {self.mend}")


def _alike(found: pa.DataType, expected: pa.DataType) -> bool:
    """Whether a type is the expected one, or a narrower float, whose values the expected one holds exactly.

    Lists are compared by the types of their entries.
    """
    if pa.types.is_list(found) and pa.types.is_list(expected):
        return _alike(found.value_type, expected.value_type)
    narrower = pa.types.is_floating(found) and pa.types.is_floating(expected)
    return found == expected or (narrower and found.bit_width < expected.bit_width)
