"""JumpReLU: a threshold that is learnt for each latent, and a penalty on the number of active latents (math §2)."""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from crosscope_proto import dictionaries
from crosscope_worker.dictionary.keep import AboveThresholds, Keep
from crosscope_worker.dictionary.sparse import flat_indices
from crosscope_worker.dictionary.sparsifier import cuts
from crosscope_worker.training.active_code import Selected, Smallest, Weights
from crosscope_worker.training.variants.penalised import Penalised
from crosscope_worker.training.variants.variant import Batch, Further, Reconstruction

_LOG_THRESHOLD = "log_threshold"


class JumpReLU(Penalised[dictionaries.JumpReLU]):
    """A latent is active where its scaled activation exceeds its threshold, in training and at inference.

    The logarithm of the threshold is what is learnt, so that it stays positive.
    """

    centres_bias: ClassVar[bool] = True

    def extra(self, weights: Weights) -> dict[str, Tensor]:
        """See Variant."""
        return {_LOG_THRESHOLD: torch.full_like(weights.b_enc, math.log(self.spec.initial_threshold))}

    def select(self, batch: Batch) -> tuple[list[Selected], tuple[Smallest, ...]]:
        """See Variant."""
        norms = self.norms(batch.weights.decoder)
        above = cuts(batch.extra[_LOG_THRESHOLD].exp(), norms)
        code = batch.active(above=above)
        return [Selected(code, slice(0, sum(self.widths)), norms)], ()

    def penalty(self, selected: Selected, num_tokens: int) -> None:
        """See Variant: the number of active latents has a gradient by thresholds alone, which `further` gives."""

    def further(self, batch: Batch, reconstruction: Reconstruction, gradients: Weights | None) -> Further:
        """See Variant: `mu` times the active latents of a token, and all gradients by the logarithm of the threshold.

        Both are step functions of the threshold, whose derivatives are taken as -1 / bandwidth, times the jump, at the
        entries within half a bandwidth of it (arXiv 2407.14435, §4).
        """
        ((selected, by_decoded),) = reconstruction.pieces
        threshold, price = batch.extra[_LOG_THRESHOLD].exp(), self.spec.mu / len(batch.x)
        low, high = (cuts(threshold + side * self.spec.bandwidth / 2, selected.norms) for side in (-1, 1))
        bias, rows = batch.weights.b_enc, batch.operands.decoder
        near = batch.active(flat_indices((batch.pre > low - bias) & (batch.pre < high - bias)))
        by_value = near.sums(near.products(by_decoded.to(rows.dtype), rows))
        jump = torch.where(selected.norms > 0, threshold / selected.norms, 0.0)
        by_threshold = (jump * by_value + price * near.sums((near.values > 0).to(bias.dtype))) / -self.spec.bandwidth
        num_active = (selected.code.values > 0).sum(dtype=torch.float64)
        return Further(price * num_active, {_LOG_THRESHOLD: threshold * by_threshold})

    def keep(self, thresholds: Sequence[float], weights: Weights, extra: Mapping[str, Tensor]) -> Keep:
        """See Variant."""
        return AboveThresholds(extra[_LOG_THRESHOLD].exp())


VARIANT = JumpReLU
