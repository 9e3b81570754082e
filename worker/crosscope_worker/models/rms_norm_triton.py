"""The root-mean-square norm of transformers' decoders as a Triton kernel for CUDA: one launch for eight.

Squares are summed in float32, whatever the operands are. Does not know models, or when to take the kernel:
`fused_norms` decides. Needs the package `triton`, which most modules of the worker do not.
"""

# Without Triton (torch's CPU builds) its imports are missing; with it, what `triton.jit` adds to a function is untyped.
# pyright: reportMissingImports=false, reportIndexIssue=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportMissingParameterType=false

import torch
import triton
import triton.language as tl
from torch import Tensor

WIDEST = 1 << 14
"""Numbers of the widest row that a program holds."""


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float, rounds_first: bool) -> Tensor:
    """`x / sqrt(mean(x²) + eps) · (weight + offset)` over the last dimension, in the data type of `x: [..., width]`.

    weight: [width]. `rounds_first`: what is divided is rounded to that type before the product.
    """
    width = x.shape[-1]
    rows = x.reshape(-1, width).contiguous()
    out = torch.empty_like(rows)
    if out.numel():
        tile = triton.next_power_of_2(width)
        with torch.cuda.device_of(rows):  # Triton launches on the current device, whatever the tensors' own is.
            _rms_norm[(len(rows),)](
                *(rows, weight.contiguous(), out, width, eps, offset),
                ROUNDS_FIRST=rounds_first,
                TILE=tile,
                num_warps=max(1, min(8, tile // 256)),
                enable_fp_fusion=True,
            )
    return out.view(x.shape)


@triton.jit
def _rms_norm(x, weight, out, width, eps, offset, ROUNDS_FIRST: tl.constexpr, TILE: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * width
    columns = tl.arange(0, TILE)
    inside = columns < width
    values = tl.load(x + start + columns, mask=inside, other=0.0).to(tl.float32)
    factors = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32) + offset
    scaled = values * tl.rsqrt(tl.sum(values * values, axis=0) / width + eps)
    if ROUNDS_FIRST:
        scaled = scaled.to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + start + columns, (scaled * factors).to(out.dtype.element_ty), mask=inside)
