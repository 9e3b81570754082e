"""Why calls are refused before any work is done for them, and how many were. Knows no calls."""

import time
from collections import Counter, deque
from collections.abc import Callable
from enum import StrEnum

WINDOW_S = 10.0
"""How far back `Refused.lately` looks."""
RETURNS_PER_S = 50.0
"""A refusal costs the server about half of what an answer does. So those who were refused are asked to stay away for so
long that about so many come back in a second."""
MAX_PACE_S = 5.0
_MAX_REMEMBERED = 20_000


class Reason(StrEnum):
    """Why a call was refused, or cut off."""

    DOOR_FULL = "door_full"
    """As many calls are under way as may be, or as one caller may have."""
    BEHIND = "behind"
    """The server does not keep up, and lets in fewer calls than it otherwise would."""
    CONCURRENT_CALLS = "concurrent_calls"
    """Its caller's own limit."""
    PROMPT_TOKENS = "prompt_tokens"
    """Its caller has had its tokens of prompts of this minute."""
    QUEUE_FULL = "queue_full"
    """It would wait behind too many, or for too long."""
    DEADLINE = "deadline"
    """It could not be answered before its deadline."""
    LATE = "late"
    """Its deadline passed, or nearly, while it waited for its turn."""
    NO_WORKER = "no_worker"
    """No inference worker serves."""
    UNREAD = "unread"
    """Its caller left too much of a stream unread."""


class Refused(Counter[Reason]):
    """Refusals by reason, since the start."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._lately: deque[tuple[float, Reason]] = deque(maxlen=_MAX_REMEMBERED)
        self._second, self._in_second, self._in_last = 0, 0, 0

    def add(self, reason: Reason) -> None:
        """Counts a refusal."""
        self[reason] += 1
        self._lately.append((self._clock(), reason))
        self._tick()
        self._in_second += 1

    def pace_s(self) -> float:
        """How long those who are refused now should stay away, by how many were in this second and the last one.

        If all come back after this time, N of them cause about sqrt(N RETURNS_PER_S) refusals a second.
        """
        self._tick()
        return min(MAX_PACE_S, max(self._in_second, self._in_last) / RETURNS_PER_S)

    def _tick(self) -> None:
        if (second := int(self._clock())) != self._second:
            self._in_last = self._in_second if second == self._second + 1 else 0
            self._second, self._in_second = second, 0

    def lately(self) -> Counter[Reason]:
        """Refusals of the last WINDOW_S."""
        while self._lately and self._lately[0][0] < self._clock() - WINDOW_S:
            self._lately.popleft()
        return Counter(reason for _, reason in self._lately)
