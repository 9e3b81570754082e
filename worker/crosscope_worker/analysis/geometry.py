"""Facts about a latent from its decoder rows alone: norms, class, neighbours (math §6).

Knows nothing about activations, except which latents are dead.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crosscope_proto.artefacts import LatentClass
from crosscope_proto.limits import BASE_ONLY_BELOW, CHAT_ONLY_ABOVE, DIFFERENCE_RATIO, SHARED_WITHIN
from crosscope_proto.roles import BASE, CHAT
from crosscope_worker.analysis.largest import largest_products
from crosscope_worker.dictionary.crosscoder import Crosscoder, relative_norms

NUM_NEIGHBOURS = 10
CHUNK_BYTES = 128 << 20
"""Memory for a chunk of inner products."""


@dataclass(frozen=True)
class Geometry:
    """Per latent, [latent]; NaN where undefined."""

    norm_base: Tensor
    norm_chat: Tensor
    rel_norm: Tensor
    cosine: Tensor


def geometry(crosscoder: Crosscoder) -> Geometry:
    """Norms and cosines of the decoder rows. The cosine is NaN if a row is zero or the models' widths differ."""
    base, chat = (crosscoder.decoder(model) for model in (BASE, CHAT))
    norm_base, norm_chat = base.norm(dim=1), chat.norm(dim=1)
    if base.shape == chat.shape:
        cosine = inner_products(base, chat) / (norm_base.double() * norm_chat.double())
    else:
        cosine = torch.full_like(norm_base, torch.nan)
    return Geometry(norm_base, norm_chat, relative_norms(crosscoder), cosine)


def inner_products(rows: Tensor, others: Tensor) -> Tensor:
    """`<rows_j, others_j>: [latent]` in float64, from copies of CHUNK_BYTES at a time.

    `rows: [latent, d_model]`; `others` of the same shape, or `[d_model]`, one vector for all rows.
    """
    at_once = max(1, CHUNK_BYTES // (16 * max(1, rows.shape[1])))
    pieces = zip(rows.split(at_once), others.expand_as(rows).split(at_once), strict=True)
    return torch.cat([torch.linalg.vecdot(piece.double(), other.double()) for piece, other in pieces])


def classes(rel_norm: NDArray[np.floating], num_active: NDArray[np.integer]) -> NDArray[np.str_]:
    """The LatentClass of each latent by relative norm; dead where it never fired, other where the norm is undefined."""
    result = np.full(len(rel_norm), str(LatentClass.OTHER), dtype=object)
    result[np.abs(rel_norm - 0.5) < SHARED_WITHIN] = str(LatentClass.SHARED)
    result[rel_norm > CHAT_ONLY_ABOVE] = str(LatentClass.CHAT_ONLY)
    result[rel_norm < BASE_ONLY_BELOW] = str(LatentClass.BASE_ONLY)
    result[num_active == 0] = str(LatentClass.DEAD)
    return result.astype(str)


def difference_classes(beta_ratio: NDArray[np.floating], num_active: NDArray[np.integer]) -> NDArray[np.str_]:
    """The LatentClass of each latent of a dictionary of differences, by `beta_act` of base over chat's (math §2)."""
    result = np.full(len(beta_ratio), str(LatentClass.OTHER), dtype=object)
    result[np.abs(beta_ratio) < DIFFERENCE_RATIO] = str(LatentClass.CHAT_ONLY)
    result[num_active == 0] = str(LatentClass.DEAD)
    return result.astype(str)


def neighbours(W_dec: Tensor, count: int = NUM_NEIGHBOURS) -> tuple[Tensor, Tensor]:
    """The nearest latents by cosine of the concatenated decoder rows `W_dec: [latent, both]`, nearest first.

    Returns (ids [latent, neighbour], cosines [latent, neighbour]); a latent is not its own neighbour. A zero row has
    cosine 0 with everything.
    """
    rows = torch.nn.functional.normalize(W_dec, dim=1)
    return largest_products(rows, rows, count, themselves=True)
