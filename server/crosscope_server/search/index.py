"""The index of a version's examples: all their texts one after the other, and which latents fire on which token.

It is one Arrow file of one row, whose lists are memory-mapped: what is not looked at takes no memory. Its name ends
with its checksum. `build` makes it from the version's tables. Knows nothing about queries, nor when to build.
"""

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from crosscope_proto import artefacts as layout
from crosscope_proto.columns import EXAMPLE_COLUMNS, SEQUENCE_COLUMNS
from crosscope_server.errors import BrokenArtefact
from crosscope_server.search.pattern import byte_offsets, folded_array
from crosscope_server.tables import TableFolder

Report = Callable[[float], None]
"""Takes the share of a build that is done."""

_FORMAT = 1
"""Version of the file's format; another one is built again."""
_TEXTS_DONE, _EXAMPLES_DONE = 0.2, 0.7
"""Shares of a build, measured at five million tokens."""
_NAME = re.compile(r"(.+)-([0-9a-f]{8})\.arrow")
_TEXT_COLUMNS = tuple(column for column in SEQUENCE_COLUMNS if column.name == "pieces")
_NEEDED = tuple(
    column for column in EXAMPLE_COLUMNS if column.name in ("latent", "sequence", "max", "positions", "values")
)
_CHUNK = 1 << 20


class TooLarge(Exception):
    """The index would take more room than it may; the message is a sentence."""


class Damaged(Exception):
    """The file is not what was written."""


@dataclass(frozen=True)
class Index:
    """All texts of the examples of a version. A token's number counts over all texts, and so does a byte's.

    An example is a latent and a text, however many groups it was chosen for.
    """

    raw: pa.Array
    """[text] large_string: texts as they are."""
    folded: pa.Array
    """[text] large_string: the same, folded (pattern.fold)."""
    text_starts: NDArray[np.uint32]
    """[text + 1]: the first token of each text."""
    raw_ends: NDArray[np.uint32]
    """[token]: the byte of `raw` behind it."""
    folded_ends: NDArray[np.uint32]
    """[token]: the byte of `folded` behind it."""
    example_starts: NDArray[np.uint32]
    """[text + 1]: the first example of each text."""
    example_latents: NDArray[np.uint32]
    """[example]"""
    example_peaks: NDArray[np.uint32]
    """[example]: the token with the largest activation."""
    example_max: NDArray[np.float32]
    """[example]: that activation."""
    entry_starts: NDArray[np.uint32]
    """[token + 1]: the first entry of each token."""
    entry_examples: NDArray[np.uint32]
    """[entry]: the example that is active there."""
    entry_values: NDArray[np.float32]
    """[entry]: its scaled activation."""

    @property
    def num_texts(self) -> int:
        """Number of texts."""
        return len(self.text_starts) - 1


_TEXTS = ("raw", "folded")


def build(tables: TableFolder, num_latents: int, folder: Path, max_bytes: int, report: Report) -> Path:
    """Builds the index of the version in `tables` as a file below `folder`, and returns its path.

    Raises TooLarge, BrokenArtefact, or OSError where the file cannot be written.
    """
    texts: Any = tables.read(layout.SEQUENCES, _TEXT_COLUMNS)["pieces"].combine_chunks()
    names = [f"{layout.EXAMPLES}/{layout.example_part(first, num_latents)}" for first in _first_latents(num_latents)]
    _check_size(tables, names, texts, max_bytes)
    columns = _texts(texts)
    report(_TEXTS_DONE)
    parts: list[_Part] = []
    for i, name in enumerate(names, 1):
        parts.append(_part(tables, name, columns["text_starts"], num_latents))
        report(_TEXTS_DONE + (_EXAMPLES_DONE - _TEXTS_DONE) * i / len(names))
    columns |= _examples(parts, columns["text_starts"])
    report(0.9)
    return _write(columns, folder, tables.folder.name)


