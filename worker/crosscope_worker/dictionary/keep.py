"""Which entries of a code are kept at inference, and how they are scaled (math §1, §2). Knows no encoder or decoder."""

from dataclasses import dataclass

import torch
from torch import Tensor

from crosscope_proto.roles import BASE
from crosscope_worker.dictionary.sparse import SparseCode


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
    token_k: int | None = None
    """Only so many of a token's largest scaled activations are kept, of a decoupled code by each model for itself; of
    equal ones those of the lower latents. None: as many as lie above the cuts."""

    def kept(self, code: Tensor) -> Tensor:
        """Which entries at least one model keeps, [batch, latent] bool, of a code after ReLU and nothing else."""
        if self.token_k is None:
            return code > self.cuts
        if self.model_cuts is None:
            return (code > self.cuts) & largest(code * self.norms, self.token_k)
        base, chat = self.kept_by_models(code)
        return base | chat

    def kept_by_models(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """Which entries of a code each model's reconstruction has, [batch, latent] bool.

        `code` may be cut to `kept` or not; the answer is the same.
        """
        if self.model_cuts is None or self.model_norms is None:
            kept = self.kept(code)
            return kept, kept
        (base, chat), (base_norm, chat_norm) = self.model_cuts, self.model_norms
        base, chat = code > base, code > chat
        if self.token_k is not None:
            base &= largest(code * base_norm, self.token_k)
            chat &= largest(code * chat_norm, self.token_k)
        return base, chat

    def scaled(self, code: Tensor) -> Tensor:
        """Scaled activations, [batch, latent], of a raw code without what is cut."""
        if self.model_norms is None:
            return code * self.norms
        (base, chat), (base_norm, chat_norm) = self.kept_by_models(code), self.model_norms
        return code * (base * base_norm + chat * chat_norm)

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
        if self.model_cuts is None or self.model_norms is None:
            both = torch.ones_like(code.values, dtype=torch.bool)
            return both, both
        base, chat = (code.values > cuts[code.latents] for cuts in self.model_cuts)
        if self.token_k is not None:
            for keep, norms in zip((base, chat), self.model_norms, strict=True):
                keep &= _largest_pairs(code, code.values * norms[code.latents], self.token_k)
        return base, chat


def code_norms(W_dec: Tensor, d_model: tuple[int, ...], normalisation: str) -> Tensor:
    """The code normalisation `n: [latent]` of `W_dec: [latent, both]` (math §1); `both` may be one part alone."""
    base, chat = W_dec[:, : d_model[BASE]].norm(dim=1), W_dec[:, d_model[BASE] :].norm(dim=1)
    match normalisation:
        case "crosscoder" | "decoupled":
            return base + chat
        case "sae":
            return torch.hypot(base, chat)
        case "mixed":
            return torch.hypot(base, chat) + 0.1 * (base + chat)
        case _:
            return torch.ones_like(base)


def cuts(threshold: float | Tensor, norms: Tensor) -> Tensor:
    """The `f` above which `f n > threshold`, not negative; infinite where the norm is 0; [latent]."""
    return torch.where(norms > 0, threshold / norms, torch.inf).clamp_min_(0.0)


def largest(scaled: Tensor, k: int) -> Tensor:
    """The `k` largest positive entries of each row of `scaled: [batch, latent]`, as a mask of its shape.

    Of equal entries the ones further left are taken, so that a row has exactly `k`, or all its positive entries.
    """
    if k >= scaled.shape[1]:
        return scaled > 0
    smallest = scaled.topk(k, dim=1, sorted=False).values.amin(dim=1, keepdim=True).clamp_min_(0.0)
    keep = (scaled >= smallest) & (scaled > 0)
    crowded = (keep.sum(dim=1) > k).nonzero().squeeze(1)
    if len(crowded):
        rows, least = scaled[crowded], smallest[crowded]
        ties = rows == least
        room = k - (rows > least).sum(dim=1, keepdim=True)
        keep[crowded] = (rows > least) | (ties & (ties.cumsum(dim=1) <= room))
    return keep


def _largest_pairs(code: SparseCode, scaled: Tensor, k: int) -> Tensor:
    """The same of a sparse code's entries, whose scaled activations are `scaled: [pair]`; [pair] bool."""
    # Pairs come by token, then by latent, and stable sorts keep that order among equals.
    order = torch.argsort(scaled, descending=True, stable=True)
    order = order[torch.argsort(code.tokens[order], stable=True)]
    rank = torch.arange(len(order), device=order.device) - code.row_starts()[code.tokens[order]]
    keep = torch.empty_like(scaled, dtype=torch.bool)
    keep[order] = rank < k
    return keep & (scaled > 0)
