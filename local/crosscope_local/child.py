"""One child process, its log file and its end. Does not know when it should run.

A child leads a session of its own. So the terminal's Ctrl-C does not reach it, and whatever it started can be found and
killed by the session after the child itself has ended.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from crosscope_proto.beats import Listener
from crosscope_proto.ending import WRONG_SETTINGS
from crosscope_proto.environment import needed
from crosscope_proto.standby import Call

_LAUNCH = Path(__file__).with_name("launch.py")
_LAST_LINE_BYTES = 4096
_FIRST_BEAT_S = 180.0
"""How long a called standby may take to beat, so that one that was stopped while it waited is found. It may be called
while it still loads, on a machine that is busy."""
_DEAD = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)

Probe = Callable[[], bool]
"""Says whether a process answers; returns within about a second and never raises."""


@dataclass(frozen=True)
class Program:
    """A process to be kept running."""

    name: str
    command: tuple[str, ...]
    """Absolute path of the executable, then its arguments."""
    probe: Probe | None
    """None for a process that listens nowhere; it counts as ready when it has lived for a second."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables that are set for it."""
    defaults: Mapping[str, str] = field(default_factory=dict)
    """Environment variables that it gets unless the supervisor's environment sets them and it `reads` them."""
    reads: tuple[Sequence[str], ...] = ()
    """Groups of the supervisor's environment variables that it gets beside those that every program gets
    (crosscope_proto.environment)."""
    after: tuple[str, ...] = ()
    """Names of programs that must have been ready before this one is first started."""
    answers: Probe | None = None
    """Asked again and again once it is ready, of a process that does not beat by itself (crosscope_proto.beats)."""
    answers_within_s: float = 30.0
    """How long `answers` may stay false before the process counts as hung."""
    stop_last: bool = False
    """Whether it is stopped after the others have ended, because they use it to the end."""
    has_standby: bool = False
    """Whether a second process is kept that has loaded everything and waits (crosscope_proto.standby). It must beat."""
    watch_log: bool = True
    """Whether its log marks warnings and errors in a form that LogTail knows."""


def environment_of(program: Program) -> dict[str, str]:
    """The environment that a program gets. An empty variable counts as not set where there is a default."""
    read = needed(os.environ, *program.reads)
    given = {name: value for name, value in read.items() if value or name not in program.defaults}
    return {**program.defaults, **given, "PYTHONUNBUFFERED": "1", **program.environment}


class Child:
    """A process of a Program; it runs or has ended."""

    def __init__(self, program: Program, log: Path, *, stands_by: bool = False) -> None:
        """Starts it; its output is appended to `log`. With `stands_by` it waits for `call`.

        Raises OSError if it cannot be started. Call from the main thread only: the parent-death signal is sent when
        the thread that started the process ends.
        """
        self.beats, self._call = Listener(), Call() if stands_by else None
        pipes = [self.beats] if self._call is None else [self.beats, self._call]
        try:
            with log.open("ab") as output:  # appended to, so that it can be emptied while the process writes
                self._process = subprocess.Popen(
                    [sys.executable, str(_LAUNCH), str(os.getpid()), *program.command],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=environment_of(program) | {k: v for pipe in pipes for k, v in pipe.environment.items()},
                    pass_fds=[descriptor for pipe in pipes for descriptor in pipe.passed_on],
                    start_new_session=True,
                )
        except OSError:
            for pipe in pipes:
                pipe.close()
            raise
        finally:
            for pipe in pipes:
                pipe.started()
        self._log = log
        self._hung = ""
        self.killed_at: float | None = None
        self.pid = self._process.pid
        self.started_at = time.monotonic()
        self.ready = False

    def call(self) -> None:
        """Lets a standby work; its time counts from now."""
        assert self._call is not None
        self._call.give()
        self.beats.expect(_FIRST_BEAT_S)
        self.started_at = time.monotonic()

    def close(self) -> None:
        """Listens and calls no more."""
        self.beats.close()
        if self._call is not None:
            self._call.close()

    def has_ended(self) -> bool:
        """Whether the process itself has ended; what it started may still live."""
        return self._process.poll() is not None

    def hung(self) -> str:
        """What has not moved for how long, as a part of a sentence; empty while everything beats in time."""
        if not self._hung and (silence := self.beats.silence()):
            self._hung = f"hung (no sign of life from its {silence.part} for {silence.for_s:.0f} s)"
        return self._hung

    def manner(self) -> str:
        """How it ended, as a part of a sentence: "was killed by SIGKILL", "ended with code 1"."""
        code = self._process.poll()
        if self._hung:
            return f"{self._hung} and was killed"
        if code is None:
            return "runs"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"

    def ending(self) -> str:
        """`manner`, and for a process that failed by itself the last line of its log."""
        code = self._process.poll()
        line = last_line(self._log) if code is not None and code > 0 and not self._hung else ""
        return f"{self.manner()}: {line}" if line else self.manner()

    @property
    def has_wrong_settings(self) -> bool:
        """Whether it ended because it cannot start with its settings."""
        return self._process.poll() == WRONG_SETTINGS

    def terminate(self) -> None:
        """Sends SIGTERM to the process and its group."""
        if not self.has_ended():
            _signal_group(self.pid, signal.SIGTERM)

    def kill_rest(self) -> None:
        """Sends SIGKILL to every process that is left in the session."""
        self.killed_at = self.killed_at or time.monotonic()
        if not self.has_ended():
            _signal_group(self.pid, signal.SIGKILL)
        for pid in session_members(self.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def is_gone(self) -> bool:
        """Whether the process and its whole session have ended."""
        return self.has_ended() and not session_members(self.pid)


def _signal_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # ended in this moment; macOS says EPERM for a zombie
        return


def session_members(session: int) -> list[int]:
    """Ids of the living processes of a session."""
    return [pid for pid in psutil.pids() if _is_member(pid, session)]


def _is_member(pid: int, session: int) -> bool:
    try:
        return os.getsid(pid) == session and psutil.Process(pid).status() not in _DEAD
    except (psutil.NoSuchProcess, ProcessLookupError, PermissionError):  # ended in this moment; macOS: another's
        return False


def last_line(log: Path) -> str:
    """The last line with text of a log, shortened; empty if there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LAST_LINE_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    line = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return line if len(line) <= 300 else f"{line[:297]}..."
