"""Packed attention by Triton's kernel, against its formula in float64.

test_packed_attention.py runs this file in processes of their own: with TRITON_INTERPRET=1, which must be set before
Triton is imported, on the CPU, where Triton's interpreter takes the kernel line by line; without it on a GPU.
"""

import os
from pathlib import Path
from runpy import run_path

import pytest
import torch
from torch import Tensor

from crosscope_worker.models.packed_attention_triton import TILES, Tile, attention

formula = run_path(str(Path(__file__).with_name("packed_attention_formula.py")))["formula"]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
# The interpreter multiplies the bits of bfloat16, not its numbers.
ROUNDING = {torch.float32: 1e-5, torch.float16: 4e-3} | ({} if INTERPRETED else {torch.bfloat16: 3e-2})
SMALLEST, UNEVEN = Tile(16, 16, 4, 1), Tile(32, 16, 4, 1)


def positions_of(*rows: list[int]) -> Tensor:
    """Rows of texts of these lengths, and padding: tokens at position 0."""
    return torch.stack([torch.cat([torch.arange(length) for length in row]) for row in rows]).to(DEVICE)


POSITIONS = positions_of([1, 5, 17, 30], [53], [20, 29, 1, 1, 1, 1])
LONG = positions_of([700, 3, 300, 5, 16])


def compare(
    positions: Tensor, dim: int, dtype: torch.dtype, softcap: float, window: int, tile: Tile | None, heads: int = 4
) -> None:
    rows, pos = positions.shape
    draw = torch.Generator().manual_seed(0)
    shapes = (rows, pos, heads, dim), (rows, pos, heads // 2, dim), (rows, heads // 2, pos, dim)
    q, k, v = (torch.randn(shape, generator=draw).to(DEVICE, dtype) for shape in shapes)
    q, k = 3 * q.transpose(1, 2), 3 * k.transpose(1, 2)  # models give them so, side by side for each token
    found = attention(q, k, v, positions, dim**-0.5, softcap, window, tile)
    expected = formula(q.double(), k.double(), v.double(), positions, dim**-0.5, softcap, window)
    assert found.dtype == dtype
    assert found.shape == (rows, pos, heads, dim)
    assert float((found - expected).abs().max()) <= ROUNDING[dtype] * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize(("softcap", "window"), [(0.0, 0), (5.0, 8), (50.0, 0), (0.0, 1)])
def test_each_token_reads_its_own_text(dtype: torch.dtype, softcap: float, window: int) -> None:
    compare(POSITIONS, 16, dtype, softcap, window, SMALLEST)


@pytest.mark.parametrize(("dim", "heads", "tile"), [(8, 2, UNEVEN), (20, 6, SMALLEST), (64, 2, None)])
def test_heads_of_any_size(dim: int, heads: int, tile: Tile | None) -> None:
    compare(POSITIONS, dim, torch.float32, 5.0, 8, tile, heads)


def test_positions_for_all_rows() -> None:
    compare(POSITIONS[1:2].expand(2, -1), 16, torch.float32, 5.0, 0, SMALLEST)


@pytest.mark.skipif(INTERPRETED, reason="too much for the interpreter")
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize("window", [0, 100])
def test_the_tiles_of_a_gpu(dtype: torch.dtype, dim: int, window: int) -> None:
    compare(LONG, dim, dtype, 50.0, window, None, 8)


@pytest.mark.skipif(INTERPRETED, reason="too much for the interpreter")
@pytest.mark.parametrize("tile", TILES)
def test_every_tile_that_fits(tile: Tile) -> None:
    compare(LONG, 128, torch.bfloat16, 50.0, 100, tile, 8)
