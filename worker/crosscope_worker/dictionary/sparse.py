"""Sparse codes as (token, latent, value) entries, and the few operations on them that training and analysis need.

An operation costs work for each active entry, not for each element of the dense code (math §3). On CUDA the kernels of
`sparse_triton` do it where Triton is installed, elsewhere plain torch. The reference of each is the dense formula in
its docstring, and tests/worker/dictionary compares the two. Products of bfloat16 are summed and returned in float32.
"""

import functools
import importlib
import os
import shutil
import sysconfig
import warnings
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_PIECE_BYTES = 2 << 20
"""Size of a piece of a result that is made in pieces; 1 to 8 MiB are equally fast (two CPU cores, 16 384 latents)."""


_PIECE_ENTRIES = 1 << 23
"""Entries of a batch that are looked at at once where nothing says which are large: about 180 MB."""


_MOST_ELEMENTS = 1 << 30
"""Elements of a mask that are looked at at once on a GPU: some of its kernels count in 32 bits, and 2 048 tokens of a
million latents are nearly 2^31."""


class SparseCode(NamedTuple):
    """The non-zero entries of a code `f: [batch, latent]`, ordered by token, then by latent."""

    tokens: Tensor
    """[entry] int64."""
    latents: Tensor
    """[entry] int64."""
    values: Tensor
    """[entry] float32."""
    num_tokens: int

    def dense(self, num_latents: int) -> Tensor:
        """The same code as `[batch, latent]`."""
        code = self.values.new_zeros(self.num_tokens, num_latents)
        code[self.tokens, self.latents] = self.values
        return code

    def row_starts(self) -> Tensor:
        """[batch + 1] int64: entries of token t are `row_starts[t]` to `row_starts[t + 1]`."""
        return _starts(self.tokens, self.num_tokens + 1)


def _starts(ascending: Tensor, count: int) -> Tensor:
    """Where each number from 0 to `count - 1` begins in `ascending: [entry]`, [count]; no host waits for it."""
    return torch.searchsorted(ascending, torch.arange(count, device=ascending.device))


def sparse_code(flat: Tensor, code: Tensor) -> SparseCode:
    """The entries of `code: [batch, latent]` at ascending indices `flat: [entry]` into the flattened code."""
    tokens = torch.div(flat, code.shape[1], rounding_mode="floor")
    return SparseCode(tokens, flat - tokens * code.shape[1], code.reshape(-1)[flat], code.shape[0])


def sparse_relu(flat: Tensor, pre: Tensor, bias: Tensor) -> SparseCode:
    """The entries of `relu(pre + bias)`, `pre: [batch, latent]`, at flat indices where it is positive."""
    code = sparse_code(flat, pre)
    return code._replace(values=code.values + bias[code.latents])


def flat_indices(keep: Tensor) -> Tensor:
    """Ascending indices, into the flattened mask, at which `keep` (any shape) is true."""
    if _is_on_cpu(keep):  # several times faster than torch's own on sparse masks
        return torch.from_numpy(np.flatnonzero(keep.numpy()))
    return _nonzero(keep.reshape(-1))


def _is_on_cpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


def _nonzero(flat: Tensor, most: int = _MOST_ELEMENTS) -> Tensor:
    """Ascending indices at which `flat: [element]` is true, in pieces of `most` elements."""
    pieces = [piece.nonzero().squeeze(1) for piece in flat.split(most)]
    if len(pieces) == 1:
        return pieces[0]
    return torch.cat([piece + index * most for index, piece in enumerate(pieces)])


def decode_entries(code: SparseCode, rows: Tensor) -> Tensor:
    """`f @ rows` for `rows: [latent, width]`; returns [batch, width]."""
    starts = code.row_starts()[:-1]
    if kernels := kernels_for(rows, code.values):
        return kernels.weighted_sums(code.latents, rows, starts, code.values, kernels.DECODING)
    rows = _summable(rows)
    return _bags(code.latents, rows, starts, code.values.to(rows.dtype))


def bag_sums(indices: Tensor, rows: Tensor, starts: Tensor, values: Tensor) -> Tensor:
    """Sums of `values[i] * rows[indices[i]]` from each of the ascending `starts` to the next, [start, width].

    `indices, values: [entry]`, `rows: [row, width]`.
    """
    if kernels := kernels_for(rows, values):
        return kernels.weighted_sums(indices, rows, starts, values, kernels.BY_LATENT)
    rows = _summable(rows)
    return _bags(indices, rows, starts, values.to(rows.dtype))


def _bags(indices: Tensor, rows: Tensor, starts: Tensor, values: Tensor) -> Tensor:
    """Sums of `values[i] * rows[indices[i]]` from each of `starts` to the next, [start, width]."""
    return torch.nn.functional.embedding_bag(indices, rows, starts, mode="sum", per_sample_weights=values)


