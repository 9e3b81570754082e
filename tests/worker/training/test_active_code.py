"""Where the dense formulas begin: by device, and by how products are made."""

import torch

from crosscope_worker.precision import float32_products
from crosscope_worker.training.active_code import DenseCode, EntryCode, active_code, dense_above

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_the_dense_formulas_begin_where_they_are_faster():
    assert dense_above(CPU, torch.float32) == dense_above(CPU, torch.bfloat16) == 0.05
    assert dense_above(CUDA, torch.bfloat16) == 0.014
    with float32_products("tf32"):
        assert dense_above(CUDA, torch.float32) == 0.012
        assert dense_above(CPU, torch.float32) == 0.05
    with float32_products("ieee"):
        assert dense_above(CUDA, torch.float32) == 0.045


def test_a_code_takes_its_form_from_its_share_of_active_entries():
    pre = torch.zeros(10, 10)
    for active, form in ((5, EntryCode), (6, DenseCode)):
        pre.view(-1)[:active] = 1.0
        assert isinstance(active_code(pre, torch.zeros(10), None, torch.float32), form)
        assert isinstance(active_code(pre, torch.zeros(10), torch.arange(active), torch.float32), form)
