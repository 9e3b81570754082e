import pytest
import torch

from crosscope_worker.serve.errors import status_of
from crosscope_worker.work import exhausted, is_out_of_memory


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"),
    ],
    ids=lambda error: str(error)[:40] or "python",
)
def test_every_way_of_saying_it_is_known(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    ("error", "device"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. GPU 1 has a total capacity of"),
            "cuda:1",
        ),
        (RuntimeError("CUDA error: out of memory"), "the device"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
            "this machine",
        ),
        (MemoryError(), "this machine"),
    ],
)
def test_the_device_is_named_where_torch_names_it(error: Exception, device: str) -> None:
    assert exhausted(error) == device
    assert f"{device}'s memory ran out" in status_of(error).message


def test_the_machines_own_refusal_is_known() -> None:
    with pytest.raises(RuntimeError) as refused:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(refused.value)


@pytest.mark.parametrize("error", [RuntimeError("a kernel failed"), ValueError("odd"), OSError(28, "disk full")])
def test_other_errors_are_not_taken_for_it(error: Exception) -> None:
    assert not is_out_of_memory(error)
