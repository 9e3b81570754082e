"""How a process shows that it moves: each part of it promises to beat again in time, through a pipe to who started it.

A line of the pipe is `PART SECONDS`: the part beats again within so many seconds. Whoever starts a process makes the
pipe (Listener), names its writing end in BEAT_FD, and listens. A process without a pipe beats for nobody. A pipe needs
no disk, port or name, and ends with its process. Knows nothing about who is restarted, or how.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self

from crosscope_proto.ages import Ages

BEAT_FD: Final = "CROSSCOPE_BEAT_FD"
"""The variable that names the pipe's writing end to a process."""
EVERY_S: Final = 1.0
"""About how often a part beats that has nothing else to do."""
LONGEST_GAP_S: Final = 1.0
"""A listener that was away for longer counts only this much: then it, or the whole machine, stood still."""
_READ_BYTES = 65536
_START = "start"
"""The part that `expect` waits for."""


class Beats:
    """The beats of this process. Any thread may call."""

    def __init__(self, descriptor: int | None) -> None:
        """`descriptor` is the pipe's writing end; None: nobody listens."""
        self._descriptor = descriptor
        self._last: dict[str, tuple[float, float]] = {}
        self.ages = Ages()
        """When each part last beat."""

    @classmethod
    def from_environment(cls) -> Self:
        """The beats for whoever started this process. Takes BEAT_FD out of the environment: it is not for children."""
        text = os.environ.pop(BEAT_FD, "")
        try:
            os.set_inheritable(int(text), False)
        except (ValueError, OSError):  # no number, or one that was inherited without its pipe
            return cls(None)
        return cls(int(text))

    def __call__(self, part: str, within_s: float) -> None:
        """Promises that `part` beats again within `within_s` seconds. Cheap enough to call every step."""
        self.ages.beat(part)
        now = time.monotonic()
        at, before = self._last.get(part, (float("-inf"), 0.0))
        if self._descriptor is None or (within_s == before and now - at < min(EVERY_S, within_s) / 2):
            return
        self._last[part] = now, within_s
        with contextlib.suppress(OSError):  # nobody reads any more, or the pipe is full of beats that nobody has read
            os.write(self._descriptor, f"{part} {within_s:g}\n".encode())

    async def go_on(self, part: str, within_s: float) -> None:
        """Beats for ever, as long as the event loop moves."""
        while True:
            self(part, within_s)
            await asyncio.sleep(EVERY_S)


@dataclass(frozen=True)
class Silence:
    """A promise that was not kept."""

    part: str
    """Which part of the process."""
    for_s: float
    """How long ago it last beat, seconds."""


class Listener:
    """The listening end: what a process has promised, by a clock that stands still while the listener does."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Makes the pipe. Call `started` once the process has its end, and `close` in the end."""
        self._reading, self._writing = os.pipe()
        for end in (self._reading, self._writing):
            os.set_blocking(end, False)
        self._clock, self._looked_at, self._now = clock, clock(), 0.0
        self._rest = b""
        self._promises: dict[str, tuple[float, float]] = {}
        self._is_open = True

    @property
    def passed_on(self) -> tuple[int]:
        """The descriptor that the process inherits (`pass_fds`)."""
        return (self._writing,)

    @property
    def environment(self) -> dict[str, str]:
        """The variable that the process is given."""
        return {BEAT_FD: str(self._writing)}

    def started(self) -> None:
        """Closes the writing end here: the process has it."""
        os.close(self._writing)

    def close(self) -> None:
        """Stops listening."""
        if self._is_open:
            self._is_open = False
            os.close(self._reading)

    def promise(self, part: str, within_s: float) -> None:
        """Notes a beat that did not come through the pipe. Any thread may call."""
        self._promises[part] = self._now, within_s

    def expect(self, within_s: float) -> None:
        """Counts a process that has not beaten at all after `within_s` seconds as silent."""
        self.promise(_START, within_s)

    def silence(self) -> Silence | None:
        """The promise that has been broken for longest; None if all are kept. A part that never beat broke none.

        Call it often: time counts only from one call to the next, and at most LONGEST_GAP_S of it.
        """
        clock = self._clock()
        self._now, self._looked_at = self._now + min(clock - self._looked_at, LONGEST_GAP_S), clock
        self._hear()
        late = [(self._now - at - within_s, part, at) for part, (at, within_s) in list(self._promises.items())]
        longest, part, at = max(late, default=(0.0, "", 0.0))
        return Silence(part, self._now - at) if longest > 0 else None

    def _hear(self) -> None:
        try:
            while self._is_open and (data := os.read(self._reading, _READ_BYTES)):
                *lines, self._rest = (self._rest + data).split(b"\n")
                if lines:
                    self._promises.pop(_START, None)
                for line in lines:
                    part, _, within_s = line.decode(errors="replace").rpartition(" ")
                    with contextlib.suppress(ValueError):
                        self.promise(part, float(within_s))
        except BlockingIOError:
            return
