"""What a latent's decoder rows say on their own: norms, class, neighbours, logit lens (math §6).

Knows nothing about activations, except that dead latents are told to it.
"""

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
"""Memory for a chunk of cosines or logits."""
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
        cosine = torch.linalg.vecdot(base.double(), chat.double()) / (norm_base.double() * norm_chat.double())
    else:
        cosine = torch.full_like(norm_base, torch.nan)
    return Geometry(norm_base, norm_chat, relative_norms(crosscoder), cosine)


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


def logit_lens(rows: Tensor, model: "PreTrainedModel", count: int = NUM_LOGIT_TOKENS) -> Tensor:
    """Token ids whose logits a decoder row raises most, `[latent, count]`, most first.

    `rows: [latent, d_model]`. The row is multiplied by the gain of the model's final norm, where the model has one
    under a usual name, and by the unembedding. Centring, the norm's division by the residual's size and soft-capping
    leave out: the first is none for RMSNorm, the others keep the order.
    """
    unembedding = cast("nn.Linear", model.get_output_embeddings()).weight.detach()
    gain = final_norm_gain(model)
    directions = rows.to(unembedding.device, torch.float32)
    directions = directions if gain is None else directions * gain
    vocabulary = len(unembedding)
    pieces = directions.split(max(1, CHUNK_BYTES // (4 * vocabulary)))
    weights = unembedding.to(torch.float32).T
    return torch.cat([(piece @ weights).topk(min(count, vocabulary), dim=1).indices for piece in pieces])


def final_norm_gain(model: "PreTrainedModel") -> Tensor | None:
    """The factor that the final norm puts on each dimension, [d_model], or None if it has none.

    An RMSNorm maps the all-ones vector to its gain, whether it stores the gain (Llama) or the gain less one (Gemma).
    """
    decoder = model.base_model
    norms = (getattr(decoder, name, None) for name in ("norm", "final_layernorm", "final_layer_norm", "ln_f"))
    norm = next((each for each in norms if isinstance(each, nn.Module)), None)
    if norm is None:
        return None
    if isinstance(norm, nn.LayerNorm):
        return norm.weight.detach().float() if norm.elementwise_affine else None
    weight = next(norm.parameters(), None)
    if weight is None:
        return None
    with torch.no_grad():
        return norm(torch.ones(1, weight.shape[0], dtype=weight.dtype, device=weight.device))[0].float()
