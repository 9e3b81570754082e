"""The largest inner products where the products that choose are rounded, as TF32 rounds them."""

import pytest
import torch

from crosscope_worker.analysis import largest
from crosscope_worker.analysis.block import scratch_bytes
from crosscope_worker.precision import float32_products
from tests.worker.devices import needs_gpu


def test_exact_products_decide_among_the_candidates():
    generator = torch.Generator().manual_seed(0)
    rows, others = torch.randn(7, 32, generator=generator), torch.randn(50, 32, generator=generator)
    exact = rows @ others.T
    rounded = exact + 0.05 * torch.randn(exact.shape, generator=generator)
    candidates = rounded.topk(18, dim=1).indices
    ids, products = largest._ordered(rows, others, candidates, 10)
    assert not torch.equal(candidates[:, :10], ids), "rounding changes the order"
    expected = exact.topk(10, dim=1)
    assert torch.equal(ids, expected.indices)
    torch.testing.assert_close(products, expected.values)


@pytest.mark.parametrize("width", [40 * largest.GROUP, 41 * largest.GROUP - 1], ids=["whole groups", "some left over"])
def test_the_largest_of_wide_rows_are_found_by_groups(width):
    dense = torch.randn(9, width, generator=torch.Generator().manual_seed(0))
    dense[:, -1] = dense[:, 5] = torch.tensor(9.0)
    dense[:, -1] += 1
    dense[3, 128:136] = 20 + torch.arange(8)
    places, values = largest._largest(dense, 10)
    expected = dense.topk(10, dim=1)
    assert torch.equal(places, expected.indices)
    assert torch.equal(values, expected.values)


def test_pieces_on_a_cpu_are_as_large_as_asked():
    assert scratch_bytes(torch.device("cpu"), 123) == 123


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("how", ["ieee", "tf32"])
def test_a_gpu_finds_what_a_cpu_finds(how):
    generator = torch.Generator().manual_seed(0)
    rows, others = torch.randn(300, 512, generator=generator), torch.randn(9000, 512, generator=generator)
    ids, products = largest.largest_products(rows, others, 8)
    with float32_products(how):
        found, values = largest.largest_products(rows.cuda(), others.cuda(), 8)
    torch.testing.assert_close(values.cpu(), products, rtol=1e-5, atol=1e-4)
    assert (found.cpu() == ids).float().mean() > 0.999
