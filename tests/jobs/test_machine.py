"""What a job worker says of its device."""

import os
from pathlib import Path

import psutil
import pytest

from crosscope_worker.jobs.machine import Machine, find_machine, one_device
from crosscope_worker.jobs.settings import JobSettings


def test_the_cpu_is_named_by_its_cores_with_its_memory() -> None:
    found = find_machine("cpu")
    cores = len(os.sched_getaffinity(0))
    assert (found.device, found.name) == ("cpu", f"{cores} CPU core{'s' * (cores != 1)}")
    assert found.memory_bytes is not None
    assert 0 < (found.free_bytes() or 0) <= found.memory_bytes <= psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("device", "visible", "asked", "number"),
    [("cuda", "", "0", 3), ("cuda", "5, 7", "5", 2), ("cuda:1", "5, 7", "7", 1)],
)
def test_a_gpu_is_described_by_its_drivers_tool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, visible: str, asked: str, number: int
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        f"""#!/bin/sh
        case "$*" in
            *query-gpu=index*) printf '0\\n1\\n2\\n' ;;
            *"-i {asked}") echo "NVIDIA H100 80GB HBM3, 81559" ;;
            *) exit 1 ;;
        esac
        """.replace("        ", "", 1)
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = find_machine(device)
    assert found == Machine(device, "NVIDIA H100 80GB HBM3", 81559 << 20, number)
    assert found.free_bytes() is None
    assert found.devices == ((device,) if number == 1 else tuple(f"cuda:{index}" for index in range(number)))


@pytest.mark.parametrize(
    ("said", "device"),
    [("cpu", "cpu"), ("cuda:1", "cuda:1"), ("cuda:0,cuda:1", "cuda:1"), ("cuda:0+cuda:1, cuda:2+cuda:3", "cuda:2")],
)
def test_jobs_take_the_chat_models_first_device(said: str, device: str) -> None:
    assert JobSettings(queue_url="redis://127.0.0.1:1", device=said).device == device


def test_auto_is_a_gpu_if_a_driver_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert one_device("auto") == "cpu"
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\necho "NVIDIA H100 80GB HBM3"\n')
    tool.chmod(0o755)
    assert one_device("auto") == "cuda"


def test_a_gpu_that_cannot_be_asked_has_unknown_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_machine("cuda") == Machine("cuda", "cuda", None)