def open_index(path: Path) -> Index:
    """The index in a file. Raises Damaged, or OSError."""
    named = _NAME.fullmatch(path.name)
    if named is None or _checksum(path) != named[2]:
        raise Damaged(f"{path} is not what its name says")
    try:
        with pa.memory_map(str(path)) as source:
            table: Any = pa.ipc.open_file(source).read_all()
    except pa.ArrowException as error:
        raise Damaged(f"{path} cannot be read: {error}") from error
    if (table.schema.metadata or {}).get(b"format") != str(_FORMAT).encode():
        raise Damaged(f"{path} has another format")
    lists: dict[str, Any] = {each.name: table[each.name].chunk(0).values for each in fields(Index)}
    arrays: dict[str, Any] = {
        name: values if name in _TEXTS else np.from_dlpack(values) for name, values in lists.items()
    }
    return Index(**arrays)


def version_of(path: Path) -> str | None:
    """The id of the version whose index a file is; None for another file."""
    named = _NAME.fullmatch(path.name)
    return None if named is None else named[1]


@dataclass(frozen=True)
class _Part:
    """What one example file holds; `example` counts within the part."""

    latent: NDArray[Any]
    text: NDArray[Any]
    max: NDArray[Any]
    peak: NDArray[Any]
    entry_token: NDArray[Any]
    entry_example: NDArray[Any]
    entry_value: NDArray[Any]


def _first_latents(num_latents: int) -> range:
    return range(0, num_latents, layout.latents_per_part(num_latents))


def _check_size(tables: TableFolder, names: list[str], texts: Any, max_bytes: int) -> None:
    """Raises TooLarge before anything large is made."""
    num_tokens, num_bytes = len(texts.values), texts.values.nbytes
    entries = 0
    for name in names:
        with tables.open(name, _NEEDED) as file:
            entries += _num_values(file.metadata)
    size = 2 * num_bytes + 12 * num_tokens + 8 * entries
    if size > min(max_bytes, 2**32 - 1):
        limit = f"it may take {max_bytes / 1e9:.1f} GB; set CROSSCOPE_SERVER_SEARCH_BYTES higher"
        limit = limit if size < 2**32 else "an index holds at most 4.3 GB"
        raise TooLarge(f"their index would take about {size / 1e9:.1f} GB, and {limit}")


def _num_values(metadata: Any) -> int:
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    return sum(
        column.num_values
        for group in groups
        for column in map(group.column, range(group.num_columns))
        if column.path_in_schema.startswith("values.")
    )


def _texts(pieces: Any) -> dict[str, Any]:
    """The columns of an index that follow from the pieces of each text."""
    offsets = np.from_dlpack(pieces.offsets).astype(np.int64)
    values = pieces.flatten()
    folded = folded_array(values)
    columns: dict[str, Any] = {"text_starts": (offsets - offsets[0]).astype(np.uint32)}
    for name, texts in (("raw", values), ("folded", folded)):
        # The pieces lie one after the other already; the texts are the same bytes with fewer bounds.
        flat: Any = texts.cast(pa.large_string())
        bounds = byte_offsets(flat)
        starts: Any = np.ascontiguousarray(bounds[columns["text_starts"]])
        columns[name] = pa.LargeStringArray.from_buffers(len(offsets) - 1, pa.py_buffer(starts), flat.buffers()[2])
        columns[f"{name}_ends"] = (bounds[1:] - bounds[0]).astype(np.uint32)
    return columns


