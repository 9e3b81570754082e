"""How float32 products are made: what is asked for, what a device can, and that a setting ends with its block."""

import pytest
import torch

from crosscope_worker.precision import float32_on, float32_products
from tests.worker.devices import needs_gpu


def test_a_cpu_makes_float32_products_as_ieee_says():
    assert [float32_on("cpu", asked) for asked in (None, "ieee", "tf32")] == ["ieee"] * 3


@pytest.mark.parametrize(
    ("capability", "asked", "taken"),
    [((9, 0), None, "tf32"), ((8, 0), "tf32", "tf32"), ((9, 0), "ieee", "ieee"), ((7, 5), "tf32", "ieee")],
)
def test_a_gpu_takes_tf32_unless_it_is_told_otherwise_or_cannot(monkeypatch, capability, asked, taken):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert float32_on("cuda:1", asked) == taken


def test_the_setting_ends_with_its_block_also_by_an_error():
    with float32_products("tf32"):
        assert torch.get_float32_matmul_precision() == "high"
        with float32_products("ieee"):
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    with pytest.raises(KeyError), float32_products("tf32"):
        raise KeyError
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.gpu
@needs_gpu
def test_products_on_a_gpu_are_rounded_as_said():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(512, 512, generator=generator).cuda() for _ in range(2))
    exact = a.double() @ b.double()
    errors = {}
    for how in ("ieee", "tf32"):
        with float32_products(how):
            errors[how] = float(((a @ b).double() - exact).norm() / exact.norm())
    assert errors["ieee"] < 1e-6 < 5e-5 < errors["tf32"] < 1e-3
