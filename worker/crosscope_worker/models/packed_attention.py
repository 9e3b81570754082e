"""An attention that transformers' models may take on CUDA, in which a row holds many texts and may be long at no cost.

It takes no mask: a token's position says where its text begins, and the model says by FlashAttention's own arguments
whether scores are soft-capped and how far a token looks back. So it fits the models that FlashAttention fits. Does not
know when a model should take it (`packed_rows`), nor how it is computed (`packed_attention_triton`).
"""

import importlib
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

NAME = "crosscope_packed"
"""What transformers knows it by. It has no masks under this name, so models make none."""
WIDEST_HEAD = 256
"""Numbers of the widest head whose queries, keys and values fit the memory of a processor of a GPU."""


class CannotPack(RuntimeError):
    """A model that needs more of an attention than this one has; the sentence says what."""


@torch.library.custom_op("crosscope::packed_attention", mutates_args=(), device_types="cuda")
def packed_attention(
    q: Tensor, k: Tensor, v: Tensor, positions: Tensor, scale: float, softcap: float, window: int
) -> Tensor:
    """See packed_attention_triton.attention. An operator of torch's, so that compiled layers hold it whole."""
    kernel = importlib.import_module("crosscope_worker.models.packed_attention_triton")
    return kernel.attention(q, k, v, positions, scale, softcap, window)


@packed_attention.register_fake
def _(q: Tensor, *_: object) -> Tensor:
    return torch.empty_like(q.transpose(1, 2), memory_format=torch.contiguous_format)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    position_ids: Tensor | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """Transformers' interface of an attention: what each token reads, [row, pos, head, dim], and no weights.

    query: [row, head, pos, dim]; key, value: [row, kv_head, pos, dim]; position_ids: [row, pos], or [1, pos] for all
    rows. Raises CannotPack.
    """
    if position_ids is None:
        raise CannotPack("its attention does not hear of positions")
    if attention_mask is not None or dropout or not getattr(module, "is_causal", True):
        raise CannotPack("its attention has a mask of its own, drops weights, or is not causal")
    if others.get("s_aux") is not None or others.get("position_bias") is not None:
        raise CannotPack("its attention has sinks or a bias of positions")
    if not query.shape[-1] == key.shape[-1] == value.shape[-1] <= WIDEST_HEAD or query.shape[2] != key.shape[2]:
        raise CannotPack(f"its heads have {query.shape[-1]}, {key.shape[-1]} and {value.shape[-1]} numbers")
    positions = position_ids.expand(query.shape[0], -1)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return packed_attention(query, key, value, positions, scale, softcap or 0.0, sliding_window or 0), None


def check_can_pack(model: PreTrainedModel) -> None:
    """Raises CannotPack for a model of which transformers does not say that FlashAttention can compute its attention.

    What FlashAttention is told (causal or not, scale, soft-capping, window, positions) is all that this one knows.
    """
    if not model._supports_flash_attn:  # pyright: ignore[reportPrivateUsage]
        raise CannotPack("transformers does not say that FlashAttention fits its attention")


@contextmanager
def attending_packed(model: PreTrainedModel) -> Generator[None]:
    """Lets a model take this attention; its input must then have `position_ids` and no mask."""
    AttentionInterface.register(NAME, attend)
    config = model.config.get_text_config()
    before = config._attn_implementation  # pyright: ignore[reportPrivateUsage]
    config._attn_implementation = NAME  # pyright: ignore[reportPrivateUsage]
    try:
        yield
    finally:
        config._attn_implementation = before  # pyright: ignore[reportPrivateUsage]
