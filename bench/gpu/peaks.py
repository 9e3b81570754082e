"""What the card can do: products of matrices, and copies. The other sections' figures are read beside these."""

import sys
from functools import partial

import torch
from torch import Tensor

from bench.gpu.rows import Run, main


def rows(run: Run) -> None:
    """Square products, the encoder's product, and copies on the device and to and from the host."""
    side = 256 if run.dry else 8192
    run.part("peaks.square", lambda: _products(run, "square", (side, side, side)))
    sizes = run.sizes
    run.part("peaks.encoder", lambda: _products(run, "encoder", (sizes.batch, 2 * sizes.d_model, sizes.num_latents)))
    run.part("peaks.copy", lambda: _copies(run))


def _products(run: Run, name: str, shape: tuple[int, int, int]) -> None:
    """Rates of a product in float32 as IEEE and as TF32, and in bfloat16."""
    count, inner, width = shape
    left = torch.randn(count, inner, device=run.device)
    right = torch.randn(width, inner, device=run.device)
    before = torch.get_float32_matmul_precision()
    try:
        for kind, precision in (("float32", "highest"), ("tf32", "high")):
            torch.set_float32_matmul_precision(precision)
            _rate(run, f"peaks.{name}.{kind}", left, right)
    finally:
        torch.set_float32_matmul_precision(before)
    left, right = left.bfloat16(), right.bfloat16()
    _rate(run, f"peaks.{name}.bf16", left, right)
    if run.device.type == "cuda":
        _rate(run, f"peaks.{name}.bf16.float32_out", left, right, torch.float32)


def _rate(run: Run, name: str, left: Tensor, right: Tensor, out: torch.dtype | None = None) -> None:
    product = partial(torch.mm, left, right.T) if out is None else partial(torch.mm, left, right.T, out_dtype=out)
    took = run.timed(product, budget_s=2)
    operations = 2 * left.shape[0] * left.shape[1] * right.shape[0]
    run.row(name, operations / took.median / 1e9, "TFLOP/s", ms=took.median, **took.detail())


def _copies(run: Run) -> None:
    """Bytes read and written on the device, and bytes moved to and from pageable and pinned memory of the host."""
    source = torch.ones((1 << 20) if run.dry else (1 << 30), device=run.device)
    target = torch.empty_like(source)
    _bandwidth(run, "peaks.copy.device", target, source, times=2)
    part = (1 << 18) if run.dry else (1 << 26)
    kinds = {"pageable": torch.empty(part)}
    if run.device.type == "cuda":
        kinds["pinned"] = torch.empty(part, pin_memory=True)
    for kind, host in kinds.items():
        _bandwidth(run, f"peaks.copy.from_{kind}", target[:part], host)
        _bandwidth(run, f"peaks.copy.to_{kind}", host, target[:part])


def _bandwidth(run: Run, name: str, target: Tensor, source: Tensor, times: int = 1) -> None:
    took = run.timed(lambda: target.copy_(source), rounds=8, warm_up=2, budget_s=1.5)
    run.row(name, times * source.nbytes / took.median / 1e6, "GB/s", ms=took.median, **took.detail())


if __name__ == "__main__":
    sys.exit(main("peaks", rows))
