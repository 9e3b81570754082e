"""The largest inner products of vectors with many others: which, and how large; in pieces. Knows no latents."""

import torch
from torch import Tensor

from crosscope_worker.analysis.block import scratch_bytes
from crosscope_worker.dictionary.sparse import SparseCode, entry_products

CHUNK_BYTES = 128 << 20
"""Memory for a piece of the products on a CPU."""
GROUP = 64
"""Products whose largest is found before the largest groups are searched."""
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
        best, values = _largest(dense, found)
        del dense  # before the next piece's
        if is_rounded:
            best, values = _ordered(piece, others, best, count)
        ids.append(best)
        products.append(values)
    if not ids:
        return rows.new_zeros((0, count), dtype=torch.int64), rows.new_zeros((0, count))
    return torch.cat(ids), torch.cat(products)


def _largest(dense: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The places and values of the `count` largest of each row of `dense: [row, column]`, largest first, [row, count].

    They lie in the `count` groups of columns with the largest maxima, or in what is left over behind the groups. One
    pass over a wide row finds these maxima; a selection among all columns takes several.
    """
    num_groups = dense.shape[1] // GROUP
    if num_groups < 4 * count:
        top = dense.topk(count, dim=1)
        return top.indices, top.values
    grouped = dense[:, : num_groups * GROUP].view(len(dense), num_groups, GROUP)
    groups = grouped.amax(dim=2).topk(count, dim=1).indices
    columns = (GROUP * groups).unsqueeze(2) + torch.arange(GROUP, device=dense.device)
    behind = torch.arange(num_groups * GROUP, dense.shape[1], device=dense.device).expand(len(dense), -1)
    columns = torch.cat([columns.flatten(1), behind], dim=1)
    top = dense.gather(1, columns).topk(count, dim=1)
    return columns.gather(1, top.indices), top.values


def _ordered(rows: Tensor, others: Tensor, ids: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` of `ids: [row, candidate]` with the largest exact products, and these."""
    tokens = torch.arange(len(rows), device=rows.device).repeat_interleave(ids.shape[1])
    code = SparseCode(tokens, ids.reshape(-1), torch.ones(ids.numel(), device=rows.device), len(rows))
    exact = entry_products(code, rows, others).view(ids.shape)
    values, order = exact.sort(dim=1, descending=True, stable=True)
    return ids.gather(1, order[:, :count]), values[:, :count]
