"""Whether the event loop keeps up. Knows nothing about calls.

gRPC takes calls in by itself and hands them on one by one, so a loop that has too much to do is late for none that it
knows of: calls wait before it, and neither answers nor refusals tell. What tells is that its thread never rests.
"""

import asyncio
import time
from pathlib import Path

BUSY = 0.95
"""A loop whose thread rests for less of the time than what is missing here to 1 does not keep up."""
_EVERY_S = 0.1
_FALL, _RISE = 0.8, 0.02
_SCHEDULED = Path("/proc/thread-self/schedstat")


class Load:
    """How much of its usual work the event loop bears on which `watch` runs."""

    def __init__(self) -> None:
        self.share = 1.0
        """How much of what may be under way at most: it falls at once while the loop is busy, and rises slowly."""
        self.busy = 0.0
        """The share of the last interval in which the loop's thread ran, or waited for a core."""

    async def watch(self) -> None:
        """Measures for ever."""
        at, busy_s = time.monotonic(), _busy_s()
        while True:
            await asyncio.sleep(_EVERY_S)
            was_at, was_busy_s, at, busy_s = at, busy_s, time.monotonic(), _busy_s()
            self.note((busy_s - was_busy_s) / (at - was_at))

    def note(self, busy: float) -> None:
        """Counts an interval in which the thread was busy for this share of the time."""
        self.busy = busy
        self.share = self.share * _FALL if busy > BUSY else min(1.0, self.share + _RISE)


def _busy_s() -> float:
    """For how long this thread has run, and on Linux also for how long it has waited for a core."""
    try:
        ran_ns, waited_ns, _ = _SCHEDULED.read_text().split()
    except (OSError, ValueError):
        return time.thread_time()
    return (int(ran_ns) + int(waited_ns)) / 1e9
