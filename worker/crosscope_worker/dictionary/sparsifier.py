"""Codes cut and scaled as at inference, by a rule that is worked out for one decoder (math §1, §2).

Knows no rule by name: keep.py turns each into one of the two kinds here. Knows no encoder.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from crosscope_proto.roles import BASE, CHAT
from crosscope_worker.dictionary.sparse import SparseCode
from crosscope_worker.dictionary.streams import Widths, model_slice

ByModel = tuple[Tensor, Tensor]
"""A tensor for base and one for chat."""


class Sparsifier(Protocol):
    """A rule worked out for one decoder. Codes are [batch, latent], as ReLU leaves them unless said otherwise."""

    def kept(self, code: Tensor) -> Tensor:
        """Which entries at least one model keeps, [batch, latent] bool."""
        ...

    def kept_by_models(self, code: Tensor) -> ByModel:
        """Which entries each model's reconstruction has, [batch, latent] bool; the code may be cut to `kept`."""
        ...

    def scaled(self, code: Tensor) -> Tensor:
        """Scaled activations, [batch, latent], of a code that is cut to `kept`."""
        ...

    def scaled_entries(self, code: SparseCode) -> Tensor:
        """Scaled activations of a sparse code's entries, [entry]."""
        ...

    def kept_by(self, code: SparseCode) -> ByModel:
        """Which entries of a sparse code each model's reconstruction has, [entry] bool."""
        ...


@dataclass(frozen=True, eq=False)
class OneCode:
    """Both models have the same entries."""

    cuts: Tensor
    """[latent]: entries `f_j` above it are kept; never negative."""
    norms: Tensor
    """[latent]: the code normalisation."""
    k: int | None = None
    """How many of a token's largest scaled activations are kept, ties to the lower latent; None: all."""

    def kept(self, code: Tensor) -> Tensor:
        """See Sparsifier."""
        kept = code > self.cuts
        return kept if self.k is None else kept & largest(code * self.norms, self.k)

    def kept_by_models(self, code: Tensor) -> ByModel:
        """See Sparsifier."""
        kept = self.kept(code)
        return kept, kept

    def scaled(self, code: Tensor) -> Tensor:
        """See Sparsifier."""
        return code * self.norms

    def scaled_entries(self, code: SparseCode) -> Tensor:
        """See Sparsifier."""
        return code.values * self.norms[code.latents]

    def kept_by(self, code: SparseCode) -> ByModel:
        """See Sparsifier."""
        both = torch.ones_like(code.values, dtype=torch.bool)
        return both, both


@dataclass(frozen=True, eq=False)
class TwoCodes:
    """Each model keeps entries of its own: a decoupled code."""

    cuts: ByModel
    """[latent] each, as `OneCode.cuts`."""
    norms: ByModel
    """[latent] each: norms of the models' decoder rows."""
    k: int | None = None
    """As `OneCode.k`, for each model by itself."""

    def kept(self, code: Tensor) -> Tensor:
        """See Sparsifier."""
        if self.k is None:
            return code > torch.minimum(*self.cuts)
        base, chat = self.kept_by_models(code)
        return base | chat

    def kept_by_models(self, code: Tensor) -> ByModel:
        """See Sparsifier."""
        base, chat = (code > cuts for cuts in self.cuts)
        if self.k is not None:
            base &= largest(code * self.norms[BASE], self.k)
            chat &= largest(code * self.norms[CHAT], self.k)
        return base, chat

    def scaled(self, code: Tensor) -> Tensor:
        """See Sparsifier."""
        (base, chat), (base_norm, chat_norm) = self.kept_by_models(code), self.norms
        return code * (base * base_norm + chat * chat_norm)

    def scaled_entries(self, code: SparseCode) -> Tensor:
        """See Sparsifier."""
        kept = zip(self.kept_by(code), self.norms, strict=True)
        base, chat = (keep * norms[code.latents] for keep, norms in kept)
        return code.values * (base + chat)

    def kept_by(self, code: SparseCode) -> ByModel:
        """See Sparsifier."""
        base, chat = (code.values > cuts[code.latents] for cuts in self.cuts)
        if self.k is not None:
            for keep, norms in zip((base, chat), self.norms, strict=True):
                keep &= _largest_entries(code, code.values * norms[code.latents], self.k)
        return base, chat


def model_norms(W_dec: Tensor, d_model: Widths) -> ByModel:
    """Norms of the models' halves of the decoder rows `W_dec: [latent, both]`, [latent] each.

    `both` may be one part alone; the other norm is then 0.
    """
    base, chat = (W_dec[:, model_slice(model, d_model)].norm(dim=1) for model in (BASE, CHAT))
    return base, chat


def code_norms(W_dec: Tensor, d_model: Widths, normalisation: str) -> Tensor:
    """The code normalisation `n: [latent]` of `W_dec: [latent, both]` (math §1); `both` may be one part alone."""
    base, chat = model_norms(W_dec, d_model)
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
    """The values [latent] above which `f n > threshold`. Never negative; infinite where the norm is 0."""
    return torch.where(norms > 0, threshold / norms, torch.inf).clamp_min_(0.0)


def largest(scaled: Tensor, k: int) -> Tensor:
    """A mask of the `k` largest positive entries of each row of `scaled: [batch, latent]`.

    Ties go to the entry further left. So a row keeps exactly `k` entries, or all its positive ones if there are fewer.
    """
    if k >= scaled.shape[1]:
        return scaled > 0
    smallest = scaled.topk(k, dim=1, sorted=False).values.amin(dim=1, keepdim=True).clamp_min_(0.0)
    return first_of(scaled, smallest, k)


def first_of(scaled: Tensor, smallest: Tensor, most: int | Tensor) -> Tensor:
    """A mask of each row's positive entries of at least `smallest: [batch, 1]`, of which `most` are kept.

    `scaled: [batch, latent]`; `most`, a number or [batch], is enough for those above `smallest`. Of the entries equal to
    it the last are left out.
    """
    keep = (scaled >= smallest) & (scaled > 0)
    crowded = (keep.sum(dim=1) > most).nonzero().squeeze(1)
    if len(crowded):
        rows, least = scaled[crowded], smallest[crowded]
        ties = rows == least
        room = (most[crowded, None] if isinstance(most, Tensor) else most) - (rows > least).sum(dim=1, keepdim=True)
        keep[crowded] = (rows > least) | (ties & (ties.cumsum(dim=1) <= room))
    return keep


def _largest_entries(code: SparseCode, scaled: Tensor, k: int) -> Tensor:
    """The same for the entries of a sparse code with scaled activations `scaled: [entry]`; returns [entry] bool."""
    # Entries come by token, then by latent, and stable sorts keep that order among equals.
    order = torch.argsort(scaled, descending=True, stable=True)
    order = order[torch.argsort(code.tokens[order], stable=True)]
    rank = torch.arange(len(order), device=order.device) - code.row_starts()[code.tokens[order]]
    keep = torch.empty_like(scaled, dtype=torch.bool)
    keep[order] = rank < k
    return keep & (scaled > 0)
