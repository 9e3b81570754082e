"""How a process stands by: it loads what it needs, then waits until whoever started it calls it to work.

What takes long before a process can do anything is to import large packages. A standby has done so when the process
that it stands by for ends. Whoever starts one makes a pipe (Call), names its reading end in STANDBY_FD, and writes a
byte to call it. Knows nothing about what the process does.
"""

import contextlib
import os
from typing import Final

STANDBY_FD: Final = "CROSSCOPE_STANDBY_FD"
"""The variable that names the pipe's reading end to a standby."""


def await_call() -> None:
    """Waits for the call; returns at once in a process that was not started as a standby.

    Takes STANDBY_FD out of the environment: it is not for children. Raises SystemExit if nobody is left who could call.
    """
    text = os.environ.pop(STANDBY_FD, "")
    if not text:
        return
    descriptor = int(text)
    try:
        is_called = os.read(descriptor, 1) != b""
    finally:
        os.close(descriptor)
    if not is_called:
        raise SystemExit("the process that started this standby has ended")


class Call:
    """The calling end of the pipe."""

    def __init__(self) -> None:
        """Makes the pipe. Call `started` once the standby has its end, and `close` in the end."""
        self._reading, self._writing = os.pipe()
        self._is_open = True

    @property
    def passed_on(self) -> tuple[int]:
        """The descriptor that the standby inherits (`pass_fds`)."""
        return (self._reading,)

    @property
    def environment(self) -> dict[str, str]:
        """The variable that the standby is given."""
        return {STANDBY_FD: str(self._reading)}

    def started(self) -> None:
        """Closes the reading end here: the standby has it."""
        os.close(self._reading)

    def give(self) -> None:
        """Calls the standby to work. One that has just ended does not hear it."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._writing, b"\n")
        self.close()

    def close(self) -> None:
        """Calls nobody any more; a standby that was not called ends."""
        if self._is_open:
            self._is_open = False
            os.close(self._writing)
