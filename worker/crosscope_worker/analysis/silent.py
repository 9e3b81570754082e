"""The choice of silent examples: texts on which a latent does not fire, although they have the token of its peaks.

For each latent and data set the token is the most frequent one at the peaks of its top examples. Texts that have it are
looked at, at most MAX_LOOKED_AT of them, and the nearest to the strongest of these examples are kept. A token that the
analysis did not read (the token policy left it out) does not count: nobody knows whether the latent fires on it. Knows
nothing about models.
"""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from crosscope_worker.analysis.ordering import ordered_by
from crosscope_worker.analysis.repeats import WindowHashes, distinct
from crosscope_worker.analysis.store import Segments, Store

Ints = NDArray[np.int64]
MAX_LOOKED_AT = 64
"""Occurrences of the token that are looked at, at even distances in the order of the texts."""
NEAR = 8
"""Tokens on each side of the peak that are compared; nearness is the number of equal ones."""
KEYS_AT_ONCE = 1 << 14
"""Latents and data sets whose places are compared at a time, about 100 bytes a place."""
SEGMENTS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Silent:
    """Chosen silent texts, sorted by (latent, data set, rank); arrays are [example]."""

    latent: Ints
    dataset: Ints
    text: Ints
    """Index into Store.texts."""
    position: Ints
    """Place of the token of the peaks."""
    rank: Ints
    repeats: Ints
    """Number of further texts with the same tokens around it."""
    members: Ints
    """Number of silent texts that were found, equal ones counted once."""

    @classmethod
    def empty(cls) -> "Silent":
        """No texts."""
        return cls(*(np.empty(0, np.int64) for _ in fields(cls)))


@dataclass(frozen=True)
class Anchors:
    """What silent texts are compared with, one for each (latent, data set) with a top example; arrays are [key]."""

    latent: Ints
    dataset: Ints
    text: Ints
    """Text and place of the strongest top example that peaks on the most frequent token."""
    position: Ints


class Corpus:
    """All texts end to end, and the places of every token that the analysis read. Memory: 33 bytes a token."""

    def __init__(self, store: Store) -> None:
        """Reads a store's texts."""
        lengths = np.array([len(text.ids) for text in store.texts], dtype=np.int64)
        self.starts = np.cumsum(lengths) - lengths
        self.ids = np.concatenate([np.empty(0, np.int64), *(np.asarray(text.ids, np.int64) for text in store.texts)])
        self.text_of = np.repeat(np.arange(len(lengths)), lengths)
        self.num_ids = int(self.ids.max(initial=0)) + 1
        self._dataset = np.array([text.dataset for text in store.texts], dtype=np.int64)
        read = np.flatnonzero(store.was_read())
        kinds = self._dataset[self.text_of[read]] * self.num_ids + self.ids[read]
        order = ordered_by(kinds)
        self._kinds, self._places = kinds[order], read[order]

    def places(self, dataset: Ints, token: Ints) -> tuple[Ints, Ints]:
        """At most MAX_LOOKED_AT places of each token in a data set.

        Returns (key, place): the index of the pair that each place belongs to, and its index into `ids`.
        """
        kind = dataset * self.num_ids + token
        first = np.searchsorted(self._kinds, kind, side="left")
        count = np.searchsorted(self._kinds, kind, side="right") - first
        taken = np.minimum(count, MAX_LOOKED_AT)
        key = np.repeat(np.arange(len(kind)), taken)
        pick = np.arange(len(key)) - np.repeat(np.cumsum(taken) - taken, taken)
        step = (2 * pick + 1) * count[key] // (2 * np.maximum(taken[key], 1))
        return key, self._places[first[key] + step]

    def nearness(self, places: Ints, others: Ints) -> Ints:
        """Number of equal tokens among the NEAR on each side of two places, [place]; none beyond a text's end."""
        equal = np.zeros(len(places), np.int64)
        last = len(self.ids) - 1
        for offset in (*range(-NEAR, 0), *range(1, NEAR + 1)):
            one, other = np.clip(places + offset, 0, last), np.clip(others + offset, 0, last)
            inside = (self.text_of[one] == self.text_of[places]) & (self.text_of[other] == self.text_of[others])
            inside &= (one == places + offset) & (other == others + offset)
            equal += inside & (self.ids[one] == self.ids[other])
        return equal


