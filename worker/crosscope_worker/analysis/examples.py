"""The choice of examples: the strongest texts of every latent and data set, and texts from bands of their maxima.

Both are exact over all held-out texts, because every (latent, text) maximum is kept through the pass (store.py). Of
texts that are equal around a latent's peak (repeats.WINDOW tokens on each side), only the strongest is chosen, with the
number of texts that it stands for. Knows nothing about models.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crosscope_proto.artefacts import ExampleGroup
from crosscope_proto.column import arrow_schema
from crosscope_proto.columns import EXAMPLE_COLUMNS, SEQUENCE_COLUMNS
from crosscope_proto.specs import AnalysisSpec
from crosscope_worker.analysis.columns import chosen, lists, plain
from crosscope_worker.analysis.repeats import Hashes, WindowHashes
from crosscope_worker.analysis.store import Segments, Store, runs
from crosscope_worker.tokenizer.pieces import text_pieces

if TYPE_CHECKING:
    from crosscope_worker.tokenizer.tokens import TextTokenizer

Ints = NDArray[np.int64]
NUM_TOP_TOKENS = 10
PEAK_CONTEXT = 4
"""Tokens on each side of the peak that a latent is called by until somebody labels it."""
SEGMENTS_AT_ONCE = 1 << 20
"""Segments that are sorted at a time, about 220 bytes each; a latent with more is sorted alone."""
_GROUPS = (ExampleGroup.QUANTILE, ExampleGroup.TOP)
"""In alphabetical order, as the table is sorted."""


@dataclass(frozen=True)
class Choice:
    """Chosen segments, sorted by (latent, data set name, group, quantile, rank); arrays are [example]."""

    segment: Ints
    """Index into Segments."""
    dataset: Ints
    group: Ints
    """Index into _GROUPS."""
    quantile: Ints
    rank: Ints
    repeats: Ints
    """Number of further texts that the example stands for."""


@dataclass(frozen=True)
class TextFacts:
    """The facts about texts that the choice needs; arrays are [text]."""

    dataset: Ints
    """Index into the names of the data sets."""
    copies: Ints
    """Number of times that the text occurred."""

    @classmethod
    def of(cls, store: Store) -> "TextFacts":
        """The facts about a store's texts."""
        dataset = np.array([text.dataset for text in store.texts], dtype=np.int64)
        return cls(dataset, np.array(store.copies, dtype=np.int64))


def peak_windows(segments: Segments, store: Store) -> Hashes:
    """A hash of the tokens around each segment's peak, [segment]."""
    return WindowHashes([np.asarray(text.ids) for text in store.texts]).around(segments.text, segments.peak)


def choose(segments: Segments, windows: Hashes, texts: TextFacts, names: Sequence[str], spec: AnalysisSpec) -> Choice:
    """Chooses examples; `windows: [segment]` comes from peak_windows.

    Segments of one latent and data set with equal windows count as one, with the largest of their maxima.

    top: the `top_examples` largest maxima of each latent and data set, ties to the earlier text.

    quantile: the texts, ordered by maximum, fall into `quantiles` bands of equal size (band q holds those of ascending
    rank r with `r·quantiles // n = q`). From each band `examples_per_quantile` are chosen at even distances, strongest
    first.

    Memory: 12 bytes a segment, 88 a chosen example, and the memory for SEGMENTS_AT_ONCE.
    """
    sizes = np.bincount(segments.latent)
    by_latent = np.argsort(segments.latent, kind="stable")
    ends = np.cumsum(sizes)
    parts: list[Choice] = []
    for first, last in runs(sizes, SEGMENTS_AT_ONCE):
        own = by_latent[ends[first] - sizes[first] : ends[last - 1]]
        part = _choose(segments.at(own), windows[own], texts, names, spec)
        parts.append(replace(part, segment=own[part.segment]))
    columns = ([getattr(part, name) for part in parts] for name in Choice.__dataclass_fields__)
    return Choice(*(np.concatenate([np.empty(0, np.int64), *column]) for column in columns))


