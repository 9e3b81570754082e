"""Dictionaries whose code is made sparse by a penalty on scaled activations (math §2)."""

from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from crosscope_proto import dictionaries
from crosscope_proto.specs import TrainingSpec
from crosscope_worker.training.active_code import Selected
from crosscope_worker.training.variants.variant import Penalty, Variant

AnyMu = TypeVar("AnyMu", bound=dictionaries.Penalised)


class Penalised(Variant[AnyMu]):
    """`mu · sum_j f_j n_j`; every positive entry is active."""

    def warming(self, training: TrainingSpec, step: int) -> AnyMu:
        """See Variant: mu rises linearly from nearly 0."""
        return replace(self.spec, mu=(step + 1) / training.sparsity_warmup_steps * self.spec.mu)

    def penalties(self, like: Tensor) -> Tensor:
        """Weight of each held latent's scaled activation in the loss, [latent held]."""
        return like.new_full((len(self.held),), self.spec.mu)

    def penalty(self, selected: Selected, num_tokens: int) -> Penalty | None:
        """See Variant."""
        weights = self.penalties(selected.norms)[selected.latents] / num_tokens
        code, norms = selected.code, selected.norms
        totals = weights * code.sums(code.values)
        return Penalty((totals * norms).sum(dtype=torch.float64), code.spread(weights * norms), totals)
