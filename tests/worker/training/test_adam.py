"""Adam's kernels move weights as torch's Adam does (adam_comparisons.py), and compile for a GPU without having one."""

import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from crosscope_worker.dictionary.sparse import by_latent, sparse_code
from crosscope_worker.training import adam
from crosscope_worker.training.adam import Adam
from crosscope_worker.training.entry_sums import EntrySums
from tests.worker.devices import needs_gpu
from tests.worker.triton_runs import compare, needs_triton

COMPARISONS = Path(__file__).with_name("adam_comparisons.py")


@needs_triton
def test_kernels_equal_torchs_adam_in_the_interpreter():
    compare(COMPARISONS, interpret=True)


@needs_triton
@pytest.mark.gpu
@needs_gpu
def test_kernels_equal_torchs_adam_on_a_gpu():
    compare(COMPARISONS, interpret=False)


@needs_triton
@pytest.mark.parametrize("tokens", ["*fp32", "*bf16"])
@pytest.mark.parametrize("kernel", ["_squares", "_move"])
def test_kernels_compile_for_a_gpu(kernel: str, tokens: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """For compute capability 9.0, down to machine code: without atomics, and in loads of 16 bytes."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from crosscope_worker.training import adam_triton

    function = getattr(adam_triton, kernel)
    flags = {"COPIES": True, "HAS_OWN": True, "HAS_ROWS": True}
    flags |= {"TILE_ENTRIES": adam_triton.TILE_ENTRIES, "TILE_COLUMNS": adam_triton.TILE_COLUMNS}
    flags = {name: value for name, value in flags.items() if name in function.arg_names}
    kinds = {"indices": "*i64", "starts": "*i64", "tokens": tokens, "places": "*i32", "rounded": "*bf16"}
    pointers = ("values", "own", "rows", "squares", "weights", "first_moments", "second_moments", "scale")
    numbers = ("step_size", "root", "beta1", "beta2", "eps", "share1", "share2")
    kinds |= dict.fromkeys(pointers, "*fp32") | dict.fromkeys(numbers, "fp32") | dict.fromkeys(flags, "constexpr")
    signature = {name: kinds.get(name, "i32") for name in function.arg_names}
    target, options = GPUTarget("cuda", 90, 32), {"enable_fp_fusion": True}
    even = ("token_stride", "width", "left", "right")
    known = [i for i, name in enumerate(function.arg_names) if signature[name].startswith("*") or name in even]
    attributes = {(i,): [["tt.divisibility", 16]] for i in known}
    compiled = triton.compile(ASTSource(function, signature, flags, attributes), target=target, options=options)
    assert compiled.asm["cubin"].startswith(b"\x7fELF")
    assert not re.search(r"\b(atom|red)\.", compiled.asm["ptx"])
    loads = {"_squares": 6, "_move": 10}[kernel]
    assert len(re.findall(r"\bld\.global[.\w]*\.v4\.", compiled.asm["ptx"])) >= loads


def sums() -> EntrySums:
    """Two tokens (1, 2 | 3) and (5, 7 | 11); latent 0 has both with 2 and -1, latent 1 none, latent 2 the second."""
    code = sparse_code(torch.tensor([0, 3, 5]), torch.tensor([[2.0, 0.0, 0.0], [-1.0, 0.0, 0.5]]))
    return EntrySums(by_latent(code, 3), code.values, torch.tensor([[1.0, 2.0, 3.0], [5.0, 7.0, 11.0]]), (2, 1))


def test_what_a_gradient_is_the_sum_of():
    weights = torch.tensor([[1.0, 1.0, 10.0], [2.0, 3.0, 4.0], [0.0, 0.0, 1.0]])
    one = sums()
    assert one.made(weights).tolist() == [[-3.0, -3.0, -5.0], [0.0, 0.0, 0.0], [2.5, 3.5, 5.5]]
    one.own = torch.tensor([[1.0, 10.0, 0.0], [0.5, 100.0, 2.0]])
    one.latents, one.rows = torch.tensor([2]), torch.tensor([[1.0, 1.0, 1.0]])
    assert one.made(weights).tolist() == [[-2.0, -2.0, 0.0], [20.0, 30.0, 400.0], [3.5, 4.5, 8.5]]


def test_without_kernels_gradients_are_made_first():
    """The norm of the gradient is that of (-3, -3, -5, 2.5, 3.5, 5.5) and of the bias's 2; Adam's first step is lr."""
    row, bias = torch.zeros(3, 3), torch.zeros(1)
    one = Adam({"row": row, "bias": bias}, max_norm=1.0)
    assert not one.takes_sums(torch.float32)
    one.step({"row": sums(), "bias": torch.tensor([2.0])}, 0.25)
    expected = torch.tensor([[0.25], [0.0], [-0.25]]).expand(3, 3)
    torch.testing.assert_close(row, expected, rtol=0, atol=1e-6)
    norm = (9 + 9 + 25 + 2.5**2 + 3.5**2 + 5.5**2 + 4) ** 0.5
    assert one.tensors()["row.exp_avg"][0].tolist() == pytest.approx([-0.3 / norm, -0.3 / norm, -0.5 / norm])
    assert float(one.tensors()["row.step"]) == 1


@pytest.mark.parametrize(
    ("fails", "says"),
    [(RuntimeError("out of shared memory"), "out of shared memory"), (0.5, "off by 0.5 learning rates")],
)
def test_kernels_that_fail_are_left_with_a_reason(monkeypatch: pytest.MonkeyPatch, fails: object, says: str):
    def differ(*_: object) -> float:
        if isinstance(fails, Exception):
            raise fails
        assert isinstance(fails, float)
        return fails

    monkeypatch.setattr(adam, "_kernels", lambda weight: SimpleNamespace())
    monkeypatch.setattr(adam, "_difference", differ)
    one = Adam({"row": torch.zeros(2, 2)}, None)
    with pytest.warns(RuntimeWarning, match=says):
        assert not one.takes_sums(torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not one.takes_sums(torch.float32)