def _part(tables: TableFolder, name: str, text_starts: NDArray[np.uint32], num_latents: int) -> _Part:
    """One example file. Raises BrokenArtefact where an example names what there is not."""
    table: Any = tables.read(name, _NEEDED)
    scalars: list[NDArray[Any]] = [np.asarray(table[each].combine_chunks()) for each in ("latent", "sequence", "max")]
    latent, text, maxima = scalars
    lists: list[Any] = [table[each].combine_chunks() for each in ("positions", "values")]
    positions, values = lists
    lengths = np.asarray(pc.list_value_length(positions), np.int64)
    sizes = np.diff(text_starts.astype(np.int64))
    position = np.asarray(positions.flatten(), np.int64)
    value = np.asarray(values.flatten(), np.float32)
    row = np.repeat(np.arange(len(latent)), lengths)
    if (
        np.any(text >= len(sizes))
        or np.any(latent >= num_latents)
        or np.any(lengths == 0)
        or np.any(lengths != np.asarray(pc.list_value_length(values), np.int64))
        or np.any(position >= sizes[text[row]])
    ):
        sentence = "an example names a latent, a text or a position that there is not, or has no position"
        raise BrokenArtefact(f"{tables.folder / name}: {sentence}; {tables.mend}")
    token = text_starts[text[row]].astype(np.int64) + position
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64) if len(lengths) else lengths
    largest = np.maximum.reduceat(value, starts) if len(starts) else value
    is_peak = value == largest[row]
    peak = np.full(len(latent), 0, np.int64)
    peak[row[is_peak][::-1]] = token[is_peak][::-1]  # the first of equal ones
    _, first = np.unique(latent.astype(np.int64) * max(1, len(sizes)) + text, return_index=True)
    number = np.full(len(latent), -1, np.int64)
    number[first] = np.arange(len(first))
    is_kept = number[row] >= 0
    return _Part(
        latent[first], text[first], maxima[first], peak[first], token[is_kept], number[row[is_kept]], value[is_kept]
    )


def _examples(parts: list[_Part], text_starts: NDArray[np.uint32]) -> dict[str, NDArray[Any]]:
    """The columns of an index about examples, from all example files."""
    sizes = np.array([len(part.latent) for part in parts], np.int64)
    before = np.cumsum(sizes) - sizes

    def joined(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(part, name) for part in parts])

    text = joined("text")
    order = np.argsort(text, kind="stable")
    number = np.empty(len(order), np.uint32)
    number[order] = np.arange(len(order), dtype=np.uint32)
    token = joined("entry_token").astype(np.uint32)
    example = np.concatenate([number[part.entry_example + start] for part, start in zip(parts, before, strict=True)])
    by_token = np.argsort(token, kind="stable")
    return {
        "example_starts": _starts(text, len(text_starts) - 1),
        "example_latents": joined("latent")[order].astype(np.uint32),
        "example_peaks": joined("peak")[order].astype(np.uint32),
        "example_max": joined("max")[order].astype(np.float32),
        "entry_starts": _starts(token, int(text_starts[-1])),
        "entry_examples": example[by_token],
        "entry_values": joined("entry_value")[by_token].astype(np.float32),
    }


def _starts(owner: NDArray[Any], num_owners: int) -> NDArray[np.uint32]:
    """Where the members of each owner begin once they are sorted by owner, and at last their end: [owner + 1]."""
    counts = np.bincount(owner, minlength=num_owners)
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.uint32)


def _write(columns: dict[str, Any], folder: Path, version_id: str) -> Path:
    """Writes the file whole, and returns its path."""
    lists: dict[str, pa.Array] = {}
    for each in fields(Index):
        values = columns[each.name]
        values = values if isinstance(values, pa.Array) else pa.array(values)
        lists[each.name] = pa.LargeListArray.from_arrays(pa.array([0, len(values)], pa.int64()), values)
    schema = pa.schema([(name, each.type) for name, each in lists.items()], {"format": str(_FORMAT)})
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f"{version_id}.part"
    with pa.OSFile(str(beside), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_table(pa.table(lists, schema))
    return beside.replace(folder / f"{version_id}-{_checksum(beside)}.arrow")


def _checksum(path: Path) -> str:
    found = 0
    with path.open("rb") as file:
        while block := file.read(_CHUNK):
            found = zlib.crc32(block, found)
    return f"{found:08x}"
