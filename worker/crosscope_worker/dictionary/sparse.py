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
        starts = torch.zeros(self.num_tokens + 1, dtype=torch.int64, device=self.tokens.device)
        torch.cumsum(torch.bincount(self.tokens, minlength=self.num_tokens), 0, out=starts[1:])
        return starts


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
    if keep.device.type == "cpu":  # several times faster than torch's own on sparse masks
        return torch.from_numpy(np.flatnonzero(keep.numpy()))
    return keep.reshape(-1).nonzero().squeeze(1)


def decode_entries(code: SparseCode, rows: Tensor) -> Tensor:
    """`f @ rows` for `rows: [latent, width]`; returns [batch, width]."""
    starts = code.row_starts()[:-1]
    if kernels := _kernels(rows, code.values):
        return kernels.weighted_sums(code.latents, rows, starts, code.values, kernels.DECODING)
    rows = _summable(rows)
    return _bags(code.latents, rows, starts, code.values.to(rows.dtype))


def _bags(indices: Tensor, rows: Tensor, starts: Tensor, values: Tensor) -> Tensor:
    """Sums of `values[i] * rows[indices[i]]` from each of `starts` to the next, [start, width]."""
    return torch.nn.functional.embedding_bag(indices, rows, starts, mode="sum", per_sample_weights=values)


def entry_products(code: SparseCode, tokens: Tensor, rows: Tensor) -> Tensor:
    """`(tokens @ rows.T)[t, j]` at every active entry; `tokens: [batch, width]`, `rows: [latent, width]`; [entry]."""
    starts = code.row_starts()
    if kernels := _kernels(tokens, rows):
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
        if kernels := _kernels(tokens, values):
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


def _kernels(*operands: Tensor) -> ModuleType | None:
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
    order = torch.argsort(code.latents, stable=True)
    counts = torch.bincount(code.latents, minlength=num_latents)
    starts = torch.zeros(num_latents, dtype=torch.int64, device=counts.device)
    torch.cumsum(counts[:-1], 0, out=starts[1:])
    return ByLatent(order, code.tokens[order], starts)


def batch_topk(
    pre: Tensor, bias: Tensor, norms: Tensor, count: int, floor: float = 0.0, latents: slice | None = None
) -> tuple[Tensor, float]:
    """Flat indices of the `count` largest positive entries of `(pre + bias) * norms`; exact, ties to the lower index.

    `pre: [batch, latent]`, `bias, norms: [latent]`. With `latents`, only those compete. Returns ascending indices into
    the flattened code and the smallest kept value, 0 if nothing is positive. `floor` is a guess at that value. Entries
    below it are looked at only if fewer than `count` lie above, so a good guess (a little below the last step's value)
    passes over most of the batch. Neither the sum nor the product is ever built for the whole batch.
    """
    if latents is not None and (own := range(pre.shape[1])[latents]) != range(pre.shape[1]):
        kept, smallest = batch_topk(pre[:, latents].contiguous(), bias[latents], norms[latents], count, floor)
        tokens = torch.div(kept, len(own), rounding_mode="floor")
        return kept + tokens * (pre.shape[1] - len(own)) + own.start, smallest
    if floor > 0:
        kept, smallest = _largest(pre, bias, norms, count, pre > floor / norms - bias)
        # Rounding of the comparison might have hidden an entry near the floor.
        rounding = 1e-6 * (floor + float((bias.abs() * norms).max()))
        if len(kept) == count and smallest > floor + rounding:
            return kept, smallest
    return _largest(pre, bias, norms, count, pre > -bias)


def _largest(pre: Tensor, bias: Tensor, norms: Tensor, count: int, keep: Tensor) -> tuple[Tensor, float]:
    """Flat indices of the `count` largest positive entries where `keep`, or of all of them, and the smallest value."""
    candidates = flat_indices(keep)
    latents = candidates % pre.shape[1]
    values = (pre.reshape(-1)[candidates] + bias[latents]) * norms[latents]
    positive = values > 0
    if not bool(positive.all()):
        candidates, values = candidates[positive], values[positive]
    if len(candidates) <= count:
        return candidates, float(values.min()) if len(values) else 0.0
    smallest = torch.topk(values, count, sorted=False).values.min()
    above = values > smallest
    ties = flat_indices(values == smallest)[: count - int(above.sum())]
    above[ties] = True
    return candidates[above], float(smallest)
