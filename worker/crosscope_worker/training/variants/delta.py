"""Delta crosscoder: a budget for latents of the difference, and a loss on its reconstruction (math §2)."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from crosscope_proto import dictionaries
from crosscope_proto.artefacts import LatentPart
from crosscope_worker.training.budget import Budget
from crosscope_worker.training.losses import mean_size
from crosscope_worker.training.variants.budgeted import Budgeted


class Delta(Budgeted[dictionaries.Delta]):
    """BatchTopK with two budgets."""

    equal_widths: ClassVar[bool] = True

    def budgets(self) -> tuple[Budget, ...]:
        """See Budgeted."""
        spec = self.spec
        return Budget(slice(0, spec.num_delta), spec.k_delta), Budget(slice(spec.num_delta, spec.num_latents), spec.k)

    def loss(self, error: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of Variant, plus `delta_weight · mean ‖e^chat - e^base‖`, squared if the loss is."""
        loss, grad = super().loss(error)
        base, chat = error.split(self.widths, dim=1)
        size, by_delta = mean_size(chat - base, self.widths[:1], squared=self.spec.squared)
        grad += torch.cat([-by_delta, by_delta], 1).mul_(self.spec.delta_weight)
        return loss + self.spec.delta_weight * size, grad

    def apart(self) -> Sequence[tuple[LatentPart, int]]:
        """See Variant."""
        return ((LatentPart.DELTA, self.spec.num_delta),)


VARIANT = Delta