def entry_products(code: SparseCode, tokens: Tensor, rows: Tensor) -> Tensor:
    """`(tokens @ rows.T)[t, j]` at every active entry; `tokens: [batch, width]`, `rows: [latent, width]`; [entry]."""
    starts = code.row_starts()
    if kernels := kernels_for(tokens, rows):
        return kernels.entry_products(starts, code.latents, tokens, rows)
    tokens, rows = _summable(tokens), _summable(rows)
    with warnings.catch_warnings():
        # The warning says that sparse CSR tensors are in beta; the tests compare every result with the dense one.
        warnings.filterwarnings("ignore", "Sparse CSR tensor support", UserWarning)
        pattern = torch.sparse_csr_tensor(
            starts,
            code.latents,
            torch.zeros_like(code.values, dtype=tokens.dtype),
            (code.num_tokens, len(rows)),
            check_invariants=False,
        )
    return torch.sparse.sampled_addmm(pattern, tokens, rows.T, beta=0.0).values()


class ByLatent(NamedTuple):
    """The entries of a code ordered by latent, for products that end in one row a latent."""

    order: Tensor
    """[entry] int64: entries of the code, latent by latent."""
    tokens: Tensor
    """[entry] int64: their tokens."""
    starts: Tensor
    """[latent] int64: where each latent's entries start."""

    def products(self, values: Tensor, tokens: Tensor, out: Tensor | None = None) -> Tensor:
        """`f.T @ tokens` for `values: [entry]` in the code's order and `tokens: [batch, width]`; [latent, width].

        Written to `out`, contiguous, if it is given.
        """
        values = values[self.order]
        if kernels := kernels_for(tokens, values):
            return kernels.weighted_sums(self.tokens, tokens, self.starts, values, kernels.BY_LATENT, out)
        tokens = _summable(tokens)
        values = values.to(tokens.dtype)
        if out is None:
            return _bags(self.tokens, tokens, self.starts, values)
        # embedding_bag makes a result of its own. Small pieces stay in the cores' caches; a whole result would be new
        # memory every time, which the system must clear first.
        latents = max(1, _PIECE_BYTES // (tokens.element_size() * tokens.shape[1]))
        edges = [*self.starts[::latents].tolist(), len(values)]
        for i, piece in enumerate(out.split(latents)):
            entries, starts = slice(edges[i], edges[i + 1]), self.starts[i * latents : i * latents + len(piece)]
            piece.copy_(_bags(self.tokens[entries], tokens, starts - edges[i], values[entries]))
        return out


def kernels_for(*operands: Tensor) -> ModuleType | None:
    """`sparse_triton` if it takes these operands (float32 or bfloat16, on CUDA, outside autograd), else None."""
    taken = (x.is_cuda and x.dtype in (torch.float32, torch.bfloat16) and not x.requires_grad for x in operands)
    return _sparse_triton() if all(taken) else None


def _sparse_triton() -> ModuleType | None:
    return importlib.import_module("crosscope_worker.dictionary.sparse_triton") if launches_kernels() else None


@functools.cache
def launches_kernels() -> bool:
    """Whether Triton is installed and can launch kernels, for which it compiles a small C extension.

    Warns if it is installed and cannot.
    """
    if find_spec("triton") is None:
        return False
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    headers = Path(sysconfig.get_config_var("INCLUDEPY"), "Python.h")
    if compiler and headers.exists():
        return True
    missing = str(headers) if compiler else "a C compiler"
    message = f"Triton cannot launch kernels without {missing}; sparse operations take plain torch."
    warnings.warn(message, RuntimeWarning, stacklevel=2)
    return False


def _summable(x: Tensor) -> Tensor:
    """`x` in the data type in which its sums are taken."""
    return x.float() if x.dtype == torch.bfloat16 else x


def by_latent(code: SparseCode, num_latents: int) -> ByLatent:
    """The entries of `code` ordered by latent."""
    latents, order = torch.sort(code.latents, stable=True)
    return ByLatent(order, code.tokens[order], _starts(latents, num_latents))


class Largest(NamedTuple):
    """The largest entries of a batch."""

    flat: Tensor
    """[entry] int64: ascending indices into the flattened code."""
    smallest: Tensor
    """The smallest value that was kept, a float32 number; 0 if nothing is positive."""
    sure: Tensor
    """Whether the guess hid no larger entry, a bool; if it is false, choose again without a guess."""


def batch_topk(
    pre: Tensor, bias: Tensor, norms: Tensor, count: int, floor: float = 0.0, latents: slice | None = None
) -> Largest:
    """The `count` largest positive entries of `(pre + bias) * norms`; exact, ties to the lower index.

    `pre: [batch, latent]`, `bias, norms: [latent]`. With `latents`, only those compete. `floor` is a guess at the
    smallest kept value. Entries below it are looked at only if fewer than `count` lie above, so a good guess (a little
    below the last step's value) passes over most of the batch. Neither the sum nor the product is ever built for the
    whole batch. With a good guess the host waits for the device once, for the number of entries above it.
    """
    if latents is not None and (own := range(pre.shape[1])[latents]) != range(pre.shape[1]):
        found = batch_topk(pre[:, latents].contiguous(), bias[latents], norms[latents], count, floor)
        return found._replace(flat=widened(found.flat, len(own), own.start, pre.shape[1]))
    if floor > 0:
        candidates, values = _scaled(pre, bias, norms, pre > floor / norms - bias)
        if len(candidates) >= count:
            kept, smallest = _largest(values, count)
            return Largest(candidates[kept], smallest, smallest > floor + rounding(bias, norms, floor))
    flat, values = _largest_of_all(pre, bias, norms, count)
    smallest = values.min() if len(values) else values.new_zeros(())
    return Largest(flat, smallest, smallest.new_ones((), dtype=torch.bool))


def widened(flat: Tensor, width: int, start: int, whole: int) -> Tensor:
    """Flat indices into `[batch, width]` as those into `[batch, whole]`, of which it is the columns from `start` on."""
    return flat + torch.div(flat, max(1, width), rounding_mode="floor") * (whole - width) + start


def strongest(pre: Tensor, bias: Tensor, norms: Tensor, count: int, floor: float) -> tuple[Tensor, Tensor]:
    """The positive entries of `(pre + bias) * norms` above `floor`; of more than `count`, the largest.

    Arguments as those of `batch_topk`. Returns flat indices, ascending, and values, [entry] each.
    """
    if not pre.numel():
        return torch.empty(0, dtype=torch.int64, device=pre.device), pre.new_empty(0)
    if floor <= 0:
        return _largest_of_all(pre, bias, norms, count)
    flat, values = _scaled(pre, bias, norms, pre > floor / norms - bias)
    if len(flat) <= count:
        return flat, values
    kept, _ = _largest(values, count)
    return flat[kept], values[kept]


def rounding(bias: Tensor, norms: Tensor, floor: float) -> Tensor:
    """How far above `floor` an entry may lie that its comparison with `pre` hides."""
    return 1e-6 * (floor + (bias.abs() * norms).max())


def _largest_of_all(pre: Tensor, bias: Tensor, norms: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """As `strongest` without a floor, a piece of the batch after the other.

    What is kept of the pieces before is a floor for the next, and half of a batch is never listed at once.
    """
    flat, values = torch.empty(0, dtype=torch.int64, device=pre.device), pre.new_empty(0)
    smallest = pre.new_zeros(())
    rows = max(1, _PIECE_ENTRIES // pre.shape[1])
    for first in range(0, len(pre), rows):
        piece = pre[first : first + rows]
        above, scaled = _scaled(piece, bias, norms, piece > -bias)
        larger = scaled > smallest  # ties go to the pieces before
        flat = torch.cat([flat, above[larger] + first * pre.shape[1]])
        values = torch.cat([values, scaled[larger]])
        if len(flat) > count:
            kept, smallest = _largest(values, count)
            flat, values = flat[kept], values[kept]
    return flat, values


def _scaled(pre: Tensor, bias: Tensor, norms: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Flat indices of the entries where `keep`, and the entries of `(pre + bias) * norms` there."""
    candidates = flat_indices(keep)
    latents = candidates % pre.shape[1]
    return candidates, (pre.reshape(-1)[candidates] + bias[latents]) * norms[latents]


_SORTED_AT_MOST = 8
"""Up to so many times the entries that stay are sorted on CUDA; of more, the largest are found first."""


def _largest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Ascending indices of the `count` largest of at least as many values, ties to the lower one, and the smallest."""
    sorts = values.is_cuda and len(values) <= _SORTED_AT_MOST * count
    return (_by_sorting if sorts else _by_selection)(values, count)


def _by_sorting(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """As `_largest`; no host waits for it."""
    ordered = torch.sort(values, descending=True, stable=True)
    return ordered.indices[:count].sort().values, ordered.values[count - 1]


def _by_selection(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """As `_largest`, without sorting anything."""
    smallest = torch.topk(values, count, sorted=False).values.min()
    keep = values > smallest
    keep[flat_indices(values == smallest)[: count - int(keep.sum())]] = True
    return flat_indices(keep), smallest
