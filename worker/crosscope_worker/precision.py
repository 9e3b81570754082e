"""How products of float32 matrices are made on a device: as IEEE says, or rounded to TF32.

TF32 units of NVIDIA GPUs (compute capability 8.0 and newer) round operands to 10 bits of mantissa and add in float32,
several times as fast. One setting of torch holds for a whole process, so a job sets it once, around all that it
computes. Products of bfloat16 and of float64 are not touched. Knows no recipe.
"""

from collections.abc import Generator
from contextlib import contextmanager

import torch

from crosscope_proto.specs import Float32

_WORDS: dict[Float32, str] = {"ieee": "highest", "tf32": "high"}
"""Torch's word for each."""
_FIRST_WITH_TF32 = (8, 0)
"""Compute capability of the first GPUs with TF32 units."""


def float32_on(device: torch.device | str, asked: Float32 | None) -> Float32:
    """How float32 products are made on a device: as asked, tf32 where nothing is asked; ieee without TF32 units."""
    device = torch.device(device)
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < _FIRST_WITH_TF32:
        return "ieee"
    return asked or "tf32"


@contextmanager
def float32_products(how: Float32) -> Generator[None]:
    """Within it, float32 products of the whole process are made so; after it as before.

    Compiled code is compiled again for another setting, so nothing that is compiled should run on both sides of it.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(_WORDS[how])
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
