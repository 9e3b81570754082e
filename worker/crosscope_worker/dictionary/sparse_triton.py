"""The sparse operations of math §3 as Triton kernels, for CUDA.

Rows may be float32 or bfloat16. Every sum is taken and returned in float32. Its order depends on the entries' indices
alone (no atomics), so equal inputs give equal bits. Does not know codes, autograd, or when to take a kernel: `sparse`
decides. Needs the package `triton`, which the other modules of the worker do not.
"""

# Without Triton (torch's CPU builds) its imports are missing; with it, what `triton.jit` adds to a function is untyped.
# pyright: reportMissingImports=false, reportIndexIssue=false, reportCallIssue=false, reportArgumentType=false

from collections.abc import Mapping
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class Tiles(NamedTuple):
    """What a program reads at once: as much as hides the memory's latency, and as little as fits its registers."""

    entries: int
    """Entries whose rows are read."""
    columns: int
    """At most so many columns of each; a power of two."""


TilesByDtype = Mapping[torch.dtype, Tiles]
# The fastest of five tiles each on an H100: 2 048 tokens of 100 entries, 73 728 latents, width 4 608.
DECODING: TilesByDtype = {torch.float32: Tiles(8, 256), torch.bfloat16: Tiles(2, 1024)}
"""For sums over the many entries of a token: 4.0 and 2.8 TB/s."""
BY_LATENT: TilesByDtype = {torch.float32: Tiles(2, 1024), torch.bfloat16: Tiles(2, 1024)}
"""For sums over the few entries of a latent: 1.9 and 2.2 TB/s; bfloat16 in tiles of (4, 512) made 0.4."""
ENTRY_PRODUCTS: TilesByDtype = {torch.float32: Tiles(8, 512), torch.bfloat16: Tiles(2, 1024)}
"""For inner products: 2.2 TB/s each."""


def weighted_sums(
    indices: Tensor, rows: Tensor, starts: Tensor, weights: Tensor, tiles: TilesByDtype, out: Tensor | None = None
) -> Tensor:
    """Sums of `weights[p] · rows[indices[p]]` over the entries p of each bag; [bag, width] float32.

    `indices, weights: [entry]`, `rows: [row, width]`, `starts: [bag]` ascending. Bag b has the entries from `starts[b]`
    to the next bag's start, the last bag those to the end. A bag without entries sums to 0. The sums are written to
    `out: [bag, width]`, contiguous float32, if it is given.
    """
    rows, num_bags, width = _rows(rows), len(starts), rows.shape[1]
    sums = torch.empty(num_bags, width, dtype=torch.float32, device=rows.device) if out is None else out
    if sums.numel():
        entries, columns = _fitting(tiles[rows.dtype], width)
        grid = (num_bags, triton.cdiv(width, columns))
        with torch.cuda.device_of(rows):  # Triton launches on the current device, whatever the tensors' own is.
            _weighted_sums[grid](
                indices.contiguous(),
                rows,
                starts.contiguous(),
                weights.contiguous(),
                sums,
                num_bags,
                len(indices),
                width,
                rows.stride(0),
                TILE_ENTRIES=entries,
                TILE_COLUMNS=columns,
                enable_fp_fusion=True,
            )
    return sums


def entry_products(starts: Tensor, latents: Tensor, tokens: Tensor, rows: Tensor) -> Tensor:
    """`<tokens[t], rows[latents[p]]>` for every entry p of every token t; [entry] float32.

    `latents: [entry]`, `tokens: [batch, width]`, `rows: [latent, width]`; `starts: [batch + 1]`: the entries of token t
    are `starts[t]` to `starts[t + 1]`.
    """
    tokens, rows, width = _rows(tokens), _rows(rows), rows.shape[1]
    products = torch.empty(len(latents), dtype=torch.float32, device=rows.device)
    if len(latents):
        entries, columns = _fitting(ENTRY_PRODUCTS[rows.dtype], width)
        with torch.cuda.device_of(rows):
            _entry_products[(len(tokens),)](
                starts.contiguous(),
                latents.contiguous(),
                tokens,
                rows,
                products,
                width,
                tokens.stride(0),
                rows.stride(0),
                TILE_ENTRIES=entries,
                TILE_COLUMNS=columns,
                enable_fp_fusion=True,
            )
    return products


def _rows(x: Tensor) -> Tensor:
    """`x: [row, width]` with the numbers of each row side by side, as the kernels read them."""
    return x if x.stride(1) == 1 else x.contiguous()


def _fitting(tiles: Tiles, width: int) -> Tiles:
    """The tiles for rows of a width: a power of two of columns, of which those past the width are masked."""
    return tiles._replace(columns=min(triton.next_power_of_2(width), tiles.columns))


# A program's number is 32 bits wide. It becomes 64 before it is multiplied, since tables have more numbers than 2^31.


@triton.jit(do_not_specialize=["num_bags", "num_entries"])
def _weighted_sums(
    indices: tl.tensor,
    rows: tl.tensor,
    starts: tl.tensor,
    weights: tl.tensor,
    sums: tl.tensor,
    num_bags: tl.tensor,
    num_entries: tl.tensor,
    width: tl.tensor,
    row_stride: tl.tensor,
    TILE_ENTRIES: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
):
    """One bag and TILE_COLUMNS columns a program."""
    bag = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * TILE_COLUMNS + tl.arange(0, TILE_COLUMNS)
    inside = columns < width
    start = tl.load(starts + bag)
    end = tl.load(starts + bag + 1, mask=bag + 1 < num_bags, other=num_entries)
    total = tl.zeros((TILE_ENTRIES, TILE_COLUMNS), tl.float32)
    for first in range(start, end, TILE_ENTRIES):
        entries = first + tl.arange(0, TILE_ENTRIES)
        present = entries < end
        index = tl.load(indices + entries, mask=present, other=0).to(tl.int64)
        weight = tl.load(weights + entries, mask=present, other=0).to(tl.float32)
        offsets = index[:, None] * row_stride + columns[None, :]
        tile = tl.load(rows + offsets, mask=present[:, None] & inside[None, :], other=0)
        total += weight[:, None] * tile.to(tl.float32)
    tl.store(sums + bag * width + columns, tl.sum(total, 0), mask=inside)


@triton.jit
def _entry_products(
    starts: tl.tensor,
    latents: tl.tensor,
    tokens: tl.tensor,
    rows: tl.tensor,
    products: tl.tensor,
    width: tl.tensor,
    token_stride: tl.tensor,
    row_stride: tl.tensor,
    TILE_ENTRIES: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
):
    """One token a program, TILE_ENTRIES of its entries at a time; the token's row stays in the nearest cache."""
    token = tl.program_id(0).to(tl.int64)
    start, end = tl.load(starts + token), tl.load(starts + token + 1)
    for first in range(start, end, TILE_ENTRIES):
        entries = first + tl.arange(0, TILE_ENTRIES)
        present = entries < end
        latent = tl.load(latents + entries, mask=present, other=0).to(tl.int64)
        total = tl.zeros((TILE_ENTRIES, TILE_COLUMNS), tl.float32)
        for left in range(0, width, TILE_COLUMNS):
            columns = left + tl.arange(0, TILE_COLUMNS)
            inside = columns < width
            x = tl.load(tokens + token * token_stride + columns, mask=inside, other=0).to(tl.float32)
            offsets = latent[:, None] * row_stride + columns[None, :]
            tile = tl.load(rows + offsets, mask=present[:, None] & inside[None, :], other=0)
            total += x[None, :] * tile.to(tl.float32)
        tl.store(products + entries, tl.sum(total, 1), mask=present)
