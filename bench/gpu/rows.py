"""The contract of a section of `make bench-gpu`: its options, its sizes, its parts, and its rows.

A section is a module of this folder with a function `rows(run)`, and `sys.exit(main("its name", rows))` at its end. It
prints JSON objects, one a line, at once: {"row", "value", "unit", "reach", "detail"}, or {"row", "error"} for what has
failed.
Does not know what is measured, nor the order of the sections.
"""

import argparse
import fcntl
import gc
import json
import math
import os
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from bench.gpu.reach import bound_of

MOST_CHARACTERS = 4000
"""Longest line of a row; a longer one loses its detail, which the line says."""
LOCK = "CROSSCOPE_BENCH_LOCK"
"""Environment variable: the file that the sections of one run take turns by."""
BEGAN = "CROSSCOPE_BENCH_BEGAN"
"""Environment variable: when the section's process was started, by the machine's monotonic clock."""
_LEAST_LEFT_S = 2.0
"""A part is not begun, and a running one is broken off, where less is left to the section."""
_LONGEST_WAIT_S = 280.0
_DRY_PATIENCE = 10
"""How many times its limit a part may take with --dry, on a CPU that others use too."""
T = TypeVar("T")
Use = Literal["alone", "beside", "free"]
"""How a part uses the device: alone while it is timed; beside other checks; or hardly at all, as a compilation does."""


@dataclass(frozen=True)
class Sizes:
    """The original run's sizes."""

    d_model: int = 2304
    num_latents: int = 73_728
    k: int = 100
    batch: int = 2048
    layer: int = 13


DRY = Sizes(d_model=64, num_latents=1024, k=8, batch=64, layer=2)


@dataclass(frozen=True)
class Timing:
    """Milliseconds of rounds."""

    median: float
    lowest: float
    highest: float
    rounds: int

    def detail(self) -> dict[str, float]:
        """The spread, for a row's detail."""
        return {"lowest_ms": self.lowest, "highest_ms": self.highest, "rounds": self.rounds}


class OutOfTime(BaseException):
    """A part ran into its limit. No `except Exception` on the way holds it."""


