"""Lets other processes have the cores first. Knows nothing about jobs."""

import contextlib
import os
import sys
import time
from pathlib import Path

MOST_NICE = 19
"""The lowest priority that the system has."""
_AUTOGROUP = Path("/proc/self/autogroup")
"""A session's share of the cores, where Linux divides them by session first: there a process's own value has no effect
beside other sessions."""
_TRIES, _PAUSE_S = 5, 0.11
"""The kernel takes one new share of a session in a tenth of a second."""


def give_way(nice: int, leader: int) -> None:
    """Adds `nice`, 0 to 19, to this process's nice value; what it starts has it too.

    On Linux its session gets at least the same, if the process `leader` leads it: a session may also be a person's
    terminal, with much else in it. Where the system refuses, nothing changes.
    """
    if not nice:
        return
    with contextlib.suppress(OSError):
        os.nice(nice)
    if sys.platform == "linux" and os.getsid(0) == leader:
        _give_way_as_session(nice)


def _give_way_as_session(nice: int) -> None:
    for _ in range(_TRIES):
        try:
            if int(_AUTOGROUP.read_text().split()[-1]) >= nice:
                return
            _AUTOGROUP.write_text(str(nice))
        except BlockingIOError:
            time.sleep(_PAUSE_S)
        except (OSError, ValueError, IndexError):  # a kernel without them, or a container that may not
            return
