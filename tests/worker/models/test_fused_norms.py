"""Norms by one kernel: right (norm_comparisons.py), compiled for a GPU without having one, and left alone elsewhere."""

import logging
import re
import sys
from pathlib import Path

import pytest
import torch

from crosscope_worker.models.fused_norms import FusedNorms
from tests.worker.devices import needs_gpu
from tests.worker.tiny_models import tiny_model
from tests.worker.triton_runs import compare, needs_triton

COMPARISONS = Path(__file__).with_name("norm_comparisons.py")


@needs_triton
def test_fused_norms_are_right_in_the_interpreter() -> None:
    compare(COMPARISONS, interpret=True)


@needs_triton
@pytest.mark.gpu
@needs_gpu
def test_fused_norms_are_right_on_a_gpu() -> None:
    compare(COMPARISONS, interpret=False)


@needs_triton
@pytest.mark.parametrize("rows", ["*fp32", "*bf16"])
@pytest.mark.parametrize("rounds_first", [False, True])
def test_the_kernel_compiles_for_a_gpu(
    rows: str, rounds_first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For compute capability 9.0, down to machine code, without sums in a random order."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from crosscope_worker.models.rms_norm_triton import _rms_norm

    constants = {"ROUNDS_FIRST": rounds_first, "TILE": 4096}
    kinds = {"x": rows, "weight": rows, "out": rows, "width": "i32", "eps": "fp32", "offset": "fp32"}
    signature = kinds | dict.fromkeys(constants, "constexpr")
    options = {"num_warps": 8, "enable_fp_fusion": True}
    source = ASTSource(_rms_norm, signature, constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert compiled.asm["cubin"].startswith(b"\x7fELF")
    assert not re.search(r"\b(atom|red)\.", compiled.asm["ptx"])


def test_norms_stay_as_they_are_where_the_kernel_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without Triton its module cannot be imported; the model runs all the same."""
    monkeypatch.setitem(sys.modules, "crosscope_worker.models.rms_norm_triton", None)
    model, ids = tiny_model("Gemma2"), torch.arange(3, 20)[None]
    expected = model(ids).logits
    with caplog.at_level(logging.WARNING):
        norms = FusedNorms((model,), 1)
    assert len(norms) == 0
    with norms.standing_in():
        assert torch.equal(model(ids).logits, expected)
    [record] = caplog.records
    assert "norms of models are not fused, and prompts are slower: " in record.getMessage()
