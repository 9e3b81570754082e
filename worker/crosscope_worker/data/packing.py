"""Packs texts into forwards, and says where in the rows they lie. Knows lengths and ids, no models.

A row holds one text or several, one after the other. Each counts its own positions from 0, by which a model tells them
apart. The rest of a row is padding.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Forward:
    """Where each text of one forward lies."""

    texts: np.ndarray
    """[text] int64: index of the text."""
    rows: np.ndarray
    """[text] int64: the row that it lies in."""
    starts: np.ndarray
    """[text] int64: where in the row its first token lies."""
    shape: tuple[int, int]
    """Rows, and positions of each."""
    is_long: bool = False
    """Whether it is one long row, whose positions are always told."""

    @property
    def shares_rows(self) -> bool:
        """Whether a row holds more than one text."""
        return len(self.texts) > self.shape[0]

    def fill(self, ids: Sequence[np.ndarray]) -> tuple[Tensor, Tensor | None]:
        """Rows of `ids`, each [pos] int64 in the order of `texts`, and their positions: both [row, pos] int64.

        Padding has id 0 and position 0, so each of its tokens is a text of its own, at which nothing looks. Positions
        are None if no row is shared and none is long.
        """
        filled, positions = np.zeros((2, *self.shape), dtype=np.int64)
        for row, start, text in zip(self.rows, self.starts, ids, strict=True):
            filled[row, start : start + len(text)] = text
            positions[row, start : start + len(text)] = np.arange(len(text))
        told = self.shares_rows or self.is_long
        return torch.from_numpy(filled), torch.from_numpy(positions) if told else None


def pack(
    lengths: Sequence[int],
    tokens_per_forward: int,
    share_rows: bool,
    long_rows: bool = False,
    regimes: Sequence[int] | None = None,
) -> Iterator[Forward]:
    """Divides texts of these lengths into forwards of at most `tokens_per_forward` tokens, or a single longer text.

    Longest texts come first, so that rows of a forward have similar lengths. With `share_rows`, the longest texts that
    fit fill the rest of a row. Rows are as long as the longest text of their forward, since the cost of attention for a
    token grows with its row. With `long_rows`, where a row of `tokens_per_forward` tokens may hold many texts at no
    cost (PairActivations.packs_rows), a forward is one such row, padded at its end, or the row of a single longer text.
    Texts of different `regimes` (PairActivations.regimes; None: all of one) share no forward. Equal lengths give equal
    forwards.
    """
    sizes = np.array(lengths, dtype=np.int64)
    groups = np.zeros_like(sizes) if regimes is None else np.array(regimes, dtype=np.int64)
    for regime in np.unique(groups):
        own = np.flatnonzero(groups == regime)
        for forward in _packed(sizes[own].tolist(), tokens_per_forward, share_rows, long_rows):
            yield replace(forward, texts=own[forward.texts])


def _packed(lengths: Sequence[int], tokens_per_forward: int, share_rows: bool, long_rows: bool) -> Iterator[Forward]:
    left = sorted(range(len(lengths)), key=lambda index: (lengths[index], -index))
    sizes = [lengths[index] for index in left]
    is_long = share_rows and long_rows
    while left:
        length = max(sizes[-1], tokens_per_forward) if is_long else sizes[-1]
        placed: list[tuple[int, int, int]] = []
        ends: list[int] = []
        while left and len(ends) < max(1, tokens_per_forward // length):
            row, end = len(ends), 0
            while (fitting := bisect_right(sizes, length - end)) and (share_rows or end == 0):
                size = sizes.pop(fitting - 1)
                placed.append((left.pop(fitting - 1), row, end))
                end += size
            ends.append(end)
        texts, rows, starts = np.array(placed).T
        yield Forward(texts, rows, starts, (len(ends), length if is_long else max(ends)), is_long)
