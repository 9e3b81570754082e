"""Sparse operations against the dense formulas in their docstrings."""

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import crosscope_worker
from crosscope_worker.dictionary import sparse
from crosscope_worker.dictionary.sparse import (
    batch_topk,
    by_latent,
    decode_entries,
    entry_products,
    flat_indices,
    sparse_code,
)


def random_code(batch: int, latents: int, density: float, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    dense = torch.rand(batch, latents, generator=generator)
    keep = torch.rand(batch, latents, generator=generator) < density
    return dense * keep, sparse_code(flat_indices(keep), dense)


@pytest.mark.parametrize(
    ("batch", "latents", "width", "density"), [(1, 1, 1, 1.0), (7, 13, 5, 0.3), (33, 65, 17, 0.05)]
)
def test_operations_equal_dense_ones(batch: int, latents: int, width: int, density: float):
    dense, code = random_code(batch, latents, density)
    rows, tokens = torch.randn(latents, width), torch.randn(batch, width)
    torch.testing.assert_close(code.dense(latents), dense)
    torch.testing.assert_close(decode_entries(code, rows), dense @ rows)
    torch.testing.assert_close(by_latent(code, latents).products(code.values, tokens), dense.T @ tokens)
    torch.testing.assert_close(entry_products(code, tokens, rows), (tokens @ rows.T)[code.tokens, code.latents])


@pytest.mark.parametrize("latents_a_piece", [1, 4, 13, 100])
@pytest.mark.parametrize("density", [0.0, 0.02, 0.3])
def test_products_by_latent_in_pieces_are_the_same_to_the_last_bit(
    monkeypatch: pytest.MonkeyPatch, latents_a_piece: int, density: float
):
    _, code = random_code(7, 13, density)
    tokens, out = torch.randn(7, 5), torch.full((13, 5), torch.nan)
    expected = by_latent(code, 13).products(code.values, tokens)
    monkeypatch.setattr(sparse, "_PIECE_BYTES", latents_a_piece * 4 * 5)
    assert by_latent(code, 13).products(code.values, tokens, out) is out
    assert torch.equal(out, expected)


def test_operations_take_an_empty_code():
    _, code = random_code(3, 4, 0.0)
    assert torch.equal(decode_entries(code, torch.randn(4, 2)), torch.zeros(3, 2))
    assert torch.equal(by_latent(code, 4).products(code.values, torch.randn(3, 2)), torch.zeros(4, 2))
    assert len(entry_products(code, torch.randn(3, 2), torch.randn(4, 2))) == 0


def test_row_starts_cover_tokens_without_entries():
    keep = torch.tensor([[False, False], [True, True], [False, False], [False, True]])
    assert sparse_code(flat_indices(keep), torch.ones(4, 2)).row_starts().tolist() == [0, 0, 2, 2, 3]


@pytest.mark.parametrize("name", ["dictionary/sparse_triton", "training/adam_triton", "models/rms_norm_triton"])
def test_a_programs_number_has_64_bits_before_it_is_multiplied(name: str) -> None:
    """A table of a million latents has more numbers than 2^31; no device here could hold one to try it."""
    source = (Path(crosscope_worker.__file__).parent / f"{name}.py").read_text("utf-8")
    rows = re.findall(r"tl\.program_id\(0\)(\S*)", source)
    assert rows
    assert all(row.startswith(".to(tl.int64)") for row in rows)


@pytest.mark.parametrize("most", [1, 7, 39, 40, 64])
def test_a_mask_is_looked_at_in_pieces_with_the_same_result(most: int) -> None:
    """Pieces stay below 2^31 elements on a GPU."""
    keep = torch.rand(40, generator=torch.Generator().manual_seed(0)) > 0.5
    assert sparse._nonzero(keep, most).tolist() == keep.nonzero()[:, 0].tolist()


def test_batch_topk_breaks_ties_by_index():
    code, norms = torch.tensor([[1.0, 1.0, 2.0], [2.0, 0.0, 3.0]]), torch.tensor([1.0, 2.0, 1.0])
    kept, smallest, _ = batch_topk(code, torch.zeros(3), norms, 2)
    assert kept.tolist() == [1, 5]
    assert smallest == 2.0


def test_batch_topk_among_some_latents_only():
    code = torch.tensor([[9.0, 1.0, 4.0, 9.0], [9.0, 3.0, 2.0, 9.0]])
    kept, smallest, _ = batch_topk(code, torch.zeros(4), torch.tensor([1.0, 2.0, 1.0, 1.0]), 2, latents=slice(1, 3))
    assert kept.tolist() == [2, 5]
    assert smallest == 4.0


def test_batch_topk_never_keeps_what_does_not_fire():
    code, norms = torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.tensor([0.0, 1.0])
    assert batch_topk(code, torch.zeros(2), norms, 3)[0].tolist() == [1]


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0]), min_size=2, max_size=40),
    count=st.integers(1, 45),
    floor=st.sampled_from([0.0, 0.5, 0.7, 1.5, 9.0]),
)
def test_batch_topk_equals_a_stable_sort_whatever_the_floor(values: list[float], count: int, floor: float):
    values = values[: len(values) // 2 * 2]
    norms, bias = torch.tensor([1.0, 3.0]), torch.tensor([-0.5, 2.0])
    scaled = [value * float(norms[i % 2]) for i, value in enumerate(values)]
    order = sorted(range(len(scaled)), key=lambda i: (-scaled[i], i))
    expected = sorted(i for i in order[:count] if scaled[i] > 0)
    pre = torch.tensor(values).reshape(-1, 2) - bias
    found = batch_topk(pre, bias, norms, count, floor)
    assert bool(found.sure) or floor > 0
    if not found.sure:  # an entry lies at the floor
        assert found.smallest <= floor * (1 + 1e-5) + 1e-5
        found = batch_topk(pre, bias, norms, count)
    assert found.flat.tolist() == expected
    assert found.smallest == (scaled[order[: len(expected)][-1]] if expected else 0.0)


@given(values=st.lists(st.sampled_from([0.5, 1.0, 1.5]), min_size=1, max_size=30), count=st.integers(1, 30))
def test_the_largest_are_the_same_however_they_are_found(values: list[float], count: int):
    count = min(count, len(values))
    expected = sorted(sorted(range(len(values)), key=lambda i: (-values[i], i))[:count])
    for find in (sparse._by_sorting, sparse._by_selection):
        kept, smallest = find(torch.tensor(values), count)
        assert kept.tolist() == expected
        assert smallest == min(values[i] for i in expected)
