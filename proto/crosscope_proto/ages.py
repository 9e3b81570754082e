"""When each part of a process last showed that it goes on. Knows no process and no clock but ours.

A part is what can hang alone: the event loop, the thread that runs the device, the talk with the queue. Metrics show
the ages; crosscope_proto.beats tells whoever started the process.
"""

import threading
import time
from collections.abc import Callable


class Ages:
    """The last sign of life of each part. Safe to use from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._last: dict[str, float] = {}

    def beat(self, part: str) -> None:
        """Says that a part goes on."""
        with self._lock:
            self._last[part] = self._clock()

    def rest(self, part: str) -> None:
        """Says that a part has nothing to do: it does not age until its next beat."""
        with self._lock:
            self._last.pop(part, None)

    def age_s(self, part: str) -> float:
        """Seconds since the last beat of a part; 0 while it rests."""
        with self._lock:
            last = self._last.get(part)
        return 0.0 if last is None else self._clock() - last
