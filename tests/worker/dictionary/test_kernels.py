"""The Triton kernels compute the right sums (kernel_comparisons.py), and compile for a GPU without having one."""

import re
from pathlib import Path

import pytest
import torch

from crosscope_worker.dictionary import sparse
from crosscope_worker.dictionary.sparse import by_latent, decode_entries, entry_products, flat_indices, sparse_code
from tests.worker.devices import needs_gpu
from tests.worker.triton_runs import compare, needs_triton

COMPARISONS = Path(__file__).with_name("kernel_comparisons.py")


@needs_triton
def test_kernels_equal_dense_formulas_in_the_interpreter():
    compare(COMPARISONS, interpret=True)


@needs_triton
@pytest.mark.gpu
@needs_gpu
def test_kernels_equal_dense_formulas_on_a_gpu():
    compare(COMPARISONS, interpret=False)


@needs_triton
@pytest.mark.parametrize(
    ("kernel", "tiled"),
    [("_weighted_sums", "DECODING"), ("_weighted_sums", "BY_LATENT"), ("_entry_products", "ENTRY_PRODUCTS")],
)
@pytest.mark.parametrize("rows", ["*fp32", "*bf16"])
def test_kernels_compile_for_a_gpu(kernel: str, tiled: str, rows: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """For compute capability 9.0, down to machine code, without sums in a random order."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from crosscope_worker.dictionary import sparse_triton

    function = getattr(sparse_triton, kernel)
    dtype = {"*fp32": torch.float32, "*bf16": torch.bfloat16}[rows]
    entries, columns = getattr(sparse_triton, tiled)[dtype]
    tiles = {"TILE_ENTRIES": entries, "TILE_COLUMNS": columns}
    kinds = {"indices": "*i64", "latents": "*i64", "starts": "*i64", "rows": rows, "tokens": rows}
    kinds |= {"weights": "*fp32", "sums": "*fp32", "products": "*fp32"} | dict.fromkeys(tiles, "constexpr")
    signature = {name: kinds.get(name, "i32") for name in function.arg_names}
    target, options = GPUTarget("cuda", 90, 32), {"enable_fp_fusion": True}
    compiled = triton.compile(ASTSource(function, signature, tiles), target=target, options=options)
    assert compiled.asm["cubin"].startswith(b"\x7fELF")
    assert not re.search(r"\b(atom|red)\.", compiled.asm["ptx"])


def test_the_cpu_takes_plain_torch():
    assert sparse.kernels_for(torch.ones(1, 1)) is None


def test_triton_is_left_alone_where_it_cannot_compile_its_launcher(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(sparse, "find_spec", lambda name: "found")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.warns(RuntimeWarning, match="without a C compiler"):
        assert not sparse.launches_kernels.__wrapped__()


def test_without_kernels_products_of_bfloat16_are_float32_too():
    dense = torch.tensor([[0.0, 1.5, 0.0], [2.0, 0.0, 0.25]])
    code = sparse_code(flat_indices(dense > 0), dense)
    rows = torch.tensor([[1.0, 2.0], [256.0, 1.0], [1.0, -1.0]]).bfloat16()
    tokens = torch.tensor([[256.0, 1.0], [0.5, 3.0]]).bfloat16()
    # 65537 needs more bits than bfloat16 has.
    assert decode_entries(code, rows).tolist() == [[384.0, 1.5], [2.25, 3.75]]
    assert entry_products(code, tokens, rows).tolist() == [65537.0, 6.5, -2.5]
    products = by_latent(code, 3).products(torch.tensor([1.0, 1.0, 1.0]), tokens)
    assert products.tolist() == [[0.5, 3.0], [256.0, 1.0], [0.5, 3.0]]
    assert {decode_entries(code, rows).dtype, products.dtype} == {torch.float32}