@dataclass
class Run:
    """One run of a section."""

    dry: bool
    out: Path | None = None
    """Rows are appended to this file too."""
    seconds: float = 120
    """What the section may take."""
    device: torch.device = field(init=False)
    sizes: Sizes = field(init=False)
    failed: int = 0
    """Number of errors written."""
    _started: float = field(init=False, default_factory=lambda: float(os.environ.get(BEGAN, time.monotonic())))

    def __post_init__(self) -> None:
        self.device = torch.device("cpu" if self.dry else "cuda")
        self.sizes = DRY if self.dry else Sizes()

    def row(self, name: str, value: float, unit: str, needs_device: str = "", **detail: Any) -> None:
        """Writes a row; a value that is no finite number is written as an error.

        `needs_device`: why the value means nothing on a CPU, for a row of which that holds; a dry run says it there.
        """
        if needs_device and self.device.type != "cuda":
            detail = {"means_nothing": needs_device, **detail}
        if not math.isfinite(value):
            self.error(name, f"the value is {value}")
            return
        self._write(
            {"row": name, "value": _short(float(value)), "unit": unit, "reach": bound_of(name, unit), "detail": detail}
        )

    def error(self, name: str, why: BaseException | str) -> None:
        """Writes that what `name` names, a row or all rows below it, has not been measured, and why."""
        self.failed += 1
        said = why if isinstance(why, str) else f"{type(why).__name__}: {why}"
        where: dict[str, Any] = {}
        if isinstance(why, BaseException):
            frames = traceback.extract_tb(why.__traceback__)
            where = {"at": [f"{Path(each.filename).name}:{each.lineno}" for each in frames][-5:]}
            traceback.print_exception(why, file=sys.stderr)
        self._write({"row": name, "error": " ".join(said.split())[:600], **where})

    def left(self) -> float:
        """Seconds left to the section."""
        return self.seconds - (time.monotonic() - self._started)

    def part(self, name: str, work: Callable[[], T], limit_s: float = 30, use: Use = "alone") -> T | None:
        """What `work` returns; None, and an error under `name`, if it fails or takes longer than `limit_s`.

        The wait for the device counts towards nothing. What `work` leaves in the device's cache is freed.
        """
        if self.left() < _LEAST_LEFT_S:
            self.error(name, "not begun: no time left to this section")
            return None
        began = None
        limit = min(limit_s * (_DRY_PATIENCE if self.dry else 1), self.left() - _LEAST_LEFT_S / 2)
        try:
            with _alarm(_LONGEST_WAIT_S), self.turn(use):
                began = time.monotonic()
                with _alarm(limit):
                    return work()
        except OutOfTime:
            waited = began is None
            self.error(
                name, "no turn on the device came" if waited else f"broken off after {time.monotonic() - began:.0f} s"
            )
        except Exception as error:
            self.error(name, error)
        finally:
            self.free()
        return None

    @contextmanager
    def turn(self, use: Use) -> Generator[None]:
        """Waits until the device may be used so. A part that is "free" takes turns for its pieces by this.

        What waits to be alone is let in before later checks.
        """
        path = os.environ.get(LOCK)
        if use == "free" or not path or self.device.type != "cuda":
            yield
            return
        waiting, began = waits_at(path, os.getpid()), time.monotonic()
        waiting.touch()
        try:
            with Path(path).open("a") as device, Path(f"{path}.gate").open("a") as gate:
                fcntl.flock(gate, fcntl.LOCK_EX)
                fcntl.flock(device, fcntl.LOCK_EX if use == "alone" else fcntl.LOCK_SH)
                fcntl.flock(gate, fcntl.LOCK_UN)
                waiting.unlink()
                self.seconds += time.monotonic() - began
                yield
                self.sync()
        finally:
            waiting.unlink(missing_ok=True)

    def timed(self, work: Callable[[], object], rounds: int = 10, warm_up: int = 3, budget_s: float = 5) -> Timing:
        """Milliseconds of `work` between events on the device, by the clock on a CPU.

        Rounds end early once they took `budget_s`; warming up is not counted.
        """
        for _ in range(warm_up):
            work()
        self.sync()
        took: list[float] = []
        started = time.monotonic()
        while len(took) < rounds and (not took or time.monotonic() - started < budget_s):
            took.append(self._once(work))
        return Timing(statistics.median(took), min(took), max(took), len(took))

    def _once(self, work: Callable[[], object]) -> float:
        if self.device.type != "cuda":
            started = time.perf_counter()
            work()
            return 1000 * (time.perf_counter() - started)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)

    def wall(self, work: Callable[[], T]) -> tuple[float, T]:
        """Seconds by the clock, from an idle device to an idle device, and what `work` returns."""
        self.sync()
        started = time.perf_counter()
        found = work()
        self.sync()
        return time.perf_counter() - started, found

    def sync(self) -> None:
        """Waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def free(self) -> None:
        """Gives back what nothing refers to."""
        gc.collect()
        if self.device.type == "cuda":
            with suppress(RuntimeError):  # A device that has failed says so to whoever uses it next.
                torch.cuda.empty_cache()

    def start_peak(self) -> int:
        """Bytes held on the device now; from here on the peak is counted. 0 on a CPU."""
        if self.device.type != "cuda":
            return 0
        self.sync()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()

    def peak_gib(self, held: int = 0) -> float:
        """GiB at the peak since `start_peak`, less `held` bytes. 0 on a CPU."""
        return (torch.cuda.max_memory_allocated() - held) / 2**30 if self.device.type == "cuda" else 0.0

    def _write(self, line: Mapping[str, Any]) -> None:
        text = json.dumps(_short(line), default=str)
        if len(text) > MOST_CHARACTERS:
            text = json.dumps(
                {**_short(line), "detail": {"left_out": f"{len(text)} characters of detail"}}, default=str
            )
        print(text, flush=True)
        if self.out:
            with self.out.open("a", encoding="utf-8") as file:
                file.write(text + "\n")


def waits_at(lock: str, process: int) -> Path:
    """The file that is there while a process waits for its turn."""
    return Path(f"{lock}.{process}.waits")


def main(name: str, rows: Callable[[Run], None], arguments: Sequence[str] | None = None) -> int:
    """Runs a section by its command line; returns 0, or 1 if anything was not measured."""
    parser = argparse.ArgumentParser(
        prog=f"python -m bench.gpu.{name}",
        description="A section of `make bench-gpu`; prints a JSON object for every row.",
    )
    parser.add_argument("--dry", action="store_true", help="tiny sizes on the CPU: shows that it runs, proves nothing")
    parser.add_argument("--out", type=Path, metavar="FILE", help="append the rows to FILE too")
    parser.add_argument("--seconds", type=float, default=120, help="what the section may take (default 120)")
    options = parser.parse_args(arguments)
    if not (options.dry or torch.cuda.is_available()):
        parser.error("torch finds no CUDA device; --dry runs the section at tiny sizes on the CPU")
    run = Run(options.dry, options.out, options.seconds)
    try:
        rows(run)
    except Exception as error:
        run.error(name, error)
    return int(run.failed > 0)


def _short(value: Any) -> Any:
    """The same with numbers cut to five digits."""
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): _short(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_short(each) for each in value]
    return value


@contextmanager
def _alarm(seconds: float) -> Generator[None]:
    """Raises OutOfTime in the main thread after `seconds`; what ran before runs on afterwards."""

    def ring(*_: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    left, _ = signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.1))
    started = time.monotonic()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - started), 0.1) if left else 0)
        signal.signal(signal.SIGALRM, before)
