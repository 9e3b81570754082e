"""The histogram of relative norms while a dictionary is trained (math §6). Knows no loop."""

from collections.abc import Sequence

import torch
from torch import Tensor

from crosscope_proto.artefacts import REL_NORM_BINS
from crosscope_worker.dictionary.crosscoder import relative_norm


def relative_norm_bins(decoder: Tensor, widths: Sequence[int]) -> Tensor:
    """Numbers of latents in REL_NORM_BINS bins of equal width, from 0 (base only) to 1 (chat only); [bin].

    `decoder: [latent, both]` has a part for each model, of these `widths`. Latents whose rows are both zero are in no
    bin.
    """
    base, chat = (part.norm(dim=1) for part in decoder.split(list(widths), dim=1))
    found = relative_norm(base, chat)
    found = found[torch.isfinite(found)]
    return torch.bincount((found * REL_NORM_BINS).long().clamp_(0, REL_NORM_BINS - 1), minlength=REL_NORM_BINS)
