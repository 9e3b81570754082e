"""The code of a training batch, and the products with it that losses and gradients need (math §3).

A sparse code works on its active entries alone; one that is too full for that to pay, as in the first steps of an L1
run, takes the dense formulas, with the same results. Knows no loss.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from crosscope_worker.dictionary.sparse import (
    ByLatent,
    SparseCode,
    by_latent,
    decode_entries,
    entry_products,
    flat_indices,
    sparse_relu,
)

DENSE_ABOVE = {"cpu": 0.05, "bfloat16": 0.014, "tf32": 0.012, "ieee": 0.045}
"""Share of active entries above which the dense formulas are faster.

cpu: two cores, width 512 to 1 024. The others are products on an H100, width 4 608, 73 728 latents: between two of
four measured shares in bfloat16 and TF32 (step.crossing of `make bench-gpu`, 27 November 2026); in IEEE float32 worked
out from these and from its products, 7 times as slow as TF32's.
"""


class Weights(NamedTuple):
    """A crosscoder's parameters, or their gradients. The encoder and the decoder have one row per latent."""

    encoder: Tensor
    """[latent, both]."""
    b_enc: Tensor
    """[latent]."""
    decoder: Tensor
    """[latent, both]."""
    b_dec: Tensor
    """[both]."""


class Smallest(NamedTuple):
    """The smallest scaled activation of a batch that was kept in a budget."""

    value: Tensor
    """A number; 0 if nothing fired."""
    sure: Tensor
    """Whether the guess by which it was found hid no larger one, a bool (dictionary.sparse.Largest)."""


class Scratch:
    """Memory for large results that every step uses again.

    Freed memory would have to be cleared by the system before its next use, which takes as long as filling it.
    """

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def take(self, name: str, like: Tensor, *shape: int) -> Tensor:
        """Memory of the given shape, with the data type and device of `like`; overwrites what was last taken by this
        name.
        """
        held = self._held.get(name)
        if held is None or held.shape != shape or held.dtype != like.dtype or held.device != like.device:
            held = self._held[name] = like.new_empty(shape)
        return held


def product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """`a @ b` of equal data types; bfloat16 is summed and returned in float32, as sparse products are.

    The result is written to `out` if that is given and needs no conversion, as bfloat16 on the CPU does.
    """
    if not (a.numel() and b.numel()):
        dtype = torch.float32 if a.dtype == torch.bfloat16 else a.dtype
        return a.new_zeros(len(a), b.shape[1], dtype=dtype)
    if a.dtype != torch.bfloat16:
        return torch.mm(a, b, out=out)
    return torch.mm(a, b, out_dtype=torch.float32, out=out) if a.is_cuda else (a @ b).float()


class ActiveCode(Protocol):
    """A code with the products that gradients need; sparse or dense.

    Values are float32, or float64 if everything is. `rows` and `tokens` have the data type in which products are made.
    """

    def decode(self, rows: Tensor) -> Tensor:
        """`f @ rows`, [batch, width]."""
        ...

    def products(self, tokens: Tensor, rows: Tensor) -> Tensor:
        """`tokens @ rows.T` where the code is active, in the shape of its values."""
        ...

    def per_latent(self, values: Tensor, tokens: Tensor, out: Tensor | None = None) -> Tensor:
        """`values.T @ tokens`, [latent, width]; written to `out` if that is given and the code's form allows it."""
        ...

    def sums(self, values: Tensor) -> Tensor:
        """`values` summed over tokens, [latent]."""
        ...

    def spread(self, latents: Tensor) -> Tensor:
        """`latents: [latent]` at every active entry, in the shape of its values."""
        ...

    def narrowed(self, latents: slice) -> "ActiveCode":
        """The code of the latents in the slice alone; its latent 0 is the first of them."""
        ...

    values: Tensor


