"""Parquet files of the artefact folder, opened with their schema checked. Knows nothing about their meaning."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from crosscope_proto.artefacts import Column, arrow_schema
from crosscope_server.errors import BrokenArtefact


def open_table(path: Path, columns: tuple[Column, ...]) -> pq.ParquetFile:
    """Opens a file, which may lack columns that came later (Column.absent).

    Raises BrokenArtefact, naming it, if it is missing, truncated or has another schema.
    """
    try:
        file = pq.ParquetFile(path, memory_map=True)
    except FileNotFoundError as error:
        raise BrokenArtefact(f"{path} is missing; publish the crosscoder again") from error
    except (OSError, pa.ArrowException) as error:
        sentence = " ".join(str(error).split())[:300]
        raise BrokenArtefact(f"{path} cannot be read: {sentence}; publish the crosscoder again") from error
    for column, field in zip(columns, arrow_schema(columns), strict=True):
        index = file.schema_arrow.get_field_index(field.name)
        if index < 0 and column.absent is not None:
            continue
        if index < 0:
            raise BrokenArtefact(f"{path} has no column {field.name}; publish the crosscoder again")
        if not _alike(found := file.schema_arrow.field(index).type, field.type):
            raise BrokenArtefact(f"{path}: column {field.name} is {found}, not {field.type}; publish it again")
    return file


def read_table(path: Path, columns: tuple[Column, ...]) -> pa.Table:
    """Reads the columns of a file, absent ones filled; raises BrokenArtefact like open_table."""
    file = open_table(path, columns)
    try:
        there = set(file.schema_arrow.names)
        table = file.read([column.name for column in columns if column.name in there], use_threads=False)
    except (OSError, pa.ArrowException) as error:
        sentence = " ".join(str(error).split())[:300]
        raise BrokenArtefact(f"{path} cannot be read: {sentence}; publish the crosscoder again") from error
    finally:
        file.close()
    for column, field in zip(columns, arrow_schema(columns), strict=True):
        if column.name not in there:
            table = table.append_column(field, pa.repeat(pa.scalar(column.absent, field.type), table.num_rows))
        if count := table[column.name].null_count:
            raise BrokenArtefact(f"{path}: column {column.name} has {count} empty cells; publish the crosscoder again")
    return table


def _alike(found: pa.DataType, expected: pa.DataType) -> bool:
    """Whether a type is the expected one, or a float that it holds exactly (lists of them too)."""
    if pa.types.is_list(found) and pa.types.is_list(expected):
        return _alike(found.value_type, expected.value_type)
    narrower = pa.types.is_floating(found) and pa.types.is_floating(expected)
    return found == expected or (narrower and found.bit_width < expected.bit_width)
