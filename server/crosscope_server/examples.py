"""Reads the examples of one version. A look-up reads one row group of Parquet; the texts are in memory.

All reads block: call them from a thread. Knows nothing about protobuf.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from crosscope_proto import artefacts as layout
from crosscope_proto.artefacts import ExampleGroup
from crosscope_proto.columns import EXAMPLE_COLUMNS, SEQUENCE_COLUMNS
from crosscope_server.errors import BrokenArtefact, NotFound
from crosscope_server.tables import TableFolder

_MAX_LATENT = 2**32 - 1

Key = tuple[str, int, str, int]
"""Group, quantile, data set, rank: unique within a latent."""


@dataclass(frozen=True)
class TextTokens:
    """The tokens of a text, or of a window of it."""

    ids: list[int]
    pieces: list[str]
    roles: list[int]


@dataclass(frozen=True)
class Example:
    """One text on which a latent fires, or stays silent."""

    sequence_id: int
    dataset: str
    group: ExampleGroup
    quantile: int
    rank: int
    tokens: TextTokens
    token_start: int
    """Position of the first of `tokens` in the text."""
    num_tokens: int
    """Tokens of the whole text."""
    positions: list[int]
    """Relative to token_start, like `peak`; empty in group silent."""
    activations: list[float]
    max: float
    peak: int
    repeats: int
    """Number of further texts that it stands for."""
    group_low: float
    """Smallest and largest maximum, and number, of the texts of its data set, group and band."""
    group_high: float
    group_texts: int

    @property
    def key(self) -> Key:
        """What identifies it among its latent's examples."""
        return self.group, self.quantile, self.dataset, self.rank


class ExampleReader:
    """Reads examples/ and sequences.parquet. Files stay open, so a removed version can still be read."""

    def __init__(self, tables: TableFolder, num_latents: int) -> None:
        """Takes a version's folder; reads nothing yet."""
        self._tables = tables
        self._num_latents = num_latents
        self._parts: dict[str, _Part] = {}
        self._sequences: dict[str, Any] | None = None
        self._lock = threading.Lock()

    def page(
        self,
        latent: int,
        group: ExampleGroup | None,
        dataset: str | None,
        after: Key | None,
        size: int,
        context: int | None,
    ) -> tuple[list[Example], bool]:
        """A page of a latent's examples, and whether it is the last one.

        Strongest first; quantile groups after the top ones, highest band first. Without a group, those on which it
        fires; silent ones come nearest first. `context` is the number of tokens
        shown on each side of the peak, None for whole texts. Raises BrokenArtefact.
        """
        rows = self._rows(latent, group, dataset)
        start = 0
        if after is not None:
            keys = [(row["group"], row["quantile"], row["dataset"], row["rank"]) for row in rows]
            start = keys.index(after) + 1 if after in keys else len(keys)
        chosen = rows[start : start + size]
        return [self._example(row, context) for row in chosen], start + size >= len(rows)

    def text(self, sequence_id: int) -> TextTokens:
        """A stored text, whole. Raises NotFound or BrokenArtefact."""
        texts = self._texts()
        if sequence_id >= (count := len(texts["token_ids"])):
            there = f"there are 0 to {count - 1}" if count else "this version stores none"
            raise NotFound(f"the analysis stored no text {sequence_id}; {there}")
        return TextTokens(*(texts[name][sequence_id].values.to_pylist() for name in ("token_ids", "pieces", "roles")))

    def _rows(self, latent: int, group: ExampleGroup | None, dataset: str | None) -> list[dict[str, Any]]:
        name = f"{layout.EXAMPLES}/{layout.example_part(latent, self._num_latents)}"
        with self._lock:
            part = self._parts.get(name)
            if part is None:
                part = self._parts[name] = _Part(self._tables, name)
        rows = [
            row
            for row in part.rows(latent)
            if (row["group"] != ExampleGroup.SILENT if group is None else row["group"] == group)
            and (dataset is None or row["dataset"] == dataset)
        ]
        rows.sort(
            key=lambda row: (
                row["group"] != ExampleGroup.TOP,
                -row["quantile"],
                -row["max"],
                row["rank"] if row["group"] == ExampleGroup.SILENT else 0,
                row["dataset"],
                row["rank"],
            )
        )
        return rows

    def _example(self, row: dict[str, Any], context: int | None) -> Example:
        sequences = self._texts()
        sequence = row["sequence"]
        positions: Sequence[int] = row["positions"]
        values: Sequence[float] = row["values"]
        if wrong := _what_is_wrong(row, sequences["token_ids"]):
            sentence = f"an example of latent {row['latent']} {wrong}; publish the crosscoder again"
            raise BrokenArtefact(f"{self._tables.folder / layout.EXAMPLES}: {sentence}")
        peak = positions[max(range(len(values)), key=values.__getitem__)]
        ids = sequences["token_ids"][sequence].values
        start, end = 0, len(ids)
        if context is not None:
            start, end = max(0, peak - context), min(end, peak + context + 1)
        window = slice(start, end)
        inside = [
            (position - start, value)
            for position, value in zip(positions, values, strict=True)
            if start <= position < end and row["group"] != ExampleGroup.SILENT
        ]
        return Example(
            sequence_id=sequence,
            dataset=row["dataset"],
            group=ExampleGroup(row["group"]),
            quantile=row["quantile"],
            rank=row["rank"],
            tokens=TextTokens(
                *(sequences[name][sequence].values[window].to_pylist() for name in ("token_ids", "pieces", "roles"))
            ),
            token_start=start,
            num_tokens=len(ids),
            positions=[position for position, _ in inside],
            activations=[value for _, value in inside],
            max=row["max"],
            peak=peak - start,
            repeats=row.get("repeats", 0),
            group_low=row.get("group_low", 0.0),
            group_high=row.get("group_high", 0.0),
            group_texts=row.get("group_texts", 0),
        )

    def _texts(self) -> dict[str, Any]:
        with self._lock:
            if self._sequences is None:
                table = self._tables.read(layout.SEQUENCES, SEQUENCE_COLUMNS)
                self._sequences = {name: table[name].combine_chunks() for name in ("token_ids", "pieces", "roles")}
                lengths = [column.value_lengths() for column in self._sequences.values()]
                if any(other != lengths[0] for other in lengths):
                    self._sequences = None
                    path = self._tables.folder / layout.SEQUENCES
                    raise BrokenArtefact(f"{path}: ids, pieces and roles of a text differ in number; publish it again")
            return self._sequences


