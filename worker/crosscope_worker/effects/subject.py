"""What is asked about: a pair of models and, for most questions, one layer of it and a crosscoder.

Knows no texts and no requests.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from crosscope_proto.specs import TokenPolicy
from crosscope_worker.dictionary.crosscoder import Crosscoder
from crosscope_worker.dictionary.sparsifier import Sparsifier
from crosscope_worker.models.norms import NormBounds
from crosscope_worker.models.pair import Pair


@dataclass(frozen=True, eq=False)
class Reading:
    """A layer of a pair, read by a crosscoder."""

    layer: int
    crosscoder: Crosscoder
    maxima: Tensor
    """[latent] float32: the largest scaled activation of each in the analysis; NaN or 0 where it never fired."""
    policy: TokenPolicy
    """The policy by which the training left tokens out."""
    bounds: NormBounds | None = None
    """The training's bounds of norms; None: no token is left out because of its norm."""

    def outlying(self, x: Tensor, positions: Tensor, d_model: tuple[int, int]) -> Tensor:
        """[token] bool: the training leaves the token out because of its norm. x: [token, both]."""
        if self.bounds is None:
            return torch.zeros(len(x), dtype=torch.bool, device=x.device)
        return self.bounds.outlying(x, positions, d_model)

    def outlying_in(self, model: int, x: Tensor, positions: Tensor) -> Tensor:
        """The same where one model's stream alone is known, x: [token, d_model]; see NormBounds.outlying_in."""
        if self.bounds is None:
            return torch.zeros(len(x), dtype=torch.bool, device=x.device)
        return self.bounds.outlying_in(model, x, positions)

    @functools.cached_property
    def sparsifier(self) -> Sparsifier:
        """The crosscoder's rule of inference; read from the whole decoder once."""
        return self.crosscoder.sparsifier()


@dataclass(frozen=True, eq=False)
class Subject:
    """A pair, and the crosscoder that reads it; None where the models alone are asked about."""

    pair: Pair
    reading: Reading | None = None
