"""Reports of a job's long phases: how much is done, of how much, and how long the rest takes.

Knows Progress and Tick; knows neither models nor files.
"""

import contextlib
import math
import threading
import time
from collections.abc import Generator, Mapping, Sequence

import psutil

from crosscope_proto.specs import TrainingSpec
from crosscope_proto.stages import Stage
from crosscope_worker.work import Progress, Stopped


class Phase:
    """A Tick that reports a stage: the share and the amount that is done, and how long the rest takes."""

    def __init__(self, progress: Progress, stage: str, doing: str, total: int, unit: str) -> None:
        """Reports the beginning. `total` is in `unit`, "bytes" or "tokens", and may be a guess; 0: not known."""
        self._progress, self._stage, self._doing, self._total, self._unit = progress, stage, doing, total, unit
        self._done, self._began = 0, time.monotonic()
        self(0)

    def __call__(self, count: int) -> None:
        """See Tick."""
        self._done += count
        share = min(1.0, self._done / self._total) if self._total else 0.0
        amount = f"{_amount(self._done)} of {_amount(self._total)}" if self._total else _amount(self._done)
        took = time.monotonic() - self._began
        left = f", about {took * (1 - share) / share:.0f} s left" if 0 < share < 1 and took > 1 else ""
        self._progress(self._stage, share, f"{self._doing}: {amount} {self._unit}{left}")


@contextlib.contextmanager
def loading(progress: Progress, doing: str, total: int) -> Generator[None]:
    """Reports stage "load" each second, from a thread of its own: how many of `total` bytes are loaded.

    For libraries that load everything in one call. The share is how much the process has grown, at most 0.9.
    """
    done, process, began = threading.Event(), psutil.Process(), time.monotonic()
    before = process.memory_info().rss

    def watch() -> None:
        while not done.wait(1.0):
            grown = max(0, process.memory_info().rss - before)
            share = min(0.9, grown / total) if total else 0.0
            amount = f"{grown / 1e6:.0f} of about {total / 1e6:.0f} MB" if total else f"{grown / 1e6:.0f} MB"
            try:
                progress(Stage.LOAD, share, f"{doing}: {amount} after {time.monotonic() - began:.0f} s")
            except Stopped:
                return  # The job's own thread hears of it at its next step.

    progress(Stage.LOAD, 0.0, doing)
    thread = threading.Thread(target=watch, name="loading", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class Following:
    """A Progress that remembers the stage, fraction and step reported last, so that other code can add a message."""

    def __init__(self, progress: Progress, stage: str) -> None:
        self._progress = progress
        self._last = stage, 0.0, 0
        self._num_read = 0

    def __call__(
        self,
        stage: str,
        fraction: float,
        message: str = "",
        *,
        step: int = 0,
        metrics: Mapping[str, float] | None = None,
        rel_norms: Sequence[int] = (),
    ) -> None:
        """See Progress."""
        self._last, self._num_read = (stage, fraction, step), 0
        self._progress(stage, fraction, message, step=step, metrics=metrics, rel_norms=rel_norms)

    def say(self, message: str) -> None:
        """Reports a message at the stage, fraction and step that were reported last."""
        stage, fraction, step = self._last
        self._progress(stage, fraction, message, step=step)

    def tick(self, count: int) -> None:
        """See Tick: tokens that both models have read for what comes next."""
        self._num_read += count
        self.say(f"running both models: {_amount(self._num_read)} tokens of the next texts")


class TrainingProgress(Following):
    """The Progress of a training. Its first stage is to read what fills the shuffle buffer before the first step."""

    def __init__(self, progress: Progress, training: TrainingSpec, window: int, share: float = 1.0) -> None:
        """`window`: about how many tokens both models read at a time. The buffer is filled by whole windows.

        `share`: of the whole buffer that is filled here.
        """
        super().__init__(progress, Stage.FILL)
        wanted = math.ceil(share * max(training.buffer_tokens, 2 * training.batch_size))
        self._capacity = -(-wanted // window) * window
        self._end = "" if training.max_steps is None else f" of {training.max_steps}"
        self._filling: Phase | None = None

    def __call__(
        self,
        stage: str,
        fraction: float,
        message: str = "",
        *,
        step: int = 0,
        metrics: Mapping[str, float] | None = None,
        rel_norms: Sequence[int] = (),
    ) -> None:
        """See Progress."""
        said = message or f"step {step}{self._end}"
        super().__call__(stage, fraction, said, step=step, metrics=metrics, rel_norms=rel_norms)

    def begin(self, suggestion: str = "") -> None:
        """Reports that the models run, or a checkpoint is read, from here on. A suggestion stays in the job's log."""
        self(Stage.FILL, 0.0, suggestion or "opening the data")

    def tick(self, count: int) -> None:
        """See Tick: tokens that both models have read."""
        if self._last[0] != Stage.FILL:
            super().tick(count)
        else:
            self._filling = self._filling or Phase(
                self._progress, Stage.FILL, "running both models to fill the buffer", self._capacity, "tokens"
            )
            self._filling(count)


def _amount(number: int) -> str:
    for size, letter in ((10**9, "billion"), (10**6, "million")):
        if number >= size:
            return f"{number / size:.2f} {letter}"
    return str(number)
