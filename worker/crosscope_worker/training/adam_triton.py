"""Adam's step on weight matrices whose gradients are not made, as Triton kernels for CUDA (math §3).

A program sums a piece of one row's gradient over the code's entries and moves the row; a pass before it gives the
gradient's norm, for clipping. Sums are taken in float32, in an order that depends on the entries' indices alone. Does
not know when to take a kernel: `adam` decides, and holds the state.
"""

# Without Triton (torch's CPU builds) its imports are missing; with it, what `triton.jit` adds to a function is untyped.
# pyright: reportMissingImports=false, reportIndexIssue=false, reportCallIssue=false, reportArgumentType=false

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from crosscope_worker.training.entry_sums import EntrySums, positions

TILE_ENTRIES = 2
"""Entries whose rows are read at once: most latents have few in a batch."""
TILE_COLUMNS = 1024
"""With one entry at a time, 3.2 ms for 73 728 rows of 4 608 columns on an H100, and 0.35 ms for their norm."""

Block = tuple[slice, slice]
"""Rows and columns in which weights exist."""


class Rates(NamedTuple):
    """Adam's numbers for one step."""

    step_size: float
    """The learning rate, divided by the correction of the first moment's start."""
    root: float
    """The square root of the correction of the second moment's start."""
    beta1: float
    beta2: float
    eps: float


class Moments(NamedTuple):
    """What a step moves beside the weights, each `[latent, width]`."""

    first: Tensor
    """Adam's average of gradients, float32."""
    second: Tensor
    """Adam's average of their squares, float32."""
    rounded: Tensor | None
    """A bfloat16 copy of the weights."""


def norm(sums: EntrySums, weights: Tensor, blocks: Sequence[Block]) -> Tensor:
    """The norm of the gradient of `weights: [latent, width]` in the blocks, a number."""
    arguments, flags = _described(sums, weights)
    found = []
    for rows, columns in blocks:
        first, left, right, grid = _grid(rows, columns, weights)
        squares = torch.empty(grid, dtype=torch.float32, device=weights.device)
        if squares.numel():
            with torch.cuda.device_of(weights):  # Triton launches on the current device, whatever the tensors' own is.
                _squares[grid](*arguments, squares, weights, first, left, right, **flags)
        found.append(squares.sum())
    return torch.stack(found).sum().sqrt()


def step(
    sums: EntrySums, weights: Tensor, moments: Moments, rates: Rates, scale: Tensor, blocks: Sequence[Block]
) -> None:
    """Moves `weights: [latent, width]` and their moments in the blocks by one step of Adam, in place.

    The gradient is divided by the number `scale`, a tensor on the weights' device.
    """
    arguments, flags = _described(sums, weights)
    copies = moments.rounded is not None
    for rows, columns in blocks:
        first, left, right, grid = _grid(rows, columns, weights)
        if grid[0] and grid[1]:
            with torch.cuda.device_of(weights):
                _move[grid](
                    *arguments,
                    weights,
                    moments.first,
                    moments.second,
                    moments.rounded if copies else weights,
                    scale,
                    first,
                    left,
                    right,
                    *rates,
                    1 - rates.beta1,
                    1 - rates.beta2,
                    COPIES=copies,
                    **flags,
                )


def _described(sums: EntrySums, weights: Tensor) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of both kernels that describe a gradient; what is not there has the weights in its place."""
    num_latents, width = weights.shape
    assert weights.is_contiguous()
    tokens = sums.tokens if sums.tokens.stride(1) == 1 else sums.tokens.contiguous()
    own = weights if sums.own is None else sums.own.float().expand(2, num_latents).contiguous()
    split = sums.parts[0] if len(sums.parts) > 1 else width
    places, rows = weights, weights
    if sums.latents is not None and sums.rows is not None:
        places, rows = positions(sums.latents, num_latents), sums.rows.contiguous()
    order = sums.order
    entries = [order.tokens, sums.values[order.order], order.starts, num_latents, len(order.tokens)]
    flags = {"HAS_OWN": sums.own is not None, "HAS_ROWS": sums.rows is not None, "enable_fp_fusion": True}
    tiles = {"TILE_ENTRIES": TILE_ENTRIES, "TILE_COLUMNS": min(triton.next_power_of_2(width), TILE_COLUMNS)}
    return [*entries, tokens, tokens.stride(0), own, split, places, rows, width], flags | tiles


def _grid(rows: slice, columns: slice, weights: Tensor) -> tuple[int, int, int, tuple[int, int]]:
    """First row, first and last column, and the grid of programs of a block."""
    first, last, _ = rows.indices(weights.shape[0])
    left, right, _ = columns.indices(weights.shape[1])
    width = min(triton.next_power_of_2(weights.shape[1]), TILE_COLUMNS)
    return first, left, right, (max(0, last - first), triton.cdiv(max(0, right - left), width))


@triton.jit
def _gradient(
    latent: tl.tensor,
    columns: tl.tensor,
    inside: tl.tensor,
    weight: tl.tensor,
    indices: tl.tensor,
    values: tl.tensor,
    starts: tl.tensor,
    num_latents: tl.tensor,
    num_entries: tl.tensor,
    tokens: tl.tensor,
    token_stride: tl.tensor,
    own: tl.tensor,
    split: tl.tensor,
    places: tl.tensor,
    rows: tl.tensor,
    width: tl.tensor,
    HAS_OWN: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    TILE_ENTRIES: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
):
    """The gradient of some columns of a latent's row, [TILE_COLUMNS] float32; 0 outside."""
    start = tl.load(starts + latent)
    end = tl.load(starts + latent + 1, mask=latent + 1 < num_latents, other=num_entries)
    total = tl.zeros((TILE_ENTRIES, TILE_COLUMNS), tl.float32)
    for at in range(start, end, TILE_ENTRIES):
        entries = at + tl.arange(0, TILE_ENTRIES)
        present = entries < end
        index = tl.load(indices + entries, mask=present, other=0).to(tl.int64)
        value = tl.load(values + entries, mask=present, other=0)
        offsets = index[:, None] * token_stride + columns[None, :]
        tile = tl.load(tokens + offsets, mask=present[:, None] & inside[None, :], other=0)
        total += value[:, None] * tile.to(tl.float32)
    gradient = tl.sum(total, 0)
    if HAS_OWN:
        factor = tl.where(columns < split, tl.load(own + latent), tl.load(own + num_latents + latent))
        gradient += factor * weight
    if HAS_ROWS:
        place = tl.load(places + latent).to(tl.int64)
        if place >= 0:
            gradient += tl.load(rows + place * width + columns, mask=inside, other=0)
    return gradient


