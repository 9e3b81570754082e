"""The largest inner products of vectors with many others: which, and how large; in pieces. Knows no latents."""

import torch
from torch import Tensor

from crosscope_worker.analysis.block import scratch_bytes
from crosscope_worker.dictionary.sparse import SparseCode, entry_products

CHUNK_BYTES = 128 << 20
"""Memory for a piece of the products on a CPU."""
_SPARE = 8
"""Further ones that are found where products are rounded to TF32, before the exact products decide."""


def largest_products(rows: Tensor, others: Tensor, count: int, *, themselves: bool = False) -> tuple[Tensor, Tensor]:
    """The ids [row, count] of the `others: [other, width]` with the largest inner products with each of `rows:
    [row, width]`, largest first, and these products; both float32.

    With `themselves`, rows and others are the same, and no row is found for itself. Where the process's products are
    rounded to TF32 (precision.py), they choose candidates alone: the products given are IEEE float32 and decide the
    order.
    """
    count = min(count, len(others) - themselves)
    is_rounded = rows.is_cuda and torch.get_float32_matmul_precision() != "highest"
    found = min(count + _SPARE * is_rounded, len(others) - themselves)
    at_once = max(1, scratch_bytes(rows.device, CHUNK_BYTES) // (4 * len(others)))
    ids, products = [], []
    for first in range(0, len(rows), at_once):
        piece = rows[first : first + at_once]
        dense = piece @ others.T
        if themselves:
            dense.diagonal(first).fill_(-torch.inf)
        top = dense.topk(found, dim=1)
        del dense  # before the next piece's
        best, values = top.indices, top.values
        if is_rounded:
            best, values = _ordered(piece, others, best, count)
        ids.append(best)
        products.append(values)
    return torch.cat(ids), torch.cat(products)


def _ordered(rows: Tensor, others: Tensor, ids: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` of `ids: [row, candidate]` with the largest exact products, and these."""
    tokens = torch.arange(len(rows), device=rows.device).repeat_interleave(ids.shape[1])
    code = SparseCode(tokens, ids.reshape(-1), torch.ones(ids.numel(), device=rows.device), len(rows))
    exact = entry_products(code, rows, others).view(ids.shape)
    values, order = exact.sort(dim=1, descending=True, stable=True)
    return ids.gather(1, order[:, :count]), values[:, :count]
