"""What a latent's decoder rows say on their own: norms, class, neighbours, logit lens (math §6).

Knows nothing about activations, except that dead latents are told to it.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from crosscope_proto.artefacts import LatentClass
from crosscope_proto.roles import BASE, CHAT
from crosscope_worker.crosscoder import Crosscoder, relative_norms

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NUM_NEIGHBOURS = 10
NUM_LOGIT_TOKENS = 8
CHUNK_BYTES = 128 << 20
"""Memory for a chunk of inner products, cosines or logits."""
CHAT_ONLY_ABOVE, BASE_ONLY_BELOW, SHARED_WITHIN = 0.9, 0.1, 0.1
DIFFERENCE_RATIO = 0.3
"""In a dictionary of differences a latent is chat's own if beta_act of base is less than this much of chat's."""


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
    num_latents = len(rows)
    count = min(count, num_latents - 1)
    ids, cosines = [], []
    for piece in torch.arange(num_latents, device=rows.device).split(max(1, CHUNK_BYTES // (4 * num_latents))):
        products = rows[piece] @ rows.T
        products[torch.arange(len(piece), device=rows.device), piece] = -torch.inf
        top = products.topk(count, dim=1)
        ids.append(top.indices)
        cosines.append(top.values)
    return torch.cat(ids), torch.cat(cosines)


@torch.no_grad()
def logit_lens(rows: Tensor, model: "PreTrainedModel", count: int = NUM_LOGIT_TOKENS) -> Tensor:
    """Token ids whose logits a decoder row raises most, `[latent, count]`, most first.

    `rows: [latent, d_model]`. A row goes through the model's final norm, where the model has one under a usual name,
    and the unembedding; biases are left out. What the norm of a residual stream divides by, and soft-capping, would
    keep the order.
    """
    unembedding = cast("nn.Linear", model.get_output_embeddings()).weight
    weights = unembedding.to(torch.float32).T
    norm = final_norm(model)
    pieces = rows.split(max(1, CHUNK_BYTES // (4 * len(unembedding))))
    logits = (through(norm, piece.to(unembedding.device, torch.float32)) @ weights for piece in pieces)
    return torch.cat([piece.topk(min(count, len(unembedding)), dim=1).indices for piece in logits])


def final_norm(model: "PreTrainedModel") -> nn.Module:
    """A float32 copy of the norm in front of the unembedding; the identity if none has a usual name."""
    norms = (getattr(model.base_model, name, None) for name in ("norm", "final_layernorm", "final_layer_norm", "ln_f"))
    norm = next((each for each in norms if isinstance(each, nn.Module)), None)
    return nn.Identity() if norm is None else deepcopy(norm).float()


def through(norm: nn.Module, rows: Tensor) -> Tensor:
    """What a norm makes of `rows: [row, d_model]`, without its bias; each row up to a positive factor.

    A LayerNorm centres the row and multiplies it by the gain, an RMSNorm multiplies only. The norm itself is asked, for
    some store the gain (Llama) and others the gain less one (Gemma).
    """
    return norm(rows) - norm(torch.zeros_like(rows[:1]))
