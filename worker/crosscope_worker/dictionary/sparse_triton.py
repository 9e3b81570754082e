"""The sparse operations of math §3 as Triton kernels, for CUDA.

Rows may be float32 or bfloat16. Every sum is taken and returned in float32. Its order depends on the entries' indices
alone (no atomics), so equal inputs give equal bits. Does not know codes, autograd, or when to take a kernel: `sparse`
decides. Needs the package `triton`, which the other modules of the worker do not.
"""

# Without Triton (torch's CPU builds) its imports are missing; with it, what `triton.jit` adds to a function is untyped.
# pyright: reportMissingImports=false, reportIndexIssue=false, reportCallIssue=false, reportArgumentType=false

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE_ENTRIES = 4
"""Entries whose rows are read at once; enough reads are then under way to hide the memory's latency."""
MAX_TILE_COLUMNS = 512
"""With TILE_ENTRIES rows, 16 numbers a thread in a program of 4 warps."""


def weighted_sums(indices: Tensor, rows: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """Sums of `weights[p] · rows[indices[p]]` over the entries p of each bag; [bag, width] float32.

    `indices, weights: [entry]`, `rows: [row, width]`, `starts: [bag]` ascending. Bag b has the entries from `starts[b]`
    to the next bag's start, the last bag those to the end. A bag without entries sums to 0.
    """
    rows, num_bags, width = _rows(rows), len(starts), rows.shape[1]
    sums = torch.empty(num_bags, width, dtype=torch.float32, device=rows.device)
    if sums.numel():
        columns = _tile_columns(width)
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
                TILE_ENTRIES=TILE_ENTRIES,
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
                TILE_ENTRIES=TILE_ENTRIES,
                TILE_COLUMNS=_tile_columns(width),
                enable_fp_fusion=True,
            )
    return products


def _rows(x: Tensor) -> Tensor:
    """`x: [row, width]` with the numbers of each row side by side, as the kernels read them."""
    return x if x.stride(1) == 1 else x.contiguous()


def _tile_columns(width: int) -> int:
    """Tiles have a power of two of columns; those past the width are masked."""
    return min(triton.next_power_of_2(width), MAX_TILE_COLUMNS)


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
