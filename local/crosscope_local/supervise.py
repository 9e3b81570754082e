"""Keeps programs running: starts them, restarts what ends or hangs, stops everything. Knows no program by name.

Of a program that loads for long a standby is kept, which takes over when the program ends. Nothing is given up: what
keeps ending is started again every 30 s, and that is said once. Only settings with which a program never started end
the run. One loop in the main thread does all of this. Other threads only ask whether a program answers; they may call
`stop()` and `wait_ready()`.
"""

import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from types import FrameType

from crosscope_local.child import Child, Program, last_line
from crosscope_local.leftovers import note
from crosscope_local.logs import KEEP, Keep, LogTail, rotate

Say = Callable[[str, str], None]
"""Called with a level ("info", "warning" or "error") and a sentence for the person at the terminal."""

STANDBY_OF = "the standby of "
"""How standbys are called where what runs is noted; the program's name follows."""
_LOOP_S = 0.05
_PROBE_EVERY_S = 0.1
_ASK_EVERY_S = 2.0
_LOG_EVERY_S = 0.5
_ALIVE_FOR_S = 1.0
_RESTART_DELAYS_S = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
_FAILING_AFTER = 6
"""Quick ends in a row after which a program counts as failing."""
_STEADY_AFTER_S = 20.0
_SLOW_START_S = 60.0
_STANDBY_AFTER_S = 5.0
"""How long after a program was ready its standby is started: first callers come first."""
_STANDBY_AGAIN_AFTER_S, _STANDBY_LONGEST_S = 60.0, 3600.0
"""Pauses before a standby that ended is started again: each is twice as long as the last."""
_STOP_REST_AFTER_S = 2.5
_KILL_AFTER_S = 4.0
_REAP_WITHIN_S = 0.8


