"""The kernel of packed attention is right (packed_attention_comparisons.py), and compiles for GPUs without one."""

# Without Triton its imports are missing.
# pyright: reportMissingImports=false, reportPrivateUsage=false, reportFunctionMemberAccess=false

from pathlib import Path

import pytest

from tests.worker.devices import needs_gpu
from tests.worker.triton_runs import compare, needs_triton

COMPARISONS = Path(__file__).with_name("packed_attention_comparisons.py")
SHARED_BYTES = {90: 232_448, 89: 101_376}
"""What a program may take of a processor's memory: an H100, and a small GPU."""


@needs_triton
def test_the_kernel_equals_the_formula_in_the_interpreter() -> None:
    compare(COMPARISONS, interpret=True)


@needs_triton
@pytest.mark.gpu
@needs_gpu
def test_the_kernel_equals_the_formula_on_a_gpu() -> None:
    compare(COMPARISONS, interpret=False)


@needs_triton
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_the_kernel_fits_a_gpu(capability: int, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads of Gemma 2 2B, down to machine code, with the tile that would be chosen."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from crosscope_worker.models import packed_attention_triton as kernels

    size, shared = {"bf16": 2, "fp32": 4}[dtype], SHARED_BYTES[capability]
    tile = kernels.tile_of(256, size, shared)
    function = kernels._attention
    constants = {"HEADS": 8, "GROUP": 2, "DIM": 256, "WIDTH": 256, "CAPPED": True, "q_dim": 1, "k_dim": 1, "v_dim": 1}
    constants |= {"positions_pos": 1, "QUERIES": tile.queries, "KEYS": tile.keys}
    constants |= {"PRECISION": "tf32x3" if dtype == "fp32" else "tf32"}
    kinds = dict.fromkeys(("q", "k", "v", "out"), f"*{dtype}") | {"positions": "*i64", "scale": "fp32"}
    kinds |= {"softcap": "fp32"} | dict.fromkeys(constants, "constexpr")
    signature = {name: kinds.get(name, "i32") for name in function.arg_names}
    aligned = [
        (index,)
        for index, name in enumerate(function.arg_names)
        if name not in constants and (signature[name].startswith("*") or name[1:2] == "_")
    ]
    attributes = {place: [["tt.divisibility", 16]] for place in aligned}
    compiled = triton.compile(
        ASTSource(function, signature, constants, attributes),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True},
    )
    assert compiled.asm["cubin"].startswith(b"\x7fELF")
    assert compiled.metadata.shared <= shared