class EntryCode:
    """An ActiveCode of (token, latent, value) entries."""

    def __init__(self, code: SparseCode, num_latents: int) -> None:
        self.code = code
        self.values = code.values
        self._num_latents = num_latents

    @cached_property
    def order(self) -> ByLatent:
        """The entries ordered by latent."""
        return by_latent(self.code, self._num_latents)

    def decode(self, rows: Tensor) -> Tensor:
        """See ActiveCode."""
        return decode_entries(self.code, rows)

    def products(self, tokens: Tensor, rows: Tensor) -> Tensor:
        """See ActiveCode."""
        return entry_products(self.code, tokens, rows)

    def per_latent(self, values: Tensor, tokens: Tensor, out: Tensor | None = None) -> Tensor:
        """See ActiveCode."""
        return self.order.products(values, tokens, out)

    def sums(self, values: Tensor) -> Tensor:
        """See ActiveCode."""
        return values.new_zeros(self._num_latents).index_add_(0, self.code.latents, values)

    def spread(self, latents: Tensor) -> Tensor:
        """See ActiveCode."""
        return latents[self.code.latents]

    def narrowed(self, latents: slice) -> ActiveCode:
        """See ActiveCode."""
        first, last, _ = latents.indices(self._num_latents)
        own = flat_indices((self.code.latents >= first) & (self.code.latents < last))
        tokens, of, values = self.code.tokens[own], self.code.latents[own] - first, self.code.values[own]
        return EntryCode(SparseCode(tokens, of, values, self.code.num_tokens), last - first)


class DenseCode:
    """An ActiveCode that holds every entry."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self._active = values > 0

    def decode(self, rows: Tensor) -> Tensor:
        """See ActiveCode."""
        return product(self.values.to(rows.dtype), rows)

    def products(self, tokens: Tensor, rows: Tensor) -> Tensor:
        """See ActiveCode."""
        return product(tokens, rows.T).mul_(self._active)

    def per_latent(self, values: Tensor, tokens: Tensor, out: Tensor | None = None) -> Tensor:
        """See ActiveCode."""
        return product(values.to(tokens.dtype).T, tokens, out)

    def sums(self, values: Tensor) -> Tensor:
        """See ActiveCode."""
        return values.sum(0)

    def spread(self, latents: Tensor) -> Tensor:
        """See ActiveCode."""
        return latents * self._active

    def narrowed(self, latents: slice) -> ActiveCode:
        """See ActiveCode."""
        return DenseCode(self.values[:, latents])


@dataclass(frozen=True)
class Selected:
    """A batch's code after sparsification, for some of the latents held and some of the decoder's columns."""

    code: ActiveCode
    """The code of `latents` alone: its latent 0 is the first of them."""
    columns: slice
    """The columns that it decodes to, on the axis that the dictionary reads."""
    norms: Tensor
    """[latent of `latents`]; the factors by which activations were scaled."""
    latents: slice = field(default_factory=lambda: slice(None))

    def narrowed(self, latents: slice) -> "Selected":
        """The same for the latents of some rows alone, or for none. This code must have all latents held."""
        return Selected(self.code.narrowed(latents), self.columns, self.norms[latents], latents)

    def decode(self, decoder: Tensor) -> Tensor:
        """What it adds to the reconstruction by `decoder: [latent held, width]`, [batch, width of its columns]."""
        return self.code.decode(decoder[self.latents, self.columns].contiguous())


def dense_above(device: torch.device, dtype: torch.dtype) -> float:
    """The entry of DENSE_ABOVE for products of this data type on this device, as they are made at present."""
    if device.type != "cuda":
        return DENSE_ABOVE["cpu"]
    if dtype == torch.bfloat16:
        return DENSE_ABOVE["bfloat16"]
    return DENSE_ABOVE["ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"]


def active_code(
    pre: Tensor, bias: Tensor, flat: Tensor | None, dtype: torch.dtype, above: Tensor | None = None
) -> ActiveCode:
    """The entries of `relu(pre + bias)`, `[batch, latent]`, at the ascending flat indices `flat`.

    `flat` None: all entries above `above: [latent]`, which is not negative, or all positive ones where it is None. The
    code's form is the faster one at its density for products made in `dtype`.
    """
    most = dense_above(pre.device, dtype) * pre.numel()
    if flat is None:
        active = pre > (-bias if above is None else above - bias)
        # CUDA counts while it lists, and the host waits once. On the CPU a count costs less than a list of no use.
        if active.is_cuda:
            flat = flat_indices(active)
        if (int(torch.count_nonzero(active)) if flat is None else len(flat)) > most:
            code = (pre + bias).relu_()
            return DenseCode(code if above is None else code.mul_(active))
        flat = flat_indices(active) if flat is None else flat
    code = sparse_relu(flat, pre, bias)
    return DenseCode(code.dense(pre.shape[1])) if len(flat) > most else EntryCode(code, pre.shape[1])
