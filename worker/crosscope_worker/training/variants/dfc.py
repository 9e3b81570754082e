"""Dedicated feature crosscoder: some latents neither read nor write one of the models (math §2)."""

from collections.abc import Sequence

from crosscope_proto import dictionaries
from crosscope_proto.artefacts import LatentPart
from crosscope_proto.roles import BASE
from crosscope_worker.training.variants.budgeted import Budgeted


class Dfc(Budgeted[dictionaries.Dfc]):
    """BatchTopK whose first latents belong to base alone, and the next ones to chat alone."""

    def blocks(self) -> Sequence[tuple[slice, slice]]:
        """See Variant."""
        split, width, spec = self.widths[BASE], sum(self.widths), self.spec
        first, second = spec.num_base_only, spec.num_base_only + spec.num_chat_only
        return (
            (slice(0, first), slice(0, split)),
            (slice(first, second), slice(split, width)),
            (slice(second, spec.num_latents), slice(0, width)),
        )

    def apart(self) -> Sequence[tuple[LatentPart, int]]:
        """See Variant."""
        return (
            (LatentPart.BASE_EXCLUSIVE, self.spec.num_base_only),
            (LatentPart.CHAT_EXCLUSIVE, self.spec.num_chat_only),
        )


VARIANT = Dfc
