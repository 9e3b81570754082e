"""Keeps programs running: starts them in order, restarts what ends, stops everything. Knows no program by name.

One loop in the main thread does all of this. Other threads only wait for a program to answer; they may call `stop()`
and `wait_ready()`.
"""

import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from types import FrameType

from crosscope_local.child import Child, Program
from crosscope_local.logs import LogTail, rotate

Say = Callable[[str, str], None]
"""Called with a level ("info", "warning" or "error") and a sentence for the person at the terminal."""

_LOOP_S = 0.05
_PROBE_EVERY_S = 0.1
_LOG_EVERY_S = 0.5
_ALIVE_FOR_S = 1.0
_RESTART_DELAYS_S = (0.2, 0.5, 1.0, 2.0, 4.0)
_STEADY_AFTER_S = 20.0
_SLOW_START_S = 60.0
_STOP_REST_AFTER_S = 2.5
_KILL_AFTER_S = 4.0
_REAP_WITHIN_S = 0.8


class State(Enum):
    """The state of a program."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    GIVEN_UP = "given up"
    STOPPED = "stopped"


class _Kept:
    """A program, its present process and its history."""

    def __init__(self, program: Program, log: Path) -> None:
        self.program = program
        self.log = log
        self.tail = LogTail(log)
        self.child: Child | None = None
        self.state = State.WAITING
        self.quick_failures = 0
        self.due_at = 0.0
        self.was_ready = threading.Event()
        self.told_slow = False


class Supervisor:
    """Runs programs until it is told to stop."""

    def __init__(self, programs: Sequence[Program], logs: Path, say: Say) -> None:
        """`logs` is the folder of the log files, one for each program; this call rotates them."""
        self._kept = {program.name: _Kept(program, logs / f"{program.name}.log") for program in programs}
        for kept in self._kept.values():
            rotate(kept.log)
        self._say = say
        self._stopping = False
        self._kill_now = False
        self._failed = False

    def states(self) -> dict[str, State]:
        """Where each program stands."""
        return {name: kept.state for name, kept in self._kept.items()}

    def pids(self) -> dict[str, int]:
        """Process ids of the programs that run."""
        return {name: kept.child.pid for name, kept in self._kept.items() if kept.child}

    @property
    def stopping(self) -> bool:
        """Whether it was told to stop."""
        return self._stopping

    def stop(self) -> None:
        """Asks the loop to stop everything. Safe in a signal handler and in other threads."""
        self._stopping = True

    def kill(self) -> None:
        """Like `stop()`, but waits for no process to end."""
        self._kill_now = self._stopping = True

    def wait_ready(self, name: str, timeout_s: float) -> bool:
        """Waits until a program has been ready once. False if it was given up, at a stop, or after `timeout_s`."""
        kept, end = self._kept[name], time.monotonic() + timeout_s
        while not kept.was_ready.wait(_PROBE_EVERY_S):
            if self._stopping or kept.state is State.GIVEN_UP or time.monotonic() > end:
                return False
        return True

    def run(self) -> bool:
        """Keeps the programs running until `stop()`; then stops them all, within 5 s.

        Returns False if a program had to be given up. Must be called from the main thread.
        """
        next_look = 0.0
        try:
            while not self._stopping:
                now = time.monotonic()
                for kept in self._kept.values():
                    self._advance(kept, now)
                if now >= next_look:
                    next_look = now + _LOG_EVERY_S
                    self._report_logs()
                time.sleep(_LOOP_S)
        finally:
            self._stopping = True
            self._stop_all()
        return not self._failed

    def _advance(self, kept: _Kept, now: float) -> None:
        child = kept.child
        if kept.state is State.WAITING:
            if all(self._kept[name].was_ready.is_set() for name in kept.program.after):
                self._start(kept)
        elif kept.state is State.RESTARTING:
            if now >= kept.due_at:
                self._start(kept)
        elif child and child.has_ended():
            self._recover(kept, child, now)
        elif child and kept.state is State.STARTING:
            if child.ready:
                kept.state = State.READY
                kept.was_ready.set()
                if kept.quick_failures or kept.due_at:
                    self._say("info", f"{kept.program.name} is back.")
            elif now - child.started_at > _SLOW_START_S and not kept.told_slow:
                kept.told_slow = True
                self._say(
                    "warning",
                    f"{kept.program.name} does not answer {_SLOW_START_S:.0f} s after its start; {_see(kept)}",
                )

    def _start(self, kept: _Kept) -> None:
        try:
            child = Child(kept.program, kept.log)
        except OSError as error:
            self._schedule(kept, f"could not be started: {error}", time.monotonic())
            return
        kept.child, kept.state = child, State.STARTING
        threading.Thread(target=self._await_ready, args=(kept.program, child), daemon=True).start()

    def _await_ready(self, program: Program, child: Child) -> None:
        while not (child.ready or self._stopping or child.has_ended()):
            child.ready = program.probe() if program.probe else time.monotonic() - child.started_at > _ALIVE_FOR_S
            time.sleep(_PROBE_EVERY_S)

    def _recover(self, kept: _Kept, child: Child, now: float) -> None:
        child.kill_rest()
        if kept.state is State.READY and now - child.started_at >= _STEADY_AFTER_S:
            kept.quick_failures = 0
        self._schedule(kept, child.ending(), now)

    def _schedule(self, kept: _Kept, ending: str, now: float) -> None:
        name, failures = kept.program.name, kept.quick_failures
        kept.child = None
        if failures >= len(_RESTART_DELAYS_S):
            kept.state, self._failed = State.GIVEN_UP, True
            self._say("error", f"{name} {ending}. Gave up on it after {_starts(failures + 1)}; {_see(kept)}")
            if kept.program.essential:
                self._stopping = True
            return
        delay = _RESTART_DELAYS_S[failures]
        kept.state, kept.due_at, kept.quick_failures = State.RESTARTING, now + delay, failures + 1
        self._say("warning", f"{name} {ending}. Starting it again in {delay:g} s; {_see(kept)}")

    def _report_logs(self) -> None:
        for name, kept in self._kept.items():
            if kept.program.watch_log:
                for problem in kept.tail.problems():
                    self._say(problem.level, f"{name}: {problem.text}")

    def _stop_all(self) -> None:
        running = [kept for kept in self._kept.values() if kept.child]
        children = [kept.child for kept in running if kept.child]
        rest = [kept.child for kept in running if kept.child and kept.program.stop_last]
        users = [child for child in children if child not in rest]
        begun = time.monotonic()
        for child in users:
            child.terminate()
        self._await_ends(users, begun + _STOP_REST_AFTER_S)
        for child in rest:
            child.terminate()
        self._await_ends(children, begun + _KILL_AFTER_S)
        stubborn = [kept.program.name for kept in running if kept.child and not kept.child.has_ended()]
        if stubborn and not self._kill_now:
            self._say("warning", f"{', '.join(stubborn)} did not end within {_KILL_AFTER_S:g} s and had to be killed.")
        for child in children:
            child.kill_rest()
        end = time.monotonic() + _REAP_WITHIN_S
        while time.monotonic() < end and not all(child.is_gone() for child in children):
            time.sleep(_LOOP_S)
        for kept in self._kept.values():
            kept.state = State.STOPPED

    def _await_ends(self, children: Sequence[Child], end: float) -> None:
        while time.monotonic() < end and not self._kill_now and not all(child.has_ended() for child in children):
            time.sleep(_LOOP_S)


def _starts(count: int) -> str:
    return "1 start" if count == 1 else f"{count} starts"


def _see(kept: _Kept) -> str:
    return f"its log is {kept.log}"


@contextmanager
def stopped_by_signals(supervisor: Supervisor) -> Generator[list[int]]:
    """Lets SIGINT, SIGTERM and SIGHUP stop the supervisor; a second Ctrl-C kills. Yields the list of signals so far."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(number)
        if number == signal.SIGINT and len(received) > 1:
            supervisor.kill()
        else:
            supervisor.stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
