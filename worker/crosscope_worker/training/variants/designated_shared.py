"""Designated shared latents: one decoder row for both models, and a reduced penalty (math §2)."""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from crosscope_proto import dictionaries
from crosscope_proto.artefacts import LatentPart
from crosscope_proto.roles import BASE
from crosscope_worker.training.variants.penalised import Penalised


class DesignatedShared(Penalised[dictionaries.DesignatedShared]):
    """The first `num_shared` latents are shared by design."""

    equal_widths: ClassVar[bool] = True
    changes_gradients: ClassVar[bool] = True

    def penalties(self, like: Tensor) -> Tensor:
        """See Penalised."""
        weights = super().penalties(like)
        weights[self._shared()] *= self.spec.shared_penalty
        return weights

    def constrain(self, encoder: Tensor, decoder: Tensor) -> None:
        """See Variant: each half of a tied row gets the gradient of the one tied row."""
        rows, split = decoder[self._shared()], self.widths[BASE]
        rows.copy_((rows[:, :split] + rows[:, split:]).repeat(1, 2))

    def _shared(self) -> slice:
        """The rows of the held latents that are shared."""
        return self.held.rows(slice(0, self.spec.num_shared))

    def apart(self) -> Sequence[tuple[LatentPart, int]]:
        """See Variant."""
        return ((LatentPart.DESIGNATED, self.spec.num_shared),)


VARIANT = DesignatedShared
