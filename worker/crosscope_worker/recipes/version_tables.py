"""The tables of a version, as files. Does not know how they were made, nor how a version is published."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crosscope_proto import artefacts as layout
from crosscope_proto.column import arrow_schema
from crosscope_proto.columns import METRIC_COLUMNS
from crosscope_worker.analysis import Analysis
from crosscope_worker.disk import sha256

_MAX_ROWS_PER_GROUP = 1 << 16


def write_tables(folder: Path, analysis: Analysis, curves: Sequence[tuple[int, str, float]], num_latents: int) -> None:
    """Writes every table."""
    schema = arrow_schema(METRIC_COLUMNS)
    rows = [dict(zip(schema.names, row, strict=True)) for row in curves]
    write_table(folder / layout.METRICS, pa.Table.from_pylist(rows, schema=schema))
    write_table(folder / layout.LATENTS, analysis.latents)
    write_table(folder / layout.SEQUENCES, analysis.sequences)
    if analysis.behaviours.num_rows:
        write_table(folder / layout.BEHAVIOURS, analysis.behaviours)
    (folder / layout.EXAMPLES).mkdir()
    _write_examples(folder / layout.EXAMPLES, analysis.examples, num_latents)


def file_hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of every table and of the weights, by its name below the folder."""
    files = [*sorted(folder.rglob("*.parquet")), folder / layout.WEIGHTS]
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def write_table(path: Path, table: pa.Table) -> None:
    """Writes a table as a file."""
    with path.open("wb") as file:
        pq.write_table(table, file, compression="zstd", row_group_size=_MAX_ROWS_PER_GROUP)


def _write_examples(folder: Path, examples: pa.Table, num_latents: int) -> None:
    """Writes files of contiguous latents, with a row group for every EXAMPLE_LATENTS_PER_ROW_GROUP latents that have
    rows.
    """
    latent = examples.column("latent").to_numpy()
    if np.any(latent[1:] < latent[:-1]):
        raise ValueError("the examples are not sorted by latent; sort them first")
    group = layout.EXAMPLE_LATENTS_PER_ROW_GROUP
    for first in range(0, num_latents, layout.latents_per_part(num_latents)):
        last = min(first + layout.latents_per_part(num_latents), num_latents)
        edges = np.searchsorted(latent, np.append(np.arange(first, last, group), last))
        path = folder / layout.example_part(first, num_latents)
        with path.open("wb") as file, pq.ParquetWriter(file, examples.schema, compression="zstd") as writer:
            for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
                if end > begin:
                    writer.write_table(examples.slice(begin, end - begin), row_group_size=end - begin)
