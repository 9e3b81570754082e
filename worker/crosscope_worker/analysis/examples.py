"""The choice of examples: the strongest texts of every latent and data set, and texts from bands of their maxima; the
table of them and of the silent ones (silent.py).

Both are exact over all held-out texts, because every (latent, text) maximum is kept through the pass (store.py). Of
texts that are equal around a latent's peak (repeats.WINDOW tokens on each side), only the strongest is chosen, with the
number of texts that it stands for. Knows nothing about models.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from crosscope_proto.artefacts import ExampleGroup
from crosscope_proto.column import arrow_schema
from crosscope_proto.columns import EXAMPLE_COLUMNS, SEQUENCE_COLUMNS
from crosscope_proto.specs import AnalysisSpec
from crosscope_worker.analysis.columns import chosen, lists, plain
from crosscope_worker.analysis.ordering import descending, ordered_by
from crosscope_worker.analysis.repeats import WindowHashes, distinct
from crosscope_worker.analysis.silent import Corpus, Silent, anchors, choose_silent
from crosscope_worker.analysis.store import ENTRY, Segments, Store, ranges, runs
from crosscope_worker.tokenizer.pieces import text_pieces

if TYPE_CHECKING:
    from crosscope_worker.tokenizer.tokens import TextTokenizer

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
NUM_TOP_TOKENS = 10
PEAK_CONTEXT = 4
"""Tokens on each side of the peak that a latent is called by until somebody labels it."""
SEGMENTS_AT_ONCE = 1 << 20
"""Segments that are sorted at a time, about 220 bytes each; a latent with more is sorted alone."""
_GROUPS = (ExampleGroup.QUANTILE, ExampleGroup.SILENT, ExampleGroup.TOP)
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
    low: Floats
    """Smallest and largest maximum, and number, of the texts of its data set, group and band."""
    high: Floats
    members: Ints


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


def peak_windows(segments: Segments, store: Store) -> Ints:
    """A number for the tokens around each segment's peak, [segment]: equal for equal tokens."""
    lengths = np.array([len(text.ids) for text in store.texts], dtype=np.int64)
    first = np.cumsum(lengths) - lengths
    numbers = WindowHashes([np.asarray(text.ids) for text in store.texts]).numbers()
    return numbers[first[segments.text] + segments.peak]


def choose(segments: Segments, windows: Ints, texts: TextFacts, names: Sequence[str], spec: AnalysisSpec) -> Choice:
    """Chooses examples; `windows: [segment]` comes from peak_windows.

    Segments of one latent and data set with equal windows count as one, with the largest of their maxima.

    top: the `top_examples` largest maxima of each latent and data set, ties to the earlier text.

    quantile: the texts, ordered by maximum, fall into `quantiles` bands of equal size (band q holds those of ascending
    rank r with `r·quantiles // n = q`). From each band `examples_per_quantile` are chosen at even distances, strongest
    first.

    Memory: 12 bytes a segment, 104 a chosen example, and the memory for SEGMENTS_AT_ONCE.
    """
    sizes = np.bincount(segments.latent)
    by_latent = ordered_by(segments.latent, segments.text)
    ends = np.cumsum(sizes)
    parts: list[Choice] = []
    for first, last in runs(sizes, SEGMENTS_AT_ONCE):
        own = by_latent[ends[first] - sizes[first] : ends[last - 1]]
        part = _choose(segments.at(own), windows[own], texts, names, spec)
        parts.append(replace(part, segment=own[part.segment]))
    parts = parts or [_choose(segments, windows, texts, names, spec)]
    columns = ([getattr(part, name) for part in parts] for name in Choice.__dataclass_fields__)
    return Choice(*(np.concatenate(column) for column in columns))


def _choose(segments: Segments, windows: Ints, texts: TextFacts, names: Sequence[str], spec: AnalysisSpec) -> Choice:
    """As `choose`, with all segments at once, those of one latent in the order of their texts."""
    dataset = texts.dataset[segments.text]
    key = segments.latent.astype(np.int64) * max(1, len(names)) + dataset
    order = ordered_by(key, descending(segments.max))
    first, repeats = distinct(key[order], windows[order], texts.copies[segments.text][order])
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

    drawn_from = np.concatenate([banded, top])
    segment = order[drawn_from]
    group = np.repeat([_GROUPS.index(ExampleGroup.QUANTILE), _GROUPS.index(ExampleGroup.TOP)], [len(banded), len(top)])
    quantile = np.concatenate([band[banded], np.zeros(len(top), np.int64)])
    begin = np.repeat(begins, size)[drawn_from]
    weakest = begin + n[drawn_from] - 1 - np.concatenate([first[banded], np.zeros(len(top), np.int64)])
    strongest = begin + np.concatenate([(n - 1 - last)[banded], np.zeros(len(top), np.int64)])
    rank = np.concatenate([drawn[banded], rank[top]])
    rows = ordered_by(segments.latent[segment], _by_name(names)[dataset[segment]], group, quantile, rank)
    return Choice(
        segment=segment[rows],
        dataset=dataset[segment][rows],
        group=group[rows],
        quantile=quantile[rows],
        rank=rank[rows],
        repeats=repeats[drawn_from][rows],
        low=segments.max[order[weakest]][rows],
        high=segments.max[order[strongest]][rows],
        members=(weakest - strongest + 1)[rows],
    )


