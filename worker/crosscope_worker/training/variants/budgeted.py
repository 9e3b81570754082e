"""Dictionaries whose code is the largest entries of a batch, within one budget or several (math §2)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from crosscope_proto.dictionaries import ChoosesK
from crosscope_proto.roles import BASE, CHAT
from crosscope_proto.specs import TrainingSpec
from crosscope_worker.dictionary.crosscoder import Crosscoder
from crosscope_worker.dictionary.keep import AboveModelThresholds, AboveThreshold, AboveThresholds, Keep
from crosscope_worker.training.active_code import Selected, Smallest, Weights
from crosscope_worker.training.budget import Budget, largest_of_batch
from crosscope_worker.training.calibration import calibrate
from crosscope_worker.training.variants.variant import Batch, Variant

AnyK = TypeVar("AnyK", bound=ChoosesK)


class Budgeted(Variant[AnyK]):
    """k entries a token on average, from all latents; in a decoupled code, for each model.

    Inference has one threshold for each budget.
    """

    centres_bias: ClassVar[bool] = True

    def budgets(self) -> tuple[Budget, ...]:
        """The budgets of a code: one for each group of latents, or one for each model."""
        whole = slice(0, self.spec.num_latents)
        if self.spec.code_normalisation == "decoupled":
            return Budget(whole, self.spec.k, BASE), Budget(whole, self.spec.k, CHAT)
        return (Budget(whole, self.spec.k),)

    def warming(self, training: TrainingSpec, step: int) -> AnyK:
        """See Variant: k falls linearly from k_start."""
        if training.k_start is None:
            return self.spec
        share = step / training.sparsity_warmup_steps
        return replace(self.spec, k=round(training.k_start + share * (self.spec.k - training.k_start)))

    def select(self, batch: Batch) -> tuple[list[Selected], tuple[Smallest, ...]]:
        """See Variant."""
        return largest_of_batch(
            batch.pre,
            batch.weights,
            self.budgets(),
            self.widths,
            self.spec.code_normalisation,
            batch.floors,
            batch.operands.x.dtype,
            self.held,
        )

    @property
    def num_thresholds(self) -> int:
        """See Variant."""
        return len(self.budgets())

    def thresholds(self, crosscoder: Crosscoder, tokens: Tensor) -> tuple[float, ...]:
        """See Variant."""
        return calibrate(crosscoder, self.budgets(), tokens)

    def keep(self, thresholds: Sequence[float], weights: Weights, extra: Mapping[str, Tensor]) -> Keep:
        """See Variant."""
        budgets, like = self.budgets(), weights.b_enc.detach()
        if len(budgets) == 1:
            return AboveThreshold(thresholds[0])
        if budgets[0].model is not None:
            return AboveModelThresholds(torch.stack([torch.full_like(like, value) for value in thresholds]))
        by_latent = torch.zeros_like(like)
        for budget, value in zip(budgets, thresholds, strict=True):
            by_latent[budget.latents] = value
        return AboveThresholds(by_latent)