class State(Enum):
    """The state of a program."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    STOPPED = "stopped"


class _Kept:
    """A program, its present process and its history."""

    def __init__(self, program: Program, log: Path) -> None:
        self.program = program
        self.log = log
        self.tail = LogTail(log)
        self.child: Child | None = None
        self.standby: Child | None = None
        self.standby_due_at = 0.0
        self.standby_ends = 0
        """How often a standby has ended uncalled since the last one that was called."""
        self.state = State.WAITING
        self.quick_failures = 0
        self.failing = ""
        """How it ended last, if it has ended too often to be told each time; else empty."""
        self.due_at = 0.0
        self.was_ready = threading.Event()
        self.told_slow = self.told_stuck = False


class Supervisor:
    """Runs programs until it is told to stop."""

    def __init__(
        self,
        programs: Sequence[Program],
        logs: Path,
        say: Say,
        keep_logs: Keep = KEEP,
        noted_in: Path | None = None,
    ) -> None:
        """`logs` is the folder of the log files, one for each program; this call rotates them.

        What runs is noted in the file `noted_in`, for leftovers.end_leftovers.
        """
        self._kept = {program.name: _Kept(program, logs / f"{program.name}.log") for program in programs}
        for kept in self._kept.values():
            rotate(kept.log, keep_logs)
        self._say, self._keep_logs, self._noted_in = say, keep_logs, noted_in
        self._stopping = False
        self._kill_now = False

    def states(self) -> dict[str, State]:
        """Where each program stands."""
        return {name: kept.state for name, kept in self._kept.items()}

    def pids(self) -> dict[str, int]:
        """Process ids of the programs that run."""
        return {name: kept.child.pid for name, kept in self._kept.items() if kept.child}

    def standbys(self) -> dict[str, int]:
        """Process ids of those that wait in case a program ends, by the program's name."""
        return {name: kept.standby.pid for name, kept in self._kept.items() if kept.standby}

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
        """Waits until a program has been ready once. False if it keeps failing, at a stop, or after `timeout_s`."""
        kept, end = self._kept[name], time.monotonic() + timeout_s
        while not kept.was_ready.wait(_PROBE_EVERY_S):
            if self._stopping or kept.failing or time.monotonic() > end:
                return False
        return True

    def run(self) -> bool:
        """Keeps the programs running until `stop()`, or until one cannot start with its settings; then stops them all.

        That takes 5 s at most. Returns False if a program kept failing in the end. Must be called from the main thread.
        """
        next_look = 0.0
        try:
            while not self._stopping:
                now = time.monotonic()
                for kept in self._kept.values():
                    self._advance(kept, now)
                    self._advance_standby(kept, now)
                if now >= next_look:
                    next_look = now + _LOG_EVERY_S
                    self._report_logs()
                time.sleep(_LOOP_S)
        finally:
            self._stopping = True
            self._stop_all()
        return not any(kept.failing for kept in self._kept.values())

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
        elif child and child.hung():
            self._end_hung(kept, child, now)
        elif child and kept.state is State.STARTING:
            self._await_start(kept, child, now)
        elif child and kept.failing and now - child.started_at >= _STEADY_AFTER_S:
            self._tell_back(kept)

    def _end_hung(self, kept: _Kept, child: Child, now: float) -> None:
        if child.killed_at is None:
            child.kill_rest()
        elif now - child.killed_at > _KILL_AFTER_S and not kept.told_stuck:
            kept.told_stuck = True
            why = "it waits in the kernel, for a device or a file system: mend that, or restart the machine"
            self._say("error", f"{kept.program.name} {child.hung()} and does not end when killed; {why}.")

    def _await_start(self, kept: _Kept, child: Child, now: float) -> None:
        if child.ready:
            kept.state = State.READY
            kept.standby_due_at = now + _STANDBY_AFTER_S
            kept.was_ready.set()
            if (kept.quick_failures or kept.due_at) and not kept.failing:
                self._tell_back(kept)
        elif now - child.started_at > _SLOW_START_S and not kept.told_slow:
            kept.told_slow = True
            sentence = f"{kept.program.name} does not answer {_SLOW_START_S:.0f} s after its start; {_see(kept)}"
            self._say("warning", sentence)

    def _tell_back(self, kept: _Kept) -> None:
        kept.failing = ""
        self._say("info", f"{kept.program.name} is back.")

    def _advance_standby(self, kept: _Kept, now: float) -> None:
        if kept.standby is not None and kept.standby.has_ended():
            self._lose_standby(kept, kept.standby.ending(), now)
            kept.standby.kill_rest()
            kept.standby.close()
            kept.standby = None
        is_due = kept.program.has_standby and kept.state is State.READY and now >= kept.standby_due_at
        if is_due and kept.standby is None:
            try:
                kept.standby = Child(kept.program, kept.log, stands_by=True)
            except OSError as error:
                self._lose_standby(kept, f"could not be started: {error}", now)
                return
            self._note()

    def _lose_standby(self, kept: _Kept, ending: str, now: float) -> None:
        pause_s = min(_STANDBY_AGAIN_AFTER_S * 2.0 ** min(kept.standby_ends, 16), _STANDBY_LONGEST_S)
        kept.standby_due_at, kept.standby_ends = now + pause_s, kept.standby_ends + 1
        if kept.standby_ends == 1:
            again = f"another is tried after {pause_s:g} s, and ever more rarely if that ends too"
            self._say("warning", f"{STANDBY_OF}{kept.program.name} {ending}; {again}; {_see(kept)}")

    def _start(self, kept: _Kept) -> None:
        child, kept.standby = kept.standby, None
        try:
            if child is None:
                child = Child(kept.program, kept.log)
            else:
                child.call()
                kept.standby_ends = 0
        except OSError as error:
            sentence = f"could not be started: {error}"
            self._schedule(kept, sentence, sentence, time.monotonic())
            return
        kept.child, kept.state = child, State.STARTING
        self._note()
        threading.Thread(target=self._ask, args=(kept.program, child), daemon=True).start()

    def _note(self) -> None:
        if self._noted_in:
            waiting = {f"{STANDBY_OF}{name}": pid for name, pid in self.standbys().items()}
            note(self._noted_in, self.pids() | waiting)

    def _ask(self, program: Program, child: Child) -> None:
        """Waits until a child is ready; goes on asking it, if it does not beat by itself."""
        while not (child.ready or self._stopping or child.has_ended()):
            child.ready = program.probe() if program.probe else time.monotonic() - child.started_at > _ALIVE_FOR_S
            time.sleep(_PROBE_EVERY_S)
        while program.answers and not (self._stopping or child.has_ended()):
            if program.answers():
                child.beats.promise("socket", program.answers_within_s)
            time.sleep(_ASK_EVERY_S)

    def _recover(self, kept: _Kept, child: Child, now: float) -> None:
        child.kill_rest()
        child.close()
        if child.has_wrong_settings and not kept.was_ready.is_set():
            kept.child, kept.failing = None, child.manner()
            self._say("error", f"{kept.program.name} cannot start: {last_line(kept.log)}; {_see(kept)}")
            self._stopping = True
            return
        if kept.state is State.READY and now - child.started_at >= _STEADY_AFTER_S:
            kept.quick_failures = 0
        self._schedule(kept, child.manner(), child.ending(), now)

    def _schedule(self, kept: _Kept, manner: str, ending: str, now: float) -> None:
        name, failures = kept.program.name, kept.quick_failures + 1
        delay = _RESTART_DELAYS_S[min(failures, len(_RESTART_DELAYS_S)) - 1]
        kept.child, kept.quick_failures = None, failures
        kept.state, kept.due_at = State.RESTARTING, now + delay
        if failures < _FAILING_AFTER:
            self._say("warning", f"{name} {ending}. Starting it again in {delay:g} s; {_see(kept)}")
        elif kept.failing != manner:
            kept.failing = manner
            every = f"at least every {_RESTART_DELAYS_S[-1]:g} s"
            text = f"{name} {ending}, for the {failures}th time in a row. It is started again {every}; {_see(kept)}"
            self._say("error", text)

    def _report_logs(self) -> None:
        for name, kept in self._kept.items():
            if kept.program.watch_log:
                for problem in kept.tail.problems():
                    self._say(problem.level, f"{name}: {problem.text}")
            if not kept.tail.empty_if_long(self._keep_logs):
                self._say("warning", f"{kept.log} was emptied: the disk has no room to keep what stood there.")

    def _stop_all(self) -> None:
        running = [kept for kept in self._kept.values() if kept.child]
        children = [kept.child for kept in running if kept.child]
        rest = [kept.child for kept in running if kept.child and kept.program.stop_last]
        waiting = [kept.standby for kept in self._kept.values() if kept.standby]
        children += waiting
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
        for child in children:
            child.close()
        for kept in self._kept.values():
            kept.state = State.STOPPED
        if self._noted_in:
            self._noted_in.unlink(missing_ok=True)

    def _await_ends(self, children: Sequence[Child], end: float) -> None:
        while time.monotonic() < end and not self._kill_now and not all(child.has_ended() for child in children):
            time.sleep(_LOOP_S)


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
