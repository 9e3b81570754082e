"""A supervisor over small real programs, in the test's main thread, with a script beside it that plays the person."""

import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil

from crosscope_local.child import Program
from crosscope_local.supervise import Supervisor

SLEEPER = "import signal\nsignal.pause()"
STUBBORN = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
while True:
    signal.pause()
"""

STANDBY = """
import os, time
from crosscope_proto.beats import Beats
from crosscope_proto.standby import await_call
print("loaded", os.getpid(), flush=True)
await_call()
beats = Beats.from_environment()
print("works", os.getpid(), flush=True)
while True:
    beats("loop", 30)
    time.sleep(0.1)
"""


def program(name: str, source: str, **fields: object) -> Program:
    """A Program that runs Python source and counts as ready at once."""
    return Program(name=name, command=(sys.executable, "-c", source), **{"probe": lambda: True, **fields})  # pyright: ignore[reportArgumentType]


def alive(pid: int) -> bool:
    """Whether a process lives (a zombie does not)."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Stage:
    """Runs a supervisor while a function plays the person; keeps what was said."""

    def __init__(self, folder: Path) -> None:
        self.logs = folder
        self.said: list[tuple[str, str]] = []

    def play(self, programs: list[Program], script: Callable[[Supervisor], None]) -> bool:
        """Runs `programs` until the script ends; raises what it raises, returns what Supervisor.run returns."""
        supervisor = Supervisor(programs, self.logs, lambda level, text: self.said.append((level, text)))
        failures: list[BaseException] = []

        def act() -> None:
            try:
                script(supervisor)
            except BaseException as error:
                failures.append(error)
            finally:
                supervisor.stop()

        actor = threading.Thread(target=act)
        actor.start()
        result = supervisor.run()
        actor.join()
        if failures:
            raise failures[0]
        return result

    def texts(self, level: str) -> list[str]:
        """Sentences of one level."""
        return [text for said, text in self.said if said == level]