def anchors(top: Segments, dataset: Ints, corpus: Corpus) -> Anchors:
    """The anchors of some top examples, given strongest first within their (latent, data set); `dataset: [segment]`.

    Of tokens that peak equally often, the one of the strongest example is taken.
    """
    num_datasets = int(dataset.max(initial=0)) + 1
    owner = top.latent.astype(np.int64) * num_datasets + dataset
    token = corpus.ids[corpus.starts[top.text] + top.peak]
    pairs, first, count = np.unique(owner * corpus.num_ids + token, return_index=True, return_counts=True)
    order = ordered_by(pairs // corpus.num_ids, -count, first)
    _, best = np.unique(pairs[order] // corpus.num_ids, return_index=True)
    chosen = first[order][best]
    text, position = top.text[chosen].astype(np.int64), top.peak[chosen].astype(np.int64)
    return Anchors(top.latent[chosen].astype(np.int64), dataset[chosen], text, position)


def choose_silent(found: Anchors, segments: Segments, store: Store, corpus: Corpus, count: int) -> Silent:
    """The `count` nearest silent texts of each (latent, data set); ties to the earlier text.

    Texts with equal tokens around the place count as one.
    """
    parts = [Silent.empty()]
    if count and len(found.latent):
        windows = WindowHashes([np.asarray(text.ids) for text in store.texts]).numbers()
        copies = np.array(store.copies, dtype=np.int64)
        for first in range(0, len(found.latent), KEYS_AT_ONCE):
            part = Anchors(*(array[first : first + KEYS_AT_ONCE] for array in vars(found).values()))
            parts.append(_choose(part, segments, windows, copies, corpus, count))
    return Silent(*(np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(Silent)))


def _choose(found: Anchors, segments: Segments, windows: Ints, copies: Ints, corpus: Corpus, count: int) -> Silent:
    """As `choose_silent`, for all anchors at once; `windows: [token]` as `WindowHashes.numbers` gives them."""
    anchor = corpus.starts[found.text] + found.position
    key, place = corpus.places(found.dataset, corpus.ids[anchor])
    text = corpus.text_of[place]
    quiet = ~_fires(found.latent[key], text, segments, len(copies))
    key, place, text = key[quiet], place[quiet], text[quiet]
    order = ordered_by(key, -corpus.nearness(place, anchor[key]), place)
    key, place, text = key[order], place[order], text[order]
    nearest, _ = distinct(key, text, np.ones(len(key), np.int64))
    key, place, text = key[nearest], place[nearest], text[nearest]
    position = place - corpus.starts[text]
    first, repeats = distinct(key, windows[place], copies[text])
    key = key[first]
    members = np.bincount(key, minlength=len(anchor))
    rank = np.arange(len(key)) - np.repeat(np.cumsum(members) - members, members)
    kept = rank < count
    key, first, rank, repeats = key[kept], first[kept], rank[kept], repeats[kept]
    return Silent(found.latent[key], found.dataset[key], text[first], position[first], rank, repeats, members[key])


def _fires(latent: Ints, text: Ints, segments: Segments, num_texts: int) -> NDArray[np.bool_]:
    """Whether each latent fires somewhere in each text."""
    pairs = latent * num_texts + text
    asked = np.unique(pairs)
    hit = np.zeros(len(asked), bool)
    for start in range(0, len(segments.latent) if len(asked) else 0, SEGMENTS_AT_ONCE):
        part = slice(start, start + SEGMENTS_AT_ONCE)
        ours = segments.latent[part].astype(np.int64) * num_texts + segments.text[part]
        ours = ours[(ours >= asked[0]) & (ours <= asked[-1])]
        at = np.searchsorted(asked, ours)
        hit[at[asked[at] == ours]] = True
    return hit[np.searchsorted(asked, pairs)]
