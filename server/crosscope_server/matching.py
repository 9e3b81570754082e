"""For each living latent of one crosscoder the nearest one of another, by cosine of decoder rows (math §7, §13).

Plain numpy, and blocking. Knows nothing about files and messages.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_COSINE = 0.7
"""Two latents match if each is the other's nearest, and the cosine is at least this."""
_CHUNK_BYTES = 64 << 20
"""Memory for a chunk of cosines."""

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Dictionary:
    """The decoder rows of a crosscoder."""

    rows: Floats
    """[latent, both], base's part first"""
    d_model: tuple[int, int]
    living: Flags
    """[latent] whether it fired in the analysis"""
    is_difference: bool
    """Whether it reads chat less base; its base rows are zeros."""
    input_scale: tuple[float, float]
    """Factors on the activations of base and chat before encoding."""

    def differences(self) -> Floats:
        """[latent, d_model]: chat's row less base's, in the models' own scale."""
        base, chat = np.split(self.rows, [self.d_model[0]], axis=1)
        return (chat / self.input_scale[1] - base / self.input_scale[0]).astype(np.float32)

    def rows_for(self, other: "Dictionary") -> Floats:
        """[latent, both]: its rows in the space in which the other one was trained."""
        ratios = np.divide(other.input_scale, self.input_scale).astype(np.float32)
        return self.rows * np.repeat(ratios, self.d_model)


@dataclass(frozen=True, eq=False)
class Side:
    """The nearest latents for the living latents of one crosscoder; arrays are [living]."""

    latents: Ints
    """Ids, ascending."""
    nearest: Ints
    """Ids in the other crosscoder; of equally near ones the lowest."""
    cosines: Floats
    mutual: Flags
    """Whether it is also the nearest of its nearest."""

    @property
    def matched(self) -> Flags:
        """Whether it is mutually nearest with a cosine of at least MIN_COSINE."""
        return self.mutual & (self.cosines >= MIN_COSINE)


def match(one: Dictionary, other: Dictionary) -> tuple[Side, Side]:
    """The nearest latents in both directions, compared in the space in which `one` was trained.

    If only one is a dictionary of differences, the rows of the other count as chat's less base's. Both must have a
    living latent, and the same widths.
    """
    if one.is_difference != other.is_difference:
        sides = [one.differences(), other.differences()]
    else:
        sides = [one.rows, other.rows_for(one)]
    ids = [np.flatnonzero(dictionary.living) for dictionary in (one, other)]
    a, b = (_unit(rows[living]) for rows, living in zip(sides, ids, strict=True))
    nearest, cosines = np.empty(len(a), np.int64), np.empty(len(a), np.float32)
    back, back_cosines = np.zeros(len(b), np.int64), np.full(len(b), -np.inf, np.float32)
    num_rows = max(1, _CHUNK_BYTES // (4 * len(b)))
    for start in range(0, len(a), num_rows):
        products = a[start : start + num_rows] @ b.T
        piece = slice(start, start + len(products))
        nearest[piece], cosines[piece] = products.argmax(axis=1), products.max(axis=1)
        best = products.max(axis=0)
        better = best > back_cosines
        back[better] = products[:, better].argmax(axis=0) + start
        back_cosines[better] = best[better]
    mutual = back[nearest] == np.arange(len(a))
    back_mutual = nearest[back] == np.arange(len(b))
    return (
        Side(ids[0], ids[1][nearest], cosines, mutual),
        Side(ids[1], ids[0][back], back_cosines, back_mutual),
    )


def _unit(rows: Floats) -> Floats:
    """Rows of length one; a row of zeros stays."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(norms > 0, norms, 1)).astype(np.float32, copy=False)
