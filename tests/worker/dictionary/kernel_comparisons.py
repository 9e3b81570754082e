"""The sparse operations by Triton's kernels, against their dense formulas in float64.

test_kernels.py runs this file in processes of their own: with TRITON_INTERPRET=1, which must be set before Triton is
imported, on the CPU, where Triton's interpreter takes the kernels line by line; without it on a GPU.
"""

import os

import pytest
import torch
from torch import Tensor

from crosscope_worker.dictionary import sparse, sparse_triton
from crosscope_worker.dictionary.sparse import (
    SparseCode,
    by_latent,
    decode_entries,
    entry_products,
    flat_indices,
    sparse_code,
)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
ROUNDING = 1e-6
"""Relative to the sum of the absolute products: a few times float32's rounding, a thousandth of bfloat16's."""
SIZES = [(1, 1, 1), (6, 13, 7), (9, 17, 33), (5, 70, 100), (3, 8, 1025)]
"""Batch, latents, width: below, beside and above the tiles' sizes."""


@pytest.fixture(autouse=True)
def _kernels_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    if INTERPRETED:
        monkeypatch.setattr(sparse, "kernels_for", lambda *operands: sparse_triton)


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def code_of(batch: int, latents: int, density: float = 0.3) -> tuple[Tensor, SparseCode]:
    """A code whose first token has no entry, and whose last token has all latents but the dead ones."""
    generator = torch.Generator().manual_seed(0)
    dense = torch.rand(batch, latents, generator=generator) + 0.1
    keep = torch.rand(batch, latents, generator=generator) < density
    keep[:1], keep[-1:] = False, True
    keep[:, latents // 2 :: 5] = False
    dense = (dense * keep).to(DEVICE)
    return dense.double(), sparse_code(flat_indices(dense > 0), dense)


def assert_product(found: Tensor, left: Tensor, right: Tensor, at: tuple[Tensor, Tensor] | None = None) -> None:
    """`found` is `left @ right`, or its entries `at` some indices, within float32's rounding."""
    left, right = left.double(), right.double()
    expected, size = left @ right, left.abs() @ right.abs()
    if at is not None:
        expected, size = expected[at], size[at]
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    assert bool(((found - expected).abs() <= ROUNDING * size).all())


def assert_all(dense: Tensor, code: SparseCode, tokens: Tensor, rows: Tensor) -> None:
    """Each operation equals its dense formula."""
    assert_product(decode_entries(code, rows), dense, rows)
    out = torch.full((len(rows), tokens.shape[1]), torch.nan, device=DEVICE)
    assert by_latent(code, len(rows)).products(code.values, tokens, out) is out
    assert_product(out, dense.T, tokens)
    assert_product(by_latent(code, len(rows)).products(code.values, tokens), dense.T, tokens)
    assert_product(entry_products(code, tokens, rows), tokens, rows.T, (code.tokens, code.latents))


@pytest.mark.parametrize(("batch", "latents", "width"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_operation_equals_its_dense_formula(batch: int, latents: int, width: int, dtype: torch.dtype):
    dense, code = code_of(batch, latents)
    assert_all(dense, code, normal(batch, width, dtype=dtype), normal(latents, width, dtype=dtype, seed=2))


def test_a_token_and_a_latent_with_many_entries():
    dense, code = code_of(150, 3, density=0.95)
    assert_all(dense, code, normal(150, 10), normal(3, 10, seed=2))
    dense, code = code_of(3, 150, density=0.95)
    assert_all(dense, code, normal(3, 10), normal(150, 10, seed=2))


@pytest.mark.parametrize("batch", [0, 3])
def test_a_code_without_entries(batch: int):
    code = sparse_code(torch.zeros(0, dtype=torch.int64, device=DEVICE), torch.zeros(batch, 4, device=DEVICE))
    assert torch.equal(decode_entries(code, normal(4, 7)), torch.zeros(batch, 7, device=DEVICE))
    products = by_latent(code, 4).products(code.values, normal(batch, 7))
    assert torch.equal(products, torch.zeros(4, 7, device=DEVICE))
    assert entry_products(code, normal(batch, 7), normal(4, 7)).shape == (0,)


def test_tables_need_not_be_contiguous():
    dense, code = code_of(6, 13)
    assert_all(dense, code, normal(6, 20)[:, 3:14], normal(13, 30, seed=2)[:, 5:16])
    assert_all(dense, code, normal(11, 6).T, normal(11, 13, seed=2).T)


def test_tables_may_have_more_numbers_than_31_bits_count():
    between, width = 2**30 + 8, 5
    table = torch.empty(2 * between + width, dtype=torch.bfloat16, device=DEVICE).as_strided((3, width), (between, 1))
    table.copy_(normal(3, width, dtype=torch.bfloat16))
    dense = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0], [0.0, 3.0, 4.0]], device=DEVICE)
    assert_all(dense.double(), sparse_code(flat_indices(dense > 0), dense), table, table)


def test_equal_inputs_give_equal_bits():
    _, code = code_of(20, 30)
    tokens, rows, order = normal(20, 40), normal(30, 40, seed=2), by_latent(code, 30)
    for compute in (
        lambda: decode_entries(code, rows),
        lambda: entry_products(code, tokens, rows),
        lambda: order.products(code.values, tokens),
    ):
        assert torch.equal(compute(), compute())


@pytest.mark.skipif(INTERPRETED, reason="the interpreter works on the CPU, where the kernels are not chosen")
def test_the_kernels_are_chosen_for_what_they_take():
    chosen = sparse.kernels_for
    assert chosen(normal(2, 2), normal(2, 2, dtype=torch.bfloat16)) is sparse_triton
    assert chosen(normal(2, 2), normal(2, 2, dtype=torch.float64)) is None
    assert chosen(normal(2, 2), normal(2, 2).cpu()) is None
    assert chosen(normal(2, 2).requires_grad_()) is None