def _what_is_wrong(row: dict[str, Any], texts: pa.Array) -> str:
    """Why an example cannot be shown; empty for one that can."""
    positions, values = row["positions"], row["values"]
    if row["sequence"] >= len(texts):
        return f"names sequence {row['sequence']}, which {layout.SEQUENCES} lacks"
    if row["group"] not in set(ExampleGroup):
        return f"has the unknown group {row['group'][:40]!r}"
    if not positions or len(positions) != len(values):
        return f"has {len(positions)} positions and {len(values)} values"
    length = len(texts[row["sequence"]].values)
    if max(positions) >= length:
        return f"names position {max(positions)} of a text of {length} tokens"
    return ""


class _Part:
    """One example file, kept open."""

    def __init__(self, tables: TableFolder, name: str) -> None:
        self._tables = tables
        self._name = name
        self._lock = threading.Lock()
        self._file = tables.open(name, EXAMPLE_COLUMNS)
        metadata = self._file.metadata
        column = metadata.schema.names.index("latent")
        self._ranges: list[tuple[int, int, int]] = []
        """First latent, last latent, row group."""
        for index in range(metadata.num_row_groups):
            group = metadata.row_group(index)
            statistics = group.column(column).statistics
            low, high = 0, _MAX_LATENT
            if statistics is not None and statistics.has_min_max:
                low, high = int(statistics.min or 0), int(statistics.max or 0)
            if group.num_rows:
                self._ranges.append((low, high, index))

    def rows(self, latent: int) -> list[dict[str, Any]]:
        groups = [index for first, last, index in self._ranges if first <= latent <= last]
        if not groups:
            return []
        with self._lock:
            table = self._tables.read_groups(self._name, self._file, EXAMPLE_COLUMNS, groups)
        latents = np.from_dlpack(table["latent"].combine_chunks())
        if np.any(latents[1:] < latents[:-1]):
            path = self._tables.folder / self._name
            raise BrokenArtefact(f"{path} is not sorted by latent; publish the crosscoder again")
        start, end = np.searchsorted(latents, [latent, latent + 1])
        return table.slice(start, end - start).to_pylist()
