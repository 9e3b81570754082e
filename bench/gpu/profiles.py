"""Where time goes on the device: kernels by time, and lines of Python that wait for it. Does not know what runs."""

import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bench.gpu.rows import Run


@dataclass(frozen=True)
class Kernels:
    """What ran on the device, per call of the work."""

    ms: float
    launches: float
    largest: list[tuple[str, float, float]]
    """Name, milliseconds and launches of the kernels that took longest."""
    busy: float
    """Share of the time from the first kernel's start to the last one's end in which any kernel ran."""


def kernels(run: Run, work: Callable[[], object], calls: int = 3, top: int = 10) -> Kernels | None:
    """The kernels of `calls` calls of `work`; None on a CPU."""
    if run.device.type != "cuda":
        work()
        return None
    run.sync()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(calls):
            work()
        run.sync()
    spent: Counter[str] = Counter()
    count: Counter[str] = Counter()
    spans: list[tuple[float, float]] = []
    for event in found.events() or ():
        if event.device_type == DeviceType.CUDA:
            spent[event.name] += event.time_range.elapsed_us() / 1000
            count[event.name] += 1
            spans.append((event.time_range.start, event.time_range.end))
    largest = [(name[:60], ms / calls, count[name] / calls) for name, ms in spent.most_common(top)]
    return Kernels(spent.total() / calls, count.total() / calls, largest, _busy(sorted(spans)))


def _busy(spans: list[tuple[float, float]]) -> float:
    """Share of the whole span that the union of sorted spans covers."""
    if not spans:
        return 0.0
    covered, end = 0.0, spans[0][0]
    for begin, finish in spans:
        covered += max(0.0, finish - max(begin, end))
        end = max(end, finish)
    return covered / max(end - spans[0][0], 1e-9)


def waits(run: Run, work: Callable[[], object]) -> Counter[str] | None:
    """How often each line of Python waits for the device in one call of `work`; None on a CPU."""
    if run.device.type != "cuda":
        work()
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    told = [each for each in caught if "called a synchronizing" in str(each.message)]
    return Counter(f"{Path(each.filename).parent.name}/{Path(each.filename).name}:{each.lineno}" for each in told)
