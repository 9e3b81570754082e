"""Ties a process to its parent, so that none stays behind on the device. Knows nothing about jobs."""

import contextlib
import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int, death_signal: signal.Signals = signal.SIGKILL) -> None:
    """Makes the kernel send `death_signal` to this process when the thread that started it ends (Linux only).

    Raises SystemExit if the parent has already ended.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, death_signal)
    if os.getppid() != parent_pid:
        raise SystemExit("the process that started this one has ended")
