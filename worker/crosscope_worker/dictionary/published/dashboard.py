"""Writes the examples of a published version as the SQLite file that tiny-dashboard opens with `from_db`.

One table `data_table`: `key`, the latent, and `examples`, a JSON list of `[max, [token, …], [value, …]]`. Knows nothing
of models.
"""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow.parquet as pq

from crosscope_proto import artefacts as layout
from crosscope_proto.artefacts import ExampleGroup
from crosscope_worker.dictionary.crosscoder import CrosscoderError
from crosscope_worker.disk import whole

_COLUMNS = ["latent", "group", "sequence", "max", "positions", "values"]


def export_dashboard(version: Path, target: Path) -> int:
    """Writes the strongest examples of every latent of a version folder into the new file `target`.

    Activations are scaled (math §1); a token without one has 0. Tokens are the pieces that people see. Latents without
    examples have no row. Returns the number of rows. Raises CrosscoderError when `target` exists or cannot be written,
    or `version` has no examples.
    """
    if target.exists():
        raise CrosscoderError(f"{target} exists; name a new file")
    sequences = version / layout.SEQUENCES
    parts = sorted((version / layout.EXAMPLES).glob("*.parquet"))
    if not parts or not sequences.is_file():
        raise CrosscoderError(f"{version} has no {layout.EXAMPLES}/ or no {layout.SEQUENCES}: is it a version folder?")
    pieces = cast("list[list[str]]", pq.read_table(sequences, columns=["pieces"])["pieces"].to_pylist())
    try:
        with whole(target) as partial, closing(sqlite3.connect(partial)) as connection, connection:
            connection.execute("CREATE TABLE data_table (key INTEGER PRIMARY KEY, examples TEXT NOT NULL)")
            rows = (row for part in parts for row in _rows(part, pieces))
            connection.executemany("INSERT INTO data_table VALUES (?, ?)", rows)
            (count,) = connection.execute("SELECT COUNT(*) FROM data_table").fetchone()
    except (sqlite3.Error, OSError) as error:
        raise CrosscoderError(f"{target} cannot be written: {error}") from error
    return count


def _rows(part: Path, pieces: list[list[str]]) -> Iterator[tuple[int, str]]:
    """(latent, JSON) of one example file, whose rows are sorted by latent."""
    with pq.ParquetFile(part) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=_COLUMNS).to_pylist()
            top = [row for row in table if row["group"] == ExampleGroup.TOP.value]
            for latent, rows in groupby(top, key=itemgetter("latent")):
                strongest = sorted(rows, key=itemgetter("max"), reverse=True)
                yield latent, json.dumps([_example(row, pieces[row["sequence"]]) for row in strongest])


def _example(row: dict[str, object], tokens: list[str]) -> tuple[object, list[str], list[float]]:
    values = np.zeros(len(tokens))
    values[row["positions"]] = row["values"]  # type: ignore[index]
    return row["max"], tokens, values.tolist()
