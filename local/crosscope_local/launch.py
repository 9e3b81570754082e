"""Becomes another program that ends when its parent does: `launch.py PARENT_PID PROGRAM ARGUMENT…`.

It is run by path, not with -m, so that starting a process does not import the package. Knows nothing about the program.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> bool:
    """Asks the kernel for SIGKILL when the parent process dies (Linux only); False if it has died already.

    Not SIGTERM, which a process that is stopped or hung does not take: it would stay, and hold its port.
    """
    if sys.platform != "linux":
        return True
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
    return os.getppid() == parent


def main() -> None:
    """Executes the program, tied to its parent."""
    if not end_with(int(sys.argv[1])):
        sys.exit(1)
    os.execv(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
