"""Budgets: how many entries of some latents a batch's code may hold, and the choice of those entries (math §2)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crosscope_worker.dictionary.sparsifier import code_norms
from crosscope_worker.dictionary.streams import Widths, model_slice
from crosscope_worker.training.active_code import Selected, Smallest, Weights, active_code
from crosscope_worker.training.choices import batch_choice
from crosscope_worker.training.held import Held


@dataclass(frozen=True)
class Budget:
    """Latents that compete for `k · batch` entries of a batch's code."""

    latents: slice
    """Of all latents."""
    k: int
    model: int | None = None
    """The only model that the entries decode to, in a decoupled code; None: both."""

    def columns(self, widths: Widths) -> slice:
        """The columns that the budget's code decodes to."""
        return slice(0, sum(widths)) if self.model is None else model_slice(self.model, widths)

    def norms(self, decoder: Tensor, widths: Widths, normalisation: str) -> Tensor:
        """The factors that scale the code of `decoder: [latent, width]` in this budget, [latent]."""
        if self.model is None:
            return code_norms(decoder, widths, normalisation)
        return decoder[:, self.columns(widths)].norm(dim=1)


def largest_of_batch(
    pre: Tensor,
    weights: Weights,
    budgets: Sequence[Budget],
    widths: Widths,
    normalisation: str,
    floors: Sequence[float],
    dtype: torch.dtype,
    held: Held,
) -> tuple[list[Selected], tuple[Smallest, ...]]:
    """The largest scaled entries of `relu(pre + b_enc)` in each budget, and the smallest kept value of each.

    `pre` and `weights` are those of the latents held; entries compete with those of all ranks. Returns one code, or one for each model if budgets belong to one model each. `floors` are guesses at the smallest
    kept values; products with the code are made in `dtype`.
    """
    kept, smallest = [], []
    for budget, floor in zip(budgets, floors or (0.0,) * len(budgets), strict=True):
        norms = budget.norms(weights.decoder, widths, normalisation)
        found = batch_choice(pre, weights.b_enc, norms, budget.k * len(pre), floor, budget.latents, held)
        smallest.append(Smallest(found.smallest, found.sure))
        kept.append((found.flat, budget.columns(widths), norms))
    if len(kept) > 1 and budgets[0].model is None:
        kept = [(torch.cat([flat for flat, _, _ in kept]).sort().values, *kept[0][1:])]
    codes = [Selected(active_code(pre, weights.b_enc, flat, dtype), columns, norms) for flat, columns, norms in kept]
    return codes, tuple(smallest)
