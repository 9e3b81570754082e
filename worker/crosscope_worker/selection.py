"""Which entries of a code are kept at inference, and how they are scaled (math §1, §2). Knows no encoder or decoder."""

from dataclasses import dataclass

import torch
from torch import Tensor

from crosscope_worker.sparse import SparseCode


@dataclass(frozen=True, eq=False)
class Selection:
    """The cuts and norms of a crosscoder, worked out once from its decoder rows."""

    cuts: Tensor
    """[latent]: entries `f_j` above it are kept, by at least one model if the code is decoupled; never negative."""
    norms: Tensor
    """[latent]: the code normalisation, of a decoupled code where both models keep an entry."""
    model_cuts: tuple[Tensor, Tensor] | None = None
    """The same as `cuts` for each model, of a decoupled code alone."""
    model_norms: tuple[Tensor, Tensor] | None = None
    """[latent] each: norms of the models' decoder rows, of a decoupled code alone."""

    def scaled(self, code: Tensor) -> Tensor:
        """Scaled activations, [batch, latent], of a raw code without what is cut."""
        if self.model_cuts is None or self.model_norms is None:
            return code * self.norms
        (base, chat), (base_norm, chat_norm) = self.model_cuts, self.model_norms
        return code * ((code > base) * base_norm + (code > chat) * chat_norm)

    def scaled_pairs(self, code: SparseCode) -> Tensor:
        """Scaled activations of a sparse code's entries, [pair]."""
        if self.model_norms is None:
            return code.values * self.norms[code.latents]
        base, chat = (
            keep * norms[code.latents] for keep, norms in zip(self.kept_by(code), self.model_norms, strict=True)
        )
        return code.values * (base + chat)

    def kept_by(self, code: SparseCode) -> tuple[Tensor, Tensor]:
        """Which entries of a sparse code each model's reconstruction has, [pair] bool."""
        if self.model_cuts is None:
            both = torch.ones_like(code.values, dtype=torch.bool)
            return both, both
        base, chat = (code.values > cuts[code.latents] for cuts in self.model_cuts)
        return base, chat


def cuts(threshold: float | Tensor, norms: Tensor) -> Tensor:
    """The `f` above which `f n > threshold`, not negative; infinite where the norm is 0; [latent]."""
    return torch.where(norms > 0, threshold / norms, torch.inf).clamp_min_(0.0)
