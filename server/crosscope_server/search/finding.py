"""Finds latents: where each is found, how well, and in which order. Knows nothing about pages."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crosscope_server.latents import LatentTable
from crosscope_server.search.index import Index
from crosscope_server.search.pattern import Pattern

MAX_MATCHES = 200_000
"""Matches in texts that are looked at; beyond, a note says that there are more."""
MAX_SECONDS = 3.0
"""The same for the time that texts are searched."""
_TEXTS_AT_ONCE = 4096
_ENTRIES_AT_ONCE = 2_000_000


Matches = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
"""Text, start and end of each match."""


class Place(IntEnum):
    """Where a search looks, by the numbers of SearchPlace."""

    LABEL = 1
    PEAK = 2
    LOGIT_BASE = 3
    LOGIT_CHAT = 4
    EXAMPLE = 5
    NOTE = 6


Words = Mapping[Place, Mapping[int, str]]
"""What people say, by place and latent: labels and notes."""

TOKEN_COLUMNS = {
    Place.PEAK: "top_tokens",
    Place.LOGIT_BASE: "logit_tokens_base",
    Place.LOGIT_CHAT: "logit_tokens_chat",
}


@dataclass(frozen=True)
class InExamples:
    """What was found in the texts of examples; arrays are [latent] where nothing else is said."""

    text: NDArray[np.int64]
    """[match]"""
    start: NDArray[np.int64]
    """[match]: the byte of the text (a folded text for a folded pattern) at which it starts."""
    end: NDArray[np.int64]
    """[match]"""
    first_token: NDArray[np.int64]
    """[match]: its first token, counted over all texts."""
    last_token: NDArray[np.int64]
    """[match]: its last token."""
    num_examples: NDArray[np.int64]
    num_matching: NDArray[np.int64]
    """Examples that have a match."""
    num_firing: NDArray[np.int64]
    """Examples in which the latent is active on a match."""
    num_peaking: NDArray[np.int64]
    """Examples whose peak lies on a match."""
    activation: NDArray[np.float32]
    """Largest activation on a match; 0: none."""
    best: NDArray[np.int64]
    """The match with that activation, else the first one of the example with the largest maximum; -1: none."""
    num_texts: int
    """Texts with a match."""
    not_searched: str
    """Which texts were not searched, and why; empty: all were."""
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Found:
    """What one search found in a version."""

    masks: Mapping[Place, NDArray[np.bool_]]
    """Which latents were found, by place: [latent]."""
    examples: InExamples | None
    """None where examples were not searched."""
    order: NDArray[np.int64]
    """Ids of all latents that were found, best first."""
    notes: tuple[str, ...] = field(default=())


def find(pattern: Pattern, places: Sequence[Place], table: LatentTable, words: Words, index: Index | None) -> Found:
    """Looks in some places for a pattern; without an index not in examples."""
    n = table.num_latents
    masks: dict[Place, NDArray[np.bool_]] = {}
    for place in places:
        if place in words:
            masks[place] = _in_words(pattern, words[place], n)
        if place in TOKEN_COLUMNS:
            masks[place] = table.any_token(TOKEN_COLUMNS[place], pattern.found_in)
    examples = None
    if Place.EXAMPLE in places and index is not None:
        examples = _in_examples(pattern, index, n)
        masks[Place.EXAMPLE] = examples.num_matching > 0
    return Found(masks, examples, _order(masks, examples, table), examples.notes if examples else ())


def _order(
    masks: Mapping[Place, NDArray[np.bool_]], examples: InExamples | None, table: LatentTable
) -> NDArray[np.int64]:
    nobody = np.zeros(table.num_latents, bool)
    found = np.flatnonzero(np.any([nobody, *masks.values()], axis=0))
    by_token = np.any([nobody, *(masks[place] for place in TOKEN_COLUMNS if place in masks)], axis=0)
    keys: list[NDArray[Any]] = [found]
    if examples is not None:
        keys.append(-examples.num_matching[found])
    keys.append(~by_token[found])
    if examples is not None:
        largest = np.maximum(np.asarray(table.column("max"), np.float64)[found], np.finfo(np.float32).tiny)
        keys += [-(examples.activation[found] / largest), -examples.num_peaking[found]]
    keys += [~masks.get(place, nobody)[found] for place in (Place.NOTE, Place.LABEL)]
    return found[np.lexsort(keys)]


def _in_words(pattern: Pattern, words: Mapping[int, str], num_latents: int) -> NDArray[np.bool_]:
    found = np.zeros(num_latents, bool)
    texts = pa.array(list(words.values()), pa.string())
    ids = np.array(list(words), np.int64)[pattern.found_in(texts)]
    found[ids[ids < num_latents]] = True
    return found


def _in_examples(pattern: Pattern, index: Index, num_latents: int) -> InExamples:
    (text, start, end), not_searched, notes = _matches(pattern, index)
    first_token, last_token = _tokens(pattern, index, text, start, end)
    latents = index.example_latents
    is_on = np.zeros(int(index.text_starts[-1]) + 1, bool)
    is_in = np.zeros(index.num_texts, bool)
    is_in[text] = True
    # Examples of texts with a match, the strongest first where they write `best`.
    rows = np.flatnonzero(np.repeat(is_in, np.diff(index.example_starts.astype(np.int64))))
    row_text = np.searchsorted(index.example_starts, rows, side="right") - 1
    best = np.full(num_latents, -1, np.int64)
    strongest = np.zeros(num_latents, np.float32)
    np.maximum.at(strongest, latents[rows], index.example_max[rows])
    is_strongest = index.example_max[rows] == strongest[latents[rows]]
    best[latents[rows[is_strongest]][::-1]] = np.searchsorted(text, row_text[is_strongest])[::-1]
    activation = np.zeros(num_latents, np.float32)
    fired = np.zeros(len(latents), bool)
    for low, high in _runs(index, first_token, last_token):
        match, token = _spread(first_token[low:high], last_token[low:high])
        is_on[token] = True
        entries_of, entry = _spread(index.entry_starts[token], index.entry_starts[token + 1].astype(np.int64) - 1)
        example, value = index.entry_examples[entry], index.entry_values[entry]
        fired[example] = True
        owner = latents[example]
        before = activation.copy()
        np.maximum.at(activation, owner, value)
        is_best = (value == activation[owner]) & (value > before[owner])
        best[owner[is_best][::-1]] = (low + match[entries_of[is_best]])[::-1]
    counted = {"minlength": num_latents}
    return InExamples(
        text,
        start,
        end,
        first_token,
        last_token,
        np.bincount(latents, **counted),
        np.bincount(latents[rows], **counted),
        np.bincount(latents[fired], **counted),
        np.bincount(latents[is_on[index.example_peaks]], **counted),
        activation,
        best,
        int(np.count_nonzero(is_in)),
        not_searched,
        notes,
    )


def _matches(pattern: Pattern, index: Index) -> tuple[Matches, str, tuple[str, ...]]:
    """All matches; which texts were not searched, and why; and notes about matches that were left out."""
    texts = index.folded if pattern.is_folded else index.raw
    ends_at = time.monotonic() + MAX_SECONDS
    nothing = np.empty(0, np.int64)
    parts: list[Matches] = [(nothing, nothing, nothing)]
    count = num_empty = num_searched = 0
    while num_searched < index.num_texts and count < MAX_MATCHES and time.monotonic() < ends_at:
        spans = pattern.spans(texts.slice(num_searched, _TEXTS_AT_ONCE))
        parts.append((spans.text + num_searched, spans.start, spans.end))
        count += len(spans.start)
        num_empty += spans.num_empty
        num_searched = min(num_searched + _TEXTS_AT_ONCE, index.num_texts)
    text, start, end = (np.concatenate(each) for each in zip(*parts, strict=True))
    not_searched = ""
    if num_searched < index.num_texts:
        why = f"they have {count} matches" if count >= MAX_MATCHES else f"that took {MAX_SECONDS:g} s"
        not_searched = f"only {num_searched} of {index.num_texts} texts were searched: {why}; ask for something rarer"
    notes = (f"{num_empty} matches of no character are left out",) if num_empty else ()
    return (text, start, end), not_searched, notes


def _tokens(
    pattern: Pattern, index: Index, text: NDArray[np.int64], start: NDArray[np.int64], end: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first and the last token of each match. Tokens without text of their own belong to the one before."""
    ends = index.folded_ends if pattern.is_folded else index.raw_ends
    first_of_text = index.text_starts[text].astype(np.int64)
    base = np.where(first_of_text > 0, ends[np.maximum(first_of_text, 1) - 1], 0).astype(np.int64)
    limit = index.text_starts[text + 1].astype(np.int64) - 1
    behind = (base + end).astype(np.uint32)
    first = np.searchsorted(ends, (base + start).astype(np.uint32), side="right")
    last = np.maximum(np.searchsorted(ends, behind), np.searchsorted(ends, behind, side="right") - 1)
    return first, np.minimum(last, limit)


def _runs(index: Index, first_token: NDArray[np.int64], last_token: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Ranges of matches with at most _ENTRIES_AT_ONCE entries and tokens each, or of one match."""
    entries = index.entry_starts[last_token + 1].astype(np.int64) - index.entry_starts[first_token]
    work = np.cumsum(entries + last_token - first_token + 1)
    ranges: list[tuple[int, int]] = []
    low = 0
    while low < len(work):
        done = int(work[low - 1]) if low else 0
        high = max(low + 1, int(np.searchsorted(work, done + _ENTRIES_AT_ONCE, side="right")))
        ranges.append((low, high))
        low = high
    return ranges


def _spread(first: NDArray[Any], last: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All numbers of ranges that include both ends, and for each the range that it is of."""
    first = first.astype(np.int64)
    sizes = np.maximum(last.astype(np.int64) - first + 1, 0)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes, sizes) + first[owner]
