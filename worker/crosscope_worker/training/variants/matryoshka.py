"""Matryoshka BatchTopK: nested prefixes of the latents each reconstruct alone (math §2)."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from crosscope_proto import dictionaries
from crosscope_proto.artefacts import LatentPart
from crosscope_worker.training.active_code import Selected
from crosscope_worker.training.variants.budgeted import Budgeted
from crosscope_worker.training.variants.variant import Batch, Reconstruction

_PARTS = [part for part in LatentPart if part.name.startswith("PREFIX_")]


class Matryoshka(Budgeted[dictionaries.Matryoshka]):
    """BatchTopK whose reconstruction loss is the sum of those of all prefixes."""

    def reconstruct(self, batch: Batch, selected: Sequence[Selected]) -> Reconstruction:
        """See Variant. Every active entry is decoded once: a prefix's error is that of the one before, less what the
        latents between them decode to.
        """
        error, loss = batch.x - batch.weights.b_dec, batch.x.new_zeros((), dtype=torch.float64)
        pieces: list[list[Selected]] = []
        grads: list[Tensor] = []
        for latents in self._between():
            pieces.append([each.narrowed(self.held.rows(latents)) for each in selected])
            for piece in pieces[-1]:
                error[:, piece.columns] -= self.ranks.sum(piece.decode(batch.operands.decoder))
            own_loss, grad = self.loss(error)
            loss += own_loss
            grads.append(grad)
        for larger, smaller in itertools.pairwise(reversed(grads)):
            smaller += larger  # a latent is in its own prefix and in all larger ones
        found = [(piece, grad) for group, grad in zip(pieces, grads, strict=True) for piece in group]
        return Reconstruction(loss, found, grads[0].sum(0), error)

    def _between(self) -> list[slice]:
        """The latents that each prefix adds."""
        return [slice(*edges) for edges in itertools.pairwise((0, *self.spec.prefixes))]

    def apart(self) -> Sequence[tuple[LatentPart, int]]:
        """See Variant: the latents that each prefix adds; a single prefix is no part."""
        added = [latents.stop - latents.start for latents in self._between()]
        return list(zip(_PARTS, added, strict=False)) if len(added) > 1 else ()


VARIANT = Matryoshka