# The first and last column are specialised: where 16 divides them, loads and stores are of 16 bytes.


@triton.jit(do_not_specialize=["num_latents", "num_entries", "split", "first"])
def _squares(
    indices: tl.tensor,
    values: tl.tensor,
    starts: tl.tensor,
    num_latents: tl.tensor,
    num_entries: tl.tensor,
    tokens: tl.tensor,
    token_stride: tl.tensor,
    own: tl.tensor,
    split: tl.tensor,
    places: tl.tensor,
    rows: tl.tensor,
    width: tl.tensor,
    squares: tl.tensor,
    weights: tl.tensor,
    first: tl.tensor,
    left: tl.tensor,
    right: tl.tensor,
    HAS_OWN: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    TILE_ENTRIES: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
):
    """The sum of squares of TILE_COLUMNS columns of one latent's gradient a program."""
    # A program's number is 32 bits wide. It becomes 64 before it is multiplied: weights have more numbers than 2^31.
    latent = tl.program_id(0).to(tl.int64) + first
    columns = left + tl.program_id(1) * TILE_COLUMNS + tl.arange(0, TILE_COLUMNS)
    inside = columns < right
    weight = tl.zeros((TILE_COLUMNS,), tl.float32)
    if HAS_OWN:
        weight = tl.load(weights + latent * width + columns, mask=inside, other=0)
    gradient = _gradient(
        latent, columns, inside, weight, indices, values, starts, num_latents, num_entries, tokens, token_stride,
        own, split, places, rows, width, HAS_OWN, HAS_ROWS, TILE_ENTRIES, TILE_COLUMNS,
    )  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    tl.store(squares + place, tl.sum(gradient * gradient, 0))


@triton.jit(do_not_specialize=["num_latents", "num_entries", "split", "first"])
def _move(
    indices: tl.tensor,
    values: tl.tensor,
    starts: tl.tensor,
    num_latents: tl.tensor,
    num_entries: tl.tensor,
    tokens: tl.tensor,
    token_stride: tl.tensor,
    own: tl.tensor,
    split: tl.tensor,
    places: tl.tensor,
    rows: tl.tensor,
    width: tl.tensor,
    weights: tl.tensor,
    first_moments: tl.tensor,
    second_moments: tl.tensor,
    rounded: tl.tensor,
    scale: tl.tensor,
    first: tl.tensor,
    left: tl.tensor,
    right: tl.tensor,
    step_size: tl.tensor,
    root: tl.tensor,
    beta1: tl.tensor,
    beta2: tl.tensor,
    eps: tl.tensor,
    share1: tl.tensor,
    share2: tl.tensor,
    COPIES: tl.constexpr,
    HAS_OWN: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    TILE_ENTRIES: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
):
    """TILE_COLUMNS columns of one latent's row a program."""
    latent = tl.program_id(0).to(tl.int64) + first
    columns = left + tl.program_id(1) * TILE_COLUMNS + tl.arange(0, TILE_COLUMNS)
    inside = columns < right
    at = latent * width + columns
    weight = tl.load(weights + at, mask=inside, other=0)
    average = tl.load(first_moments + at, mask=inside, other=0)
    variance = tl.load(second_moments + at, mask=inside, other=0)
    gradient = _gradient(
        latent, columns, inside, weight, indices, values, starts, num_latents, num_entries, tokens, token_stride,
        own, split, places, rows, width, HAS_OWN, HAS_ROWS, TILE_ENTRIES, TILE_COLUMNS,
    )  # fmt: skip
    gradient = gradient / tl.load(scale)
    average = beta1 * average + share1 * gradient
    variance = beta2 * variance + share2 * gradient * gradient
    weight -= step_size * average / (tl.sqrt(variance) / root + eps)
    tl.store(weights + at, weight, mask=inside)
    tl.store(first_moments + at, average, mask=inside)
    tl.store(second_moments + at, variance, mask=inside)
    if COPIES:
        tl.store(rounded + at, weight.to(tl.bfloat16), mask=inside)
