"""Causal attention over rows of texts that lie one after the other, as a Triton kernel for CUDA. Forward only.

A program reads only the keys that a block of queries may look at: from the first one's text, or window, to the block's
end. So a row may be long at no cost. Scores, soft-capping, softmax and sums are float32 whatever the operands are, and
soft-capping is exact to float32's rounding. Does not know models, or when to take the kernel: `packed_attention`
decides. Needs the package `triton`, which most modules of the worker do not.
"""

# Without Triton (torch's CPU builds) its imports are missing; with it, what `triton.jit` adds to a function is untyped.
# pyright: reportMissingImports=false, reportIndexIssue=false, reportCallIssue=false, reportArgumentType=false

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class Tile(NamedTuple):
    """Queries and keys of a program at a time, its warps, and the tiles of keys that are under way at once."""

    queries: int
    keys: int
    warps: int
    stages: int


TILES = (Tile(128, 64, 8, 2), Tile(64, 64, 4, 2), Tile(64, 32, 4, 2), Tile(32, 32, 4, 1), Tile(16, 16, 4, 1))
"""From the largest down; a device takes the first for which a processor's shared memory has room (`tile_of`)."""


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    scale: float,
    softcap: float,
    window: int,
    tile: Tile | None = None,
) -> Tensor:
    """What each token reads: [row, pos, head, dim] in the operands' data type.

    q: [row, head, pos, dim]. k, v: [row, kv_head, pos, dim]; `head / kv_head` heads share one. positions: [row, pos]
    integers, a token's place in its own text. softcap: scores become `softcap · tanh(score / softcap)`; 0 for none.
    window: tokens that one looks at, itself among them; 0 for all before it. `tile` is for measuring.
    """
    rows, heads, pos, dim = q.shape
    out = torch.empty(rows, pos, heads, dim, dtype=q.dtype, device=q.device)
    width = max(16, triton.next_power_of_2(dim))
    tile = tile or tile_of(width, q.element_size(), shared_bytes(q.device))
    with torch.cuda.device_of(q):  # Triton launches on the current device, whatever the tensors' own is.
        _attention[(triton.cdiv(pos, tile.queries), heads, rows)](
            *(q, k, v, positions, out),
            *q.stride(),
            *k.stride(),
            *v.stride(),
            *positions.stride(),
            pos,
            scale,
            softcap or 1.0,
            window or pos,
            HEADS=heads,
            GROUP=heads // k.shape[1],
            DIM=dim,
            WIDTH=width,
            CAPPED=softcap != 0,
            QUERIES=tile.queries,
            KEYS=tile.keys,
            PRECISION="tf32x3" if q.dtype == torch.float32 else "tf32",  # three products keep float32's digits
            num_warps=tile.warps,
            num_stages=tile.stages,
            enable_fp_fusion=True,
        )
    return out


def tile_of(width: int, element_size: int, shared: int) -> Tile:
    """The largest tile whose queries, keys and values fit `shared` bytes; `width`: numbers of a head.

    float32 numbers count twice, for they are kept in two parts.
    """
    size = 2 * element_size if element_size == 4 else element_size
    for tile in TILES:
        if (tile.queries + 2 * tile.stages * tile.keys) * width * size <= shared:
            return tile
    return TILES[-1]


@functools.cache
def shared_bytes(device: torch.device) -> int:
    """Shared memory that one program may take on a device."""
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin if device.type == "cuda" else 1 << 16


@triton.jit
def _attention(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    positions: tl.tensor,
    out: tl.tensor,
    q_row: tl.tensor,
    q_head: tl.tensor,
    q_pos: tl.tensor,
    q_dim: tl.tensor,
    k_row: tl.tensor,
    k_head: tl.tensor,
    k_pos: tl.tensor,
    k_dim: tl.tensor,
    v_row: tl.tensor,
    v_head: tl.tensor,
    v_pos: tl.tensor,
    v_dim: tl.tensor,
    positions_row: tl.tensor,
    positions_pos: tl.tensor,
    num_pos: tl.tensor,
    scale: tl.tensor,
    softcap: tl.tensor,
    window: tl.tensor,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    CAPPED: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """QUERIES tokens of one head and row a program; the later ones of a row, which read most, begin first."""
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    head = tl.program_id(1)
    row = tl.program_id(2).to(tl.int64)
    query = block * QUERIES + tl.arange(0, QUERIES)
    dims = tl.arange(0, WIDTH)
    present = query < num_pos
    place = tl.load(positions + row * positions_row + query * positions_pos, mask=present, other=0).to(tl.int32)
    first = tl.maximum(query - place, query - window + 1)  # the first key that each query looks at
    q_tile = tl.load(
        q + row * q_row + head * q_head + query[:, None] * q_pos + dims[None, :] * q_dim,
        mask=present[:, None] & (dims < DIM)[None, :],
        other=0,
    )
    k_head_start = k + row * k_row + (head // GROUP) * k_head
    v_head_start = v + row * v_row + (head // GROUP) * v_head
    most = tl.full((QUERIES,), -1e30, tl.float32)  # finite, so that a tile without a visible key changes nothing
    total = tl.zeros((QUERIES,), tl.float32)
    read = tl.zeros((QUERIES, WIDTH), tl.float32)
    begin = block * QUERIES  # Its text, or window, begins before that of any later query.
    before = tl.load(positions + row * positions_row + begin * positions_pos).to(tl.int32)
    low = tl.maximum(begin - tl.minimum(before, window - 1), 0) // KEYS * KEYS
    high = tl.minimum((block + 1) * QUERIES, num_pos)
    for start in range(low, high, KEYS):
        key = start + tl.arange(0, KEYS)
        there = key < num_pos
        k_tile = tl.load(
            k_head_start + key[None, :] * k_pos + dims[:, None] * k_dim,
            mask=there[None, :] & (dims < DIM)[:, None],
            other=0,
        )
        score = tl.dot(q_tile, k_tile, input_precision=PRECISION) * scale
        if CAPPED:  # tanh(x) = 1 - 2 / (exp(2 x) + 1)
            score = softcap * (1 - 2 / (tl.exp2(score * (2 * 1.4426950408889634 / softcap)) + 1))
        seen = (key[None, :] >= first[:, None]) & (key[None, :] <= query[:, None])
        score = tl.where(seen, score * 1.4426950408889634, float("-inf"))
        larger = tl.maximum(most, tl.max(score, 1))
        weight = tl.exp2(score - larger[:, None])
        shrunk = tl.exp2(most - larger)
        total = total * shrunk + tl.sum(weight, 1)
        v_tile = tl.load(
            v_head_start + key[:, None] * v_pos + dims[None, :] * v_dim,
            mask=there[:, None] & (dims < DIM)[None, :],
            other=0,
        )
        read = read * shrunk[:, None]
        read = tl.dot(weight.to(v_tile.dtype), v_tile, read, input_precision=PRECISION)
        most = larger
    read = read / tl.where(present, total, 1.0)[:, None]
    tl.store(
        out + ((row * num_pos + query[:, None]) * HEADS + head) * DIM + dims[None, :],
        read.to(out.dtype.element_ty),
        mask=present[:, None] & (dims < DIM)[None, :],
    )
