"""Processes that a supervisor left behind, and their end. Knows nothing about what they do.

A supervisor writes down what it started. The next one of the same home ends what of it still runs, before it looks for
free ports. On Linux the kernel ends nearly everything with its supervisor; other systems do not.
"""

import contextlib
import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path

import psutil

from crosscope_local.child import session_members
from crosscope_local.disk import write_whole

_SAME_START_S = 2.0
"""A process with the noted id that began more than this before or after is another one."""


def note(path: Path, pids: Mapping[str, int]) -> None:
    """Writes down which processes run, by name, and in which folder. A disk without room keeps the note before."""
    running = {name: [pid, started] for name, pid in pids.items() if (started := _began(pid))}
    with contextlib.suppress(OSError):
        write_whole(path, json.dumps({"folder": _folder(path), "processes": running}))


def end_leftovers(path: Path) -> list[str]:
    """Kills the noted processes that still run, each with its session; returns their names and ids.

    A note that came with a copy of another home is removed, and its processes are left alone: that home may run.
    """
    try:
        note = json.loads(path.read_bytes())
        noted = {str(name): (int(pid), float(began)) for name, (pid, began) in note["processes"].items()}
        noted = noted if note["folder"] == _folder(path) else {}
    except (OSError, ValueError, TypeError, AttributeError, LookupError):
        return []
    ended: list[str] = []
    for name, (pid, began) in noted.items():
        now = _began(pid)
        if now and abs(now - began) <= _SAME_START_S:
            for each in {pid, *session_members(pid)}:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(each, signal.SIGKILL)
            ended.append(f"{name} (process {pid})")
    path.unlink(missing_ok=True)
    return ended


def _folder(path: Path) -> list[object]:
    """What tells the folder of a file from a copy of it. Raises OSError."""
    found = path.parent.stat()
    return [str(path.parent.resolve()), found.st_dev, found.st_ino]


def _began(pid: int) -> float | None:
    """When a process began, seconds since 1970; None if it does not live."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None
