"""What sets the dictionaries apart in training (math §2): who competes for places in the code, what is penalised, and
which weights are tied or absent. Pure functions of the recipe; the step itself is the same for all.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from crosscope_proto.artefacts import LatentPart
from crosscope_proto.roles import BASE, CHAT
from crosscope_proto.specs import CrosscoderSpec, TrainingSpec
from crosscope_worker.dictionary.crosscoder import DIFFERENCE

Widths = tuple[int, ...]
"""Widths of the residual streams that are reconstructed: base's and chat's, or one of their difference."""


@dataclass(frozen=True)
class Budget:
    """Latents that compete for the `k · batch` places of a batch's code."""

    latents: slice
    k: int
    model: int | None = None
    """The only model that the places are for, in a decoupled code; None: both."""


def widths(spec: CrosscoderSpec, d_model: tuple[int, int]) -> Widths:
    """Widths of what the dictionary reads and reconstructs."""
    return d_model[CHAT:] if spec.variant == DIFFERENCE else d_model


def needs_equal_widths(spec: CrosscoderSpec) -> str | None:
    """What of the recipe needs models of equal width, or None."""
    if spec.variant in (DIFFERENCE, "designated_shared", "delta"):
        return f"variant {spec.variant}"
    return "cross_term" if spec.cross_term else None


def budgets(spec: CrosscoderSpec) -> tuple[Budget, ...]:
    """The budgets of a code; none where a penalty makes it sparse."""
    if spec.k is None:
        return ()
    if spec.num_delta is not None and spec.k_delta is not None:
        return Budget(slice(0, spec.num_delta), spec.k_delta), Budget(slice(spec.num_delta, spec.num_latents), spec.k)
    whole = slice(0, spec.num_latents)
    if spec.code_normalisation == "decoupled":
        return Budget(whole, spec.k, BASE), Budget(whole, spec.k, CHAT)
    return (Budget(whole, spec.k),)


def penalties(spec: CrosscoderSpec, like: Tensor) -> Tensor | None:
    """Weight of each latent's scaled activation in the loss, [latent], or None."""
    if spec.mu is None:
        return None
    weights = like.new_full((spec.num_latents,), spec.mu)
    if spec.num_shared is not None and spec.shared_penalty is not None:
        weights[: spec.num_shared] *= spec.shared_penalty
    return weights


def at_step(spec: CrosscoderSpec, training: TrainingSpec, step: int) -> CrosscoderSpec:
    """The recipe's dictionary with the k or mu of a step: mu rises linearly from nearly 0, k falls from k_start."""
    if step >= training.sparsity_warmup_steps:
        return spec
    if spec.mu is not None:
        return replace(spec, mu=(step + 1) / training.sparsity_warmup_steps * spec.mu)
    if spec.k is not None and training.k_start is not None:
        share = step / training.sparsity_warmup_steps
        return replace(spec, k=round(training.k_start + share * (spec.k - training.k_start)))
    return spec


def parts(spec: CrosscoderSpec) -> tuple[LatentPart, ...]:
    """The part of the dictionary that each latent belongs to, [latent]; none where it has no parts."""
    apart = (
        (LatentPart.DESIGNATED, spec.num_shared),
        (LatentPart.BASE_EXCLUSIVE, spec.num_base_only),
        (LatentPart.CHAT_EXCLUSIVE, spec.num_chat_only),
        (LatentPart.DELTA, spec.num_delta),
    )
    first = [part for part, count in apart for _ in range(count or 0)]
    return (*first, *[LatentPart.REST] * (spec.num_latents - len(first))) if first else ()


def constrain(spec: CrosscoderSpec, d_model: Widths, encoder: Tensor, decoder: Tensor) -> None:
    """Makes gradients respect ties and absences; `[latent, both]`, in place.

    A designated shared latent has one decoder row for both models: each half gets the gradient of that one row.
    """
    if spec.num_shared is not None:
        rows, split = decoder[: spec.num_shared], d_model[BASE]
        rows.copy_((rows[:, :split] + rows[:, split:]).repeat(1, 2))
    absent_weights(spec, d_model, encoder, decoder)


def absent_weights(spec: CrosscoderSpec, d_model: Widths, encoder: Tensor, decoder: Tensor) -> None:
    """Puts zeros where a latent of one model would read or write the other; `[latent, both]`, in place."""
    if spec.num_base_only is not None and spec.num_chat_only is not None:
        split = d_model[BASE]
        base_only = slice(0, spec.num_base_only)
        chat_only = slice(spec.num_base_only, spec.num_base_only + spec.num_chat_only)
        for weights in (encoder, decoder):
            weights[base_only, split:] = 0
            weights[chat_only, :split] = 0


def first_weights(num_latents: int, row_norm: float, d_model: Widths, seed: int) -> Tensor:
    """Random directions, [latent, both], each half of norm `row_norm`; the same for both models where widths agree."""
    generator = torch.Generator().manual_seed(seed)
    widest = torch.randn(num_latents, max(d_model), generator=generator)
    halves = [torch.nn.functional.normalize(widest[:, :width], dim=1) for width in d_model]
    return row_norm * torch.cat(halves, 1)