def _choose(segments: Segments, windows: Hashes, texts: TextFacts, names: Sequence[str], spec: AnalysisSpec) -> Choice:
    """As `choose`, with all segments at once."""
    dataset = texts.dataset[segments.text]
    key = segments.latent.astype(np.int64) * max(1, len(names)) + dataset
    order = np.lexsort((segments.text, -segments.max, key))
    first, repeats = _distinct(key[order], windows[order], texts.copies[segments.text][order])
    order = order[first]
    key = key[order]
    begins = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]])) if len(key) else np.empty(0, np.int64)
    size = np.diff(np.append(begins, len(key)))
    rank = np.arange(len(key)) - np.repeat(begins, size)
    n = np.repeat(size, size)

    top = np.flatnonzero(rank < spec.top_examples)
    band = (n - 1 - rank) * spec.quantiles // np.maximum(n, 1)
    first = -(-band * n // spec.quantiles)
    last = -(-(band + 1) * n // spec.quantiles) - 1
    drawn = _evenly(last - (n - 1 - rank), last - first + 1, spec.examples_per_quantile)
    banded = np.flatnonzero(drawn >= 0)

    segment = order[np.concatenate([banded, top])]
    group = np.repeat([0, 1], [len(banded), len(top)])
    quantile = np.concatenate([band[banded], np.zeros(len(top), np.int64)])
    rank = np.concatenate([drawn[banded], rank[top]])
    repeats = repeats[np.concatenate([banded, top])]
    by_name = np.argsort(np.argsort(np.asarray(names, dtype=str), kind="stable"), kind="stable")
    rows = np.lexsort((rank, quantile, group, by_name[dataset[segment]], segments.latent[segment]))
    return Choice(segment[rows], dataset[segment][rows], group[rows], quantile[rows], rank[rows], repeats[rows])


def _distinct(key: Ints, windows: Hashes, copies: Ints) -> tuple[Ints, Ints]:
    """Indices of the first member of each (key, window), ascending, and how many more texts each stands for."""
    if len(key) == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    together = np.lexsort((windows, key))
    key, windows = key[together], windows[together]
    begins = np.flatnonzero(np.concatenate([[True], (key[1:] != key[:-1]) | (windows[1:] != windows[:-1])]))
    repeats = np.add.reduceat(copies[together], begins) - 1
    first = together[begins]
    order = np.argsort(first)
    return first[order], repeats[order]


def _evenly(rank: Ints, members: Ints, count: int) -> Ints:
    """The number of the evenly spaced pick, of `count` picks among `members` things, that falls on a rank; -1 if none
    does.

    Pick t falls on rank `floor((t + 1/2)·members/count)`; all things are picked if there are no more than `count`.
    """
    if count == 0:
        return np.full_like(rank, -1)
    members = np.maximum(members, 1)
    pick = -((members - 2 * rank * count) // (2 * members))
    following = -((members - 2 * (rank + 1) * count) // (2 * members))
    return np.where(members <= count, rank, np.where(following > pick, pick, -1))


def example_table(choice: Choice, segments: Segments, store: Store, names: Sequence[str]) -> tuple[pa.Table, Ints]:
    """The table of EXAMPLE_COLUMNS, and the texts to which it refers: `sequence` counts them in that order."""
    segment = choice.segment
    texts, sequence = np.unique(segments.text[segment].astype(np.int64), return_inverse=True)
    length = segments.length[segment]
    entries = store.entries(segments.start[segment], length)
    columns = {
        "latent": segments.latent[segment],
        "dataset": chosen(list(names), choice.dataset),
        "group": chosen([str(group) for group in _GROUPS], choice.group),
        "quantile": choice.quantile.astype(np.uint8),
        "rank": choice.rank.astype(np.uint32),
        "sequence": sequence.reshape(-1).astype(np.uint32),
        "max": segments.max[segment],
        "positions": lists(length, plain(np.ascontiguousarray(entries["position"]))),
        "values": lists(length, plain(np.ascontiguousarray(entries["value"]))),
        "repeats": choice.repeats.astype(np.uint32),
    }
    return pa.table(columns, schema=arrow_schema(EXAMPLE_COLUMNS)), texts


def sequence_table(store: Store, texts: Ints, names: Sequence[str], tokenizer: "TextTokenizer") -> pa.Table:
    """The table of SEQUENCE_COLUMNS, a row for each of `texts`."""
    found = [store.texts[text] for text in texts]
    ids = [np.asarray(text.ids, dtype=np.int64) for text in found]
    columns = {
        "id": np.arange(len(found), dtype=np.uint32),
        "dataset": [names[text.dataset] for text in found],
        "token_ids": [each.astype(np.uint32) for each in ids],
        "pieces": [text_pieces(tokenizer, each) for each in ids],
        "roles": [np.asarray(text.roles, dtype=np.uint8) for text in found],
    }
    return pa.table(columns, schema=arrow_schema(SEQUENCE_COLUMNS))


def top_tokens(choice: Choice, segments: Segments, store: Store, num_latents: int) -> tuple[Ints, Ints]:
    """Token ids at the peaks of each latent's top examples, most frequent first, at most NUM_TOP_TOKENS.

    Returns (ids, counts [latent]), the ids of latent 0 first.
    """
    segment = choice.segment[choice.group == _GROUPS.index(ExampleGroup.TOP)]
    lengths = np.array([len(text.ids) for text in store.texts], dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    flat = np.concatenate([np.asarray(text.ids, dtype=np.int64) for text in store.texts] or [np.empty(0, np.int64)])
    ids = flat[starts[segments.text[segment]] + segments.peak[segment]]
    vocabulary = int(flat.max(initial=0)) + 1
    keys, counts = np.unique(segments.latent[segment].astype(np.int64) * vocabulary + ids, return_counts=True)
    latent, ids = keys // vocabulary, keys % vocabulary
    order = np.lexsort((ids, -counts, latent))
    size = np.bincount(latent, minlength=num_latents)
    rank = np.arange(len(order)) - np.repeat(np.cumsum(size) - size, size)
    return ids[order][rank < NUM_TOP_TOKENS], np.minimum(size, NUM_TOP_TOKENS)


def peak_contexts(choice: Choice, segments: Segments, sequences: pa.Table, texts: Ints, num_latents: int) -> list[str]:
    """The text around the peak of each latent's strongest top example: before it, the peak, behind it.

    Three texts a latent, those of latent 0 first; empty where it has no example. Of equally strong examples the one of
    the earlier text counts. `sequences` and `texts` are those of sequence_table.
    """
    segment = choice.segment[choice.group == _GROUPS.index(ExampleGroup.TOP)]
    order = np.lexsort((segments.text[segment], -segments.max[segment], segments.latent[segment]))
    latents, first = np.unique(segments.latent[segment][order], return_index=True)
    strongest = segment[order][first]
    rows = np.searchsorted(texts, segments.text[strongest])
    pieces: Any = sequences.column("pieces").combine_chunks()
    found = [""] * (3 * num_latents)
    for latent, row, peak in zip(latents.tolist(), rows.tolist(), segments.peak[strongest].tolist(), strict=True):
        start, end = pieces.offsets[row].as_py(), pieces.offsets[row + 1].as_py()
        at, low = start + peak, max(start, start + peak - PEAK_CONTEXT)
        around = pieces.values[low : min(end, at + 1 + PEAK_CONTEXT)].to_pylist()
        middle = at - low
        found[3 * latent : 3 * latent + 3] = "".join(around[:middle]), around[middle], "".join(around[middle + 1 :])
    return found
