"""Dedicated feature crosscoder: some latents neither read nor write one of the models (math §2)."""

from collections.abc import Sequence

from torch import Tensor

from crosscope_proto import dictionaries
from crosscope_proto.artefacts import LatentPart
from crosscope_proto.roles import BASE
from crosscope_worker.training.variants.budgeted import Budgeted


class Dfc(Budgeted[dictionaries.Dfc]):
    """BatchTopK whose first latents belong to base alone, and the next ones to chat alone."""

    def absent(self, encoder: Tensor, decoder: Tensor) -> None:
        """See Variant."""
        split, first = self.widths[BASE], self.spec.num_base_only
        for weights in (encoder, decoder):
            weights[:first, split:] = 0
            weights[first : first + self.spec.num_chat_only, :split] = 0

    def apart(self) -> Sequence[tuple[LatentPart, int]]:
        """See Variant."""
        return (
            (LatentPart.BASE_EXCLUSIVE, self.spec.num_base_only),
            (LatentPart.CHAT_EXCLUSIVE, self.spec.num_chat_only),
        )


VARIANT = Dfc
