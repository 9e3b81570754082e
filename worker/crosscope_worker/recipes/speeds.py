"""The speeds of trainings, kept for plans of similar ones; and the dtype that this machine multiplies fastest.

Neither changes a result: the recipe alone decides the dtype. Knows nothing about jobs.
"""

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import get_args, get_type_hints

import torch

from crosscope_proto.footprint import SPEEDS, Speed
from crosscope_proto.recipe import CrosscoderRecipe
from crosscope_proto.specs import TrainingSpec
from crosscope_worker.disk import write_whole

KEPT = 500
"""Number of measured speeds that a home keeps, the newest."""
WORTH = 1.3
"""How many times as fast as the recipe's dtype another dtype must be to be suggested."""
_BUDGET_S = 0.05
_MOST = 1 << 24
"""Maximum number of multiplications in the first product, which is slow on a machine without units for the dtype."""
_DTYPES: Sequence[str] = get_args(get_type_hints(TrainingSpec)["dtype"])


def remember(
    home: Path,
    recipe: CrosscoderRecipe,
    device: str,
    num_devices: int,
    curves: Sequence[tuple[int, str, float]],
    note: str = "",
) -> None:
    """Adds the last speed in a training's curves to the home's speeds, with a note; a failed write is ignored."""
    measured = [value for _, name, value in curves if name == "tokens_per_second"]
    if not measured:
        return
    spec, training = recipe.crosscoder, recipe.training
    names = recipe.pair.name, recipe.layer, spec.variant, spec.num_latents, training.batch_size, training.dtype
    speed = Speed(*names, device=device, tokens_per_second=measured[-1], note=note, num_devices=num_devices)
    entry = json.dumps(asdict(speed))
    path = home / SPEEDS
    with contextlib.suppress(OSError, UnicodeDecodeError):
        before = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        write_whole(path, "\n".join([*before[1 - KEPT :], entry]) + "\n")


def product_seconds(tokens: int, both: int, num_latents: int, dtype: str, budget_s: float = _BUDGET_S) -> float:
    """Seconds of a product `[tokens, both] · [both, num_latents]` on the CPU: the fastest of those that fit into
    `budget_s`.
    """
    kind = getattr(torch, dtype)
    x, w = torch.ones(tokens, both, dtype=kind), torch.ones(both, num_latents, dtype=kind)
    best, ends_at = float("inf"), time.monotonic() + budget_s
    torch.matmul(x, w)  # The first product chooses its kernel.
    while True:
        begun = time.perf_counter()
        torch.matmul(x, w)
        best = min(best, time.perf_counter() - begun)
        if time.monotonic() > ends_at:
            return best


def faster_dtype(recipe: CrosscoderRecipe, both: int, device: str) -> str:
    """A sentence if this CPU makes the recipe's products much faster in another dtype; measured in 0.1 s.

    CPUs with bfloat16 units (AMX, AVX-512 BF16) do; on others bfloat16 is slower than float32. Empty otherwise, and on
    a GPU.
    """
    if torch.device(device).type != "cpu":
        return ""
    latents = min(recipe.crosscoder.num_latents, 4096)
    tokens = max(1, min(recipe.training.batch_size, _MOST // (both * latents)))
    seconds = {dtype: product_seconds(tokens, both, latents, dtype) for dtype in _DTYPES}
    chosen, fastest = recipe.training.dtype, min(seconds, key=lambda dtype: seconds[dtype])
    ratio = seconds[chosen] / seconds[fastest]
    if ratio < WORTH:
        return ""
    return (
        f"products in {fastest} are {ratio:.1f} times as fast here as in {chosen}: training.dtype: {fastest} would "
        "save time, and gives other weights"
    )
