"""When a failed call is made again: a rule for each method, and how long to wait. Knows no channel."""

import math
import random
import time
from enum import Enum
from typing import NamedTuple

_FIRST_S = 1.0
"""How long a client that no server has answered yet looks for one."""
_BRIDGE_S = 60.0
"""How long a client waits for a server that answered it before, or for the process behind it, to come back."""
_SHORTEST_S, _LONGEST_S = 0.1, 1.0
"""Pauses between tries where nobody says how long to wait. Each is twice as long as the last."""


class Repeat(Enum):
    """Which failed calls of a method are made again."""

    ALWAYS = "always"
    """All: they change nothing, or a second time changes nothing more."""
    UNSENT = "unsent"
    """Those that the server has surely not begun: it was not reached, or it refused and said when to come back."""
    BY_ITS_CALLER = "by its caller"
    """None here: whoever reads the stream goes on where it broke."""


REPEATS = {
    **dict.fromkeys(("ListCrosscoders", "GetCrosscoder", "GetTrainingCurves", "ListLatents"), Repeat.ALWAYS),
    **dict.fromkeys(("GetLatent", "ListExamples", "GetAtlas", "MatchLatents", "SearchLatents"), Repeat.ALWAYS),
    **dict.fromkeys(("GetAnnotation", "ListAnnotations", "GetNames", "GetHistory", "ListLists"), Repeat.ALWAYS),
    **dict.fromkeys(("GetList", "ExportAnnotations", "ListLooks", "GetLook", "Tokenize", "Encode"), Repeat.ALWAYS),
    **dict.fromkeys(("TopLatents", "Compare", "Attribute", "Contrast"), Repeat.ALWAYS),
    **dict.fromkeys(
        ("PlanJob", "GetJob", "ListJobs", "ReadJobLog", "GetRecipeSchema", "GetCapabilities"), Repeat.ALWAYS
    ),
    "HealthCheck": Repeat.ALWAYS,
    "Generate": Repeat.ALWAYS,  # before its first message, as every stream
    "SubmitJob": Repeat.ALWAYS,  # by its idempotency key
    "CancelJob": Repeat.ALWAYS,
    # Words that are there already are no change.
    **dict.fromkeys(("SetLabel", "WriteNote", "SetStar", "ChangeList"), Repeat.ALWAYS),
    # A second time would be refused, because the first has done it, or would count it as unchanged.
    **dict.fromkeys(("CreateList", "RenameList", "DeleteList", "ImportAnnotations", "RetryJob"), Repeat.UNSENT),
    "WatchJob": Repeat.BY_ITS_CALLER,
    "EncodeStream": Repeat.BY_ITS_CALLER,
}
"""The rule of each method of the server. A stream is begun again only before its first message."""


class Failure(NamedTuple):
    """What a failed call says about a second try."""

    is_passing: bool
    """Whether the same call may succeed in a moment."""
    was_begun: bool = True
    """Whether the server may have begun the call."""
    is_busy: bool = False
    """Whether the server is there and has too much to do."""
    after_s: float | None = None
    """When to come back, as the server says."""


class Patience:
    """How long one call is tried, and the pauses between its tries."""

    def __init__(self, timeout_s: float | None, was_answered: bool) -> None:
        """`timeout_s`: of all tries together. `was_answered`: whether a server has answered this client before."""
        self._started = time.monotonic()
        self._timeout_s = timeout_s
        self._was_answered = was_answered
        self._num_tries = 0

    @property
    def left_s(self) -> float | None:
        """Seconds until the deadline; None without one."""
        return None if self._timeout_s is None else max(0.001, self._started + self._timeout_s - time.monotonic())

    def pause_s(self, failure: Failure) -> float | None:
        """How long to wait before the next try; None: no more tries.

        A server that is busy is asked until the deadline; one that is away, or has nobody behind it, for a while.
        Pauses differ by chance, so that many callers do not come back at once.
        """
        if not failure.is_passing:
            return None
        pause_s = min(_SHORTEST_S * 2**self._num_tries, _LONGEST_S)
        pause_s = max(pause_s / 2, failure.after_s or 0.0) * random.uniform(1.0, 1.5)
        self._num_tries += 1
        tried_s = math.inf if self._timeout_s is None else self._timeout_s
        if not failure.is_busy:
            self._was_answered |= failure.after_s is not None
            tried_s = min(tried_s, _BRIDGE_S if self._was_answered else _FIRST_S)
        return pause_s if time.monotonic() + pause_s < self._started + tried_s else None
