"""Packed attention as a formula of plain torch, for comparison."""

import torch
from torch import Tensor


def formula(q: Tensor, k: Tensor, v: Tensor, positions: Tensor, scale: float, softcap: float, window: int) -> Tensor:
    """See packed_attention_triton.attention; in the operands' data type."""
    k, v = (each.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for each in (k, v))
    score = q @ k.transpose(2, 3) * scale
    if softcap:
        score = softcap * torch.tanh(score / softcap)
    place = torch.arange(q.shape[2], device=q.device)
    back = place[:, None] - place[None, :]
    seen = (back >= 0) & (back <= positions[:, :, None])
    if window:
        seen &= back < window
    read = score.masked_fill(~seen[:, None], float("-inf")).softmax(-1) @ v
    return read.transpose(1, 2).contiguous()
