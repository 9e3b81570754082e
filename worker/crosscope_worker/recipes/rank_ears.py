"""What ranks on this machine tell the job's process through their pipes, and when they are killed.

Does not know how ranks are started, nor what they do.
"""

import contextlib
import math
import os
import pickle
import signal
import time
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, Self, cast

from crosscope_proto.beats import Listener
from crosscope_worker.recipes.rank_reports import CLOSE_S, LINGER_S
from crosscope_worker.work import Progress

LAST_WORDS = ("failed", "lost", "ended")
"""What a rank tells last; after that it need not show that it lives."""


class Ears:
    """The reading ends of the ranks' pipes, and what was heard. A context: at its end they are closed."""

    def __init__(self, num_ranks: int, beat_s: float) -> None:
        """A rank that has not moved for `beat_s` seconds is killed."""
        both = cast("list[tuple[Connection, Connection]]", [Pipe(duplex=False) for _ in range(num_ranks)])
        self._reading, self._beat_s = [reading for reading, _ in both], beat_s
        self._open = list(self._reading)
        self.pipes = [writing for _, writing in both]
        """The writing ends, open here until all ranks have them."""
        self._pids: dict[int, int] = {}
        self.errors: list[tuple[float, int, Any]] = []
        """Errors of ranks that starting again cannot mend: when they were told, of which rank, and what was told."""
        self.ended: set[int] = set()
        """Ranks whose training has ended."""
        self.left: list[int] = []
        """Ranks that went without a last word, before any was killed here."""
        self.killed = False
        """Whether ranks were killed here because one could not go on, or all had ended."""
        self._kill_at = math.inf
        self.hung: dict[int, str] = {}
        """How ranks hung that were killed for it."""
        self.lost: dict[int, str] = {}
        """What ranks said whose calls to others failed."""
        self._beats = Listener()
        self._beats.started()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._beats.close()
        for pipe in (*self._reading, *self.pipes):
            pipe.close()

    def hear(self, progress: Progress, wait_s: float = 0.1) -> bool:
        """Takes what ranks have told, at most one message each; False if there was none. Raises as `progress`."""
        ready = wait(self._open, timeout=wait_s)
        for pipe in ready:
            assert isinstance(pipe, Connection)
            try:
                told = pipe.recv()
            except (EOFError, OSError, pickle.UnpicklingError):  # cut short: its process was killed
                self._open.remove(pipe)
                self._lose(self._reading.index(pipe))
                continue
            rank = self._reading.index(pipe)
            ends = told[0] in LAST_WORDS
            self._beats.promise(f"rank {rank}", math.inf if ends else self._beat_s)
            self._take(rank, told, progress)
        if time.monotonic() > self._kill_at:
            self.killed = True
            self.kill()
        if (silence := self._beats.silence()) and not self.hung:
            rank = int(silence.part.removeprefix("rank "))
            if (pid := self._pids.get(rank)) is not None:
                self.hung[rank] = f"rank {rank} hung (no sign of life for {silence.for_s:.0f} s) and was killed"
                _kill(pid)
        return bool(ready)

    def kill(self) -> None:
        """Kills the ranks that have told their process id."""
        for pid in self._pids.values():
            _kill(pid)
        self._pids.clear()

    def _take(self, rank: int, told: tuple[str, Any], progress: Progress) -> None:
        kind, what = told
        if kind == "started":
            self._pids[rank] = what
            if len(self._pids) == len(self.pipes):
                for pipe in self.pipes:  # So that a pipe ends with its process.
                    pipe.close()
        elif kind == "progress":
            positional, named = what
            progress(*positional, **named)
        elif kind == "failed":
            moment, error = what
            self.errors.append((moment, rank, error))
            self._kill_within(CLOSE_S)
        elif kind == "lost":
            self.lost[rank] = what[1]
            self._kill_within(LINGER_S + CLOSE_S)
        elif kind == "ended":
            self.ended.add(rank)
            if self.all_ended:
                self._kill_within(CLOSE_S)

    def _lose(self, rank: int) -> None:
        spoke = {*self.ended, *self.lost, *(each for _, each, _ in self.errors)}
        if rank not in spoke and not self.killed:
            self.left.append(rank)
            self._kill_within(CLOSE_S)

    def _kill_within(self, seconds: float) -> None:
        self._kill_at = min(self._kill_at, time.monotonic() + seconds)

    @property
    def all_ended(self) -> bool:
        """Whether all ranks have ended their training."""
        return len(self.ended) == len(self._reading)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
