"""Which texts repeat others: hashes of windows of tokens, and the shard in which each window first appeared (math §4).

Two windows count as equal if their 64-bit hashes are equal: among 100 million different windows, two share a hash with
a probability of about 3 in 10 000. Knows nothing about latents.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from crosscope_worker.analysis.ordering import ordered_by

WINDOW = 16
"""Number of tokens on each side of a peak by which examples are compared, and before a token by which repeats are
found."""

Hashes = NDArray[np.uint64]
_BASE = np.uint64(0x9E3779B97F4A7C15)
"""Odd, so that it has an inverse modulo 2^64."""
_INVERSE = np.uint64(pow(int(_BASE), -1, 1 << 64))


class WindowHashes:
    """Hashes of any windows of some texts: polynomial hashes modulo 2^64, from running sums.

    Memory: 24 bytes a token.
    """

    def __init__(self, texts: Sequence[NDArray[np.integer]]) -> None:
        """`texts`: token ids of each text."""
        self._lengths = np.array([len(ids) for ids in texts], dtype=np.int64)
        self._starts = np.cumsum(self._lengths) - self._lengths
        ids = np.concatenate([np.empty(0, np.int64), *texts]).astype(np.uint64)
        powers = _powers(_BASE, len(ids) + 1)
        self._sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(_mixed(ids + _BASE) * powers[:-1])])
        self._inverses = _powers(_INVERSE, len(ids) + 1)

    def around(self, text: NDArray[np.integer], position: NDArray[np.integer]) -> Hashes:
        """Hashes of the tokens up to WINDOW before and behind each position, and of how many there are on each side."""
        return self._hashes(text, position, WINDOW)

    def numbers(self) -> NDArray[np.int64]:
        """A number for each token of all texts, end to end, [token]: equal for those with the same hash of `around`."""
        text = np.repeat(np.arange(len(self._lengths)), self._lengths)
        hashes = self.around(text, np.arange(len(text)) - self._starts[text])
        return np.unique(hashes, return_inverse=True)[1].reshape(-1)

    def before(self, text: NDArray[np.integer], position: NDArray[np.integer]) -> Hashes:
        """Hashes of each token with the tokens up to WINDOW before it, and of how many there are."""
        return self._hashes(text, position, 0)

    def _hashes(self, text: NDArray[np.integer], position: NDArray[np.integer], behind: int) -> Hashes:
        text, position = text.astype(np.int64), position.astype(np.int64)
        left = np.minimum(position, WINDOW)
        right = np.minimum(self._lengths[text] - position, behind + 1)
        start = self._starts[text] + position - left
        content = (self._sums[start + left + right] - self._sums[start]) * self._inverses[start]
        return _mixed(content ^ _mixed((left * (WINDOW + 2) + right).astype(np.uint64)))


class FirstShards:
    """Remembers the shard in which each window first appeared. Memory: 10 bytes a distinct window."""

    def __init__(self) -> None:
        self._levels: list[tuple[Hashes, NDArray[np.int16]]] = []
        """Sorted arrays, each more than twice as long as the next; no hash is in two of them."""

    def __call__(self, hashes: Hashes, shard: int) -> tuple[NDArray[np.int16], NDArray[np.bool_]]:
        """The shard in which each window first appeared, now or earlier, and whether it appeared earlier.

        If `hashes` holds a window twice, the second one appeared earlier.
        """
        shards = np.full(len(hashes), shard, np.int16)
        known = np.zeros(len(hashes), bool)
        for level, level_shards in self._levels:
            at = np.minimum(np.searchsorted(level, hashes), len(level) - 1)
            found = level[at] == hashes
            shards[found], known[found] = level_shards[at[found]], True
        fresh, first = np.unique(hashes[~known], return_index=True)
        again = np.ones(int((~known).sum()), bool)
        again[first] = False
        known[~known] = again
        if len(fresh):
            self._levels.append((fresh, np.full(len(fresh), shard, np.int16)))
        while len(self._levels) > 1 and len(self._levels[-2][0]) <= 2 * len(self._levels[-1][0]):
            (one, one_shards), (other, other_shards) = self._levels.pop(), self._levels.pop()
            joined = np.concatenate([one, other])
            order = np.argsort(joined, kind="stable")
            self._levels.append((joined[order], np.concatenate([one_shards, other_shards])[order]))
        return shards, known


def distinct(
    key: NDArray[np.int64], windows: NDArray[np.int64], copies: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the first member of each (key, window), ascending, and how many more texts each stands for."""
    if len(key) == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    together = ordered_by(key, windows)
    key, windows = key[together], windows[together]
    begins = np.flatnonzero(np.concatenate([[True], (key[1:] != key[:-1]) | (windows[1:] != windows[:-1])]))
    repeats = np.add.reduceat(copies[together], begins) - 1
    first = together[begins]
    order = ordered_by(first)
    return first[order], repeats[order]


def _powers(base: np.uint64, count: int) -> Hashes:
    factors = np.full(count, base, np.uint64)
    factors[:1] = 1
    return np.cumprod(factors)


def _mixed(values: Hashes) -> Hashes:
    """A bijection of 64-bit numbers that maps near numbers far apart (splitmix64's finaliser)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
