"""Runs sections as processes: two at a time, first those that measure, then those that check; each ends at its limit.

Knows how a process is started, read and ended; does not know what its lines mean.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bench.gpu.rows import BEGAN, LOCK, waits_at
from bench.gpu.sections import Section

ROOT = Path(__file__).parents[2]
ROOM_GIB = 74.0
"""Memory of a card of 80 GB that sections may share."""
AT_ONCE = 2
"""Sections that run side by side: while one has the device, the next one loads and compiles."""
CHECKED_S = 75.0
"""Seconds that are left to the sections that check, where there are any."""
CHECKED_THREADS = "2"
"""Threads of the CPU for each process that checks; tests are four processes."""
LEAST_S = 10.0
"""A section is not started where less time is left."""
MOST_LINES = 400
"""Lines of a section's standard output that are read; the rest is counted."""
MOST_LOGGED = 1_000_000
"""Characters of a section's standard error that are kept; the rest is counted."""
_PAUSE_S = 0.05
_GRACE_S = 3.0
"""Between asking a section to end and ending it."""


@dataclass(frozen=True)
class Ended:
    """How a section ended."""

    section: Section
    began_s: float
    """Seconds from the start of all."""
    took_s: float
    why: str | None = None
    """Why it was not run, or ended before its own end; None where it ended by itself with status 0 or 1."""


class Process:
    """A section's process group, and the threads that read what it writes."""

    def __init__(
        self,
        section: Section,
        limit_s: float,
        options: Sequence[str],
        environment: dict[str, str],
        on_line: Callable[[str], None],
        log: Callable[[str], None],
    ) -> None:
        """`on_line` gets lines of standard output, `log` those of standard error, each from a thread of its own."""
        self.section, self.limit_s, self.began = section, limit_s, time.monotonic()
        self._asked: float | None = None
        self._looked, self._waited = self.began, 0.0
        self._lock = environment[LOCK]
        command = [sys.executable, "-m", f"bench.gpu.{section.name}", "--seconds", f"{limit_s:.0f}", *options]
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment | {BEGAN: str(self.began)} | _threads(section),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._readers = [
            threading.Thread(target=_lines, args=(self._process.stdout, on_line, MOST_LINES, 10**9), daemon=True),
            threading.Thread(target=_lines, args=(self._process.stderr, log, 10**9, MOST_LOGGED), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def ended(self) -> bool:
        """Whether the process is gone. Asks one that is over its limit to end, and ends one that does not.

        Time in which it waits for the device does not count.
        """
        if self._process.poll() is not None:
            return True
        now = time.monotonic()
        if waits_at(self._lock, self._process.pid).exists():
            self._waited += now - self._looked
        self._looked = now
        over = now - self.began - self._waited - self.limit_s
        if over > 0:
            self.end()
        if self._asked is not None and now - self._asked > _GRACE_S:
            self.kill()
        return False

    def end(self) -> None:
        """Asks the process to end; some seconds later it is ended."""
        if self._asked is None:
            self._asked = time.monotonic()
            self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends the process and all that it has started."""
        self._signal(signal.SIGKILL)

    def outcome(self, started: float) -> Ended:
        """How the process ended, once all that it wrote has been read."""
        self.kill()  # what it has started and left behind
        for reader in self._readers:
            reader.join(_GRACE_S)
        code = self._process.wait()
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()
        why = None
        if self._asked is not None:
            why = f"ended at its limit or that of all, after {self._asked - self.began:.0f} s"
        elif code not in (0, 1):
            why = f"ended with status {code}" if code > 0 else f"ended by {signal.Signals(-code).name}"
        return Ended(self.section, self.began - started, time.monotonic() - self.began, why)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def run_all(
    sections: Sequence[Section],
    seconds: float,
    options: Sequence[str],
    on_line: Callable[[Section, str], None],
    log: Callable[[Section, str], None],
    on_end: Callable[[Ended], None],
) -> None:
    """Runs the sections within `seconds`, in this order, those that check last; some time is left to them.

    `on_line` gets each line of a section's standard output when it comes, `log` those of its standard error, `on_end`
    how each section ended, also one that was not begun. They are called from several threads.
    """
    started = time.monotonic()
    waiting, running = sorted(sections, key=lambda each: each.kind == "checked"), list[Process]()
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder:
        environment = os.environ | {LOCK: str(Path(folder) / "device"), "PYTHONUNBUFFERED": "1"}
        try:
            while waiting or running:
                left = seconds - (time.monotonic() - started)
                kept = CHECKED_S if any(each.kind == "checked" for each in waiting) else 0.0
                left_to = {"measured": left - kept, "checked": left}
                for process in running:
                    if left_to[process.section.kind] < _GRACE_S:
                        process.end()
                for section in [each for each in waiting if left_to[each.kind] < LEAST_S]:
                    waiting.remove(section)
                    on_end(Ended(section, seconds - left, 0, "not begun: no time left"))
                if waiting and _has_room(waiting, running):
                    section = waiting.pop(0)
                    limit = min(section.limit_s, left_to[section.kind] - _GRACE_S)
                    telling = _for(section, on_line), _for(section, log)
                    running.append(Process(section, limit, options, environment, *telling))
                for process in [each for each in running if each.ended()]:
                    running.remove(process)
                    on_end(process.outcome(started))
                time.sleep(_PAUSE_S)
        finally:
            for process in running:
                process.kill()


def _has_room(waiting: Sequence[Section], running: Sequence[Process]) -> bool:
    """Whether the first that waits may begin."""
    section, others = waiting[0], [each.section for each in running]
    if any(each.is_alone or section.is_alone or each.kind != section.kind for each in others):
        return False
    return len(others) < AT_ONCE and section.gib + sum(each.gib for each in others) <= ROOM_GIB


def _threads(section: Section) -> dict[str, str]:
    return {"OMP_NUM_THREADS": CHECKED_THREADS} if section.kind == "checked" else {}


def _for(section: Section, tell: Callable[[Section, str], None]) -> Callable[[str], None]:
    return lambda line: tell(section, line)


def _lines(stream: IO[str], tell: Callable[[str], None], most_lines: int, most_characters: int) -> None:
    """Tells the first lines of a stream, and at last how many were left out."""
    lines = characters = left_out = 0
    for line in stream:
        if lines < most_lines and characters + len(line) <= most_characters:
            tell(line)
            lines, characters = lines + 1, characters + len(line)
        else:
            left_out += 1
    if left_out:
        tell(f"({left_out} more lines were left out)\n")