def _by_name(names: Sequence[str]) -> Ints:
    """The place of each data set in the order of their names, as the table is sorted."""
    return np.argsort(np.argsort(np.asarray(names, dtype=str), kind="stable"), kind="stable")


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


def silent_texts(choice: Choice, segments: Segments, store: Store, spec: AnalysisSpec) -> Silent:
    """The silent examples of each latent and data set that has top examples."""
    if spec.silent_examples == 0:
        return Silent.empty()
    top = np.flatnonzero(choice.group == _GROUPS.index(ExampleGroup.TOP))
    corpus = Corpus(store)
    found = anchors(segments.at(choice.segment[top]), choice.dataset[top], corpus)
    return choose_silent(found, segments, store, corpus, spec.silent_examples)


def example_table(
    choice: Choice, silent: Silent, segments: Segments, store: Store, names: Sequence[str]
) -> tuple[pa.Table, Ints]:
    """The table of EXAMPLE_COLUMNS, and the texts to which it refers: `sequence` counts them in that order."""
    segment, quiet = choice.segment, len(silent.text)
    none = np.zeros(quiet, np.int64)
    latent = np.concatenate([segments.latent[segment].astype(np.int64), silent.latent])
    dataset = np.concatenate([choice.dataset, silent.dataset])
    group = np.concatenate([choice.group, none + _GROUPS.index(ExampleGroup.SILENT)])
    quantile, rank = np.concatenate([choice.quantile, none]), np.concatenate([choice.rank, silent.rank])
    rows = ordered_by(latent, _by_name(names)[dataset], group, quantile, rank)
    texts, sequence = np.unique(
        np.concatenate([segments.text[segment].astype(np.int64), silent.text]), return_inverse=True
    )
    length = np.concatenate([segments.length[segment].astype(np.int64), none + 1])[rows]
    entries = np.zeros(int(length.sum()), ENTRY)
    is_silent = np.repeat(rows >= len(segment), length)
    # Rows of one kind keep their order, so their entries follow one another.
    order = rows[rows < len(segment)]
    entries[~is_silent] = store.entries(segments.start[segment][order], segments.length[segment][order])
    entries["position"][is_silent] = silent.position[rows[rows >= len(segment)] - len(segment)]
    columns = {
        "latent": latent[rows].astype(np.uint32),
        "dataset": chosen(list(names), dataset[rows]),
        "group": chosen([str(each) for each in _GROUPS], group[rows]),
        "quantile": quantile[rows].astype(np.uint8),
        "rank": rank[rows].astype(np.uint32),
        "sequence": sequence.reshape(-1)[rows].astype(np.uint32),
        "max": np.concatenate([segments.max[segment], none.astype(np.float32)])[rows],
        "positions": lists(length, plain(np.ascontiguousarray(entries["position"]))),
        "values": lists(length, plain(np.ascontiguousarray(entries["value"]))),
        "repeats": np.concatenate([choice.repeats, silent.repeats])[rows].astype(np.uint32),
        "group_low": np.concatenate([choice.low, none.astype(np.float32)])[rows],
        "group_high": np.concatenate([choice.high, none.astype(np.float32)])[rows],
        "group_texts": np.concatenate([choice.members, silent.members])[rows].astype(np.uint32),
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
    order = ordered_by(latent, -counts, ids)
    size = np.bincount(latent, minlength=num_latents)
    rank = np.arange(len(order)) - np.repeat(np.cumsum(size) - size, size)
    return ids[order][rank < NUM_TOP_TOKENS], np.minimum(size, NUM_TOP_TOKENS)


def peak_contexts(
    choice: Choice, segments: Segments, sequences: pa.Table, texts: Ints, num_latents: int
) -> "pa.Array[Any]":
    """The text around the peak of each latent's strongest top example: before it, the peak, behind it.

    Three texts a latent, those of latent 0 first; empty where it has no example. Of equally strong examples the one of
    the earlier text counts. `sequences` and `texts` are those of sequence_table.
    """
    segment = choice.segment[choice.group == _GROUPS.index(ExampleGroup.TOP)]
    order = ordered_by(segments.latent[segment], descending(segments.max[segment]), segments.text[segment])
    latents, first = np.unique(segments.latent[segment][order], return_index=True)
    strongest = segment[order][first]
    pieces: Any = sequences.column("pieces").combine_chunks()
    offsets = pieces.offsets.to_numpy().astype(np.int64)
    rows = np.searchsorted(texts, segments.text[strongest])
    peak = offsets[rows] + segments.peak[strongest]
    begins = np.stack([np.maximum(offsets[rows], peak - PEAK_CONTEXT), peak, peak + 1], axis=1)
    ends = np.stack([peak, peak + 1, np.minimum(offsets[rows + 1], peak + 1 + PEAK_CONTEXT)], axis=1)
    lengths = np.zeros((num_latents, 3), np.int64)
    lengths[latents] = ends - begins
    around = pieces.values.take(pa.array(ranges(begins.reshape(-1), (ends - begins).reshape(-1))))
    joined: Any = pc.binary_join(lists(lengths.reshape(-1), around), "")
    return joined
