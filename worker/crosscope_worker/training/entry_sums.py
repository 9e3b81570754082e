"""Gradients of weight matrices as what they are the sum of, not yet made (math §3).

On CUDA the optimiser sums each row while it moves it (`adam`), so that a gradient as large as the weights is neither
written nor read. Knows no optimiser and no loss.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from crosscope_worker.dictionary.sparse import ByLatent
from crosscope_worker.dictionary.streams import Widths
from crosscope_worker.training.losses import add_own_rows


@dataclass
class EntrySums:
    """A gradient `[latent, width]`: sums over a code's entries, and what is added to some rows or to all."""

    order: ByLatent
    values: Tensor
    """[entry] in the code's order: each entry's factor on its token's row."""
    tokens: Tensor
    """[batch, width], in the data type in which products are made."""
    parts: Widths
    """Widths of the parts of a row."""
    own: Tensor | None = None
    """[part, latent]: times each part of the weights' own rows, added to all."""
    latents: Tensor | None = None
    """[row] int64: the rows to which `rows` are added."""
    rows: Tensor | None = None
    """[row, width]."""

    def made(self, weights: Tensor) -> Tensor:
        """The gradient of `weights: [latent, width]` as a matrix."""
        made = self.order.products(self.values, self.tokens)
        if self.own is not None:
            add_own_rows(made, weights, self.parts, self.own)
        if self.latents is not None and self.rows is not None:
            made.index_add_(0, self.latents, self.rows)
        return made


RowGradient = Tensor | EntrySums
"""The gradient of a weight matrix, [latent, width]."""


def add_rows(gradient: RowGradient, latents: Tensor, rows: Tensor, weight: float) -> None:
    """Adds `weight · rows` to the rows `latents` of a gradient, in place; to one that is not made, once only."""
    if isinstance(gradient, Tensor):
        gradient.index_add_(0, latents, rows, alpha=weight)
        return
    assert gradient.rows is None
    gradient.latents, gradient.rows = latents, rows * weight


def positions(latents: Tensor, num_latents: int) -> Tensor:
    """Where each latent stands in `latents: [row]`, [latent] int32; -1: nowhere."""
    found = torch.full((num_latents,), -1, dtype=torch.int32, device=latents.device)
    return found.index_copy_(0, latents, torch.arange(len(latents), dtype=torch.int32, device=latents.device))
