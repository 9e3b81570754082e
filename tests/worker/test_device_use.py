"""How much of each device is in use: asked of the driver's tool, shown as a series for each device."""

import math
import os
import threading
from collections.abc import Callable
from pathlib import Path

import prometheus_client
import psutil
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from crosscope_worker.device_use import DeviceUse, Use, UseCollector

UNKNOWN = (Use("cuda:0"), Use("cuda:1"))
MIB = 1 << 20


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts a tool of that name and text in front of all others; gives a file with a line for each question."""
    asked = tmp_path / "asked"
    asked.touch()

    def put(text: str) -> Path:
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f'#!/bin/sh\necho "$*" >>{asked}\n{text}\n')
        tool.chmod(0o755)
        return asked

    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-7")
    return put


TWO = """case "$*" in *"-i 4") echo "1000, 81559, 37" ;; *"-i GPU-7") echo "2000, 81559, [N/A]" ;; *) exit 1 ;; esac"""


def test_each_device_is_asked_for_once_a_second(driver: Callable[[str], Path]) -> None:
    asked, now = driver(TWO), [0.0]
    use = DeviceUse(("cuda:0", "cuda:1"), lambda: now[0])
    expected = (
        Use("cuda:0", 1000 * MIB, 81559 * MIB, 0.37),
        Use("cuda:1", 2000 * MIB, 81559 * MIB, None),
    )
    assert (use.now(), use.now()) == (expected, expected)
    assert len(asked.read_text().splitlines()) == 2
    now[0] = 1.5
    assert use.now() == expected
    assert len(asked.read_text().splitlines()) == 4


def test_a_series_for_each_device(driver: Callable[[str], Path]) -> None:
    asked = driver(TWO)
    registry = CollectorRegistry()
    UseCollector(DeviceUse(("cuda:0", "cuda:1")), with_memory=True, registry=registry)
    assert asked.read_text() == ""  # nobody is asked while a process starts
    families = text_string_to_metric_families(prometheus_client.generate_latest(registry).decode())
    found = {(each.name, each.labels["device"]): each.value for family in families for each in family.samples}
    assert math.isnan(found.pop(("crosscope_device_utilisation_ratio", "cuda:1")))
    assert found == {
        ("crosscope_device_utilisation_ratio", "cuda:0"): 0.37,
        ("crosscope_device_memory_allocated_bytes", "cuda:0"): 1000 * MIB,
        ("crosscope_device_memory_allocated_bytes", "cuda:1"): 2000 * MIB,
        ("crosscope_device_memory_limit_bytes", "cuda:0"): 81559 * MIB,
        ("crosscope_device_memory_limit_bytes", "cuda:1"): 81559 * MIB,
    }


def test_who_may_not_wait_gets_the_last_answer(driver: Callable[[str], Path], tmp_path: Path) -> None:
    os.mkfifo(gate := tmp_path / "gate")
    driver(f'read line <{gate}; echo "1000, 81559, 37"')
    use = DeviceUse(("cuda:0",))
    assert (use.last(), use.last()) == (UNKNOWN[:1], UNKNOWN[:1])
    [asking] = [each for each in threading.enumerate() if each.name == "device use"]  # of both calls
    gate.write_text("go\n")
    asking.join(20)
    assert use.last() == (Use("cuda:0", 1000 * MIB, 81559 * MIB, 0.37),)


@pytest.mark.parametrize("text", ["exit 9", "echo", "echo nonsense"])
def test_a_driver_that_does_not_say_leaves_the_use_unknown(driver: Callable[[str], Path], text: str) -> None:
    driver(text)
    assert DeviceUse(("cuda:0", "cuda:1")).now() == UNKNOWN


def test_the_cpu_is_the_machines() -> None:
    for found in (DeviceUse(("cpu",)).now(), DeviceUse(("cpu",)).last()):
        [use] = found
        assert use.limit_bytes == psutil.virtual_memory().total
        assert use.used_bytes is not None
        assert 0 < use.used_bytes < use.limit_bytes
        assert use.busy is not None
        assert 0 <= use.busy <= 1
    assert DeviceUse(("meta",)).now() == (Use("meta"),)
