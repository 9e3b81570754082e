"""Signs of life of a process: when each of its parts last said that it goes on. Knows no process and no clock but ours.

A part is what can hang alone: the event loop ("loop"), the thread that runs the device ("device"), the talk with the
queue ("queue"). Metrics show the ages; a watchdog may read them too.
"""

import threading
import time
from collections.abc import Callable


class Beats:
    """The last beat of each part. Safe to use from any thread."""

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
