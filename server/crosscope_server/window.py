"""How much a worker is given at a time, and how fast workers answer. Knows no event loop and no calls."""

from dataclasses import dataclass, field

MIN_CALLS, MAX_CALLS = 8, 256
ANSWER_S = 0.04
"""A worker is given more calls for as long as it answers each within this time."""
MAX_COST = 16_384.0
"""About two full batches of a worker; beyond it a worker gets no second call."""
EXPRESS_CALLS = 4
"""Calls beside a full window, for callers who have nothing under way."""
SHARED_CALLS, SHARED_S = 4, 1.0
"""Calls that a slow worker is given at a time for so long after somebody asked a single one beside others: whoever asks
one waits for a batch that runs and is in the next, so small batches are their short wait."""
_STEP = 0.25
_MEASURE_S = 0.1
_MEMORY = 0.7


@dataclass
class Window:
    """What a worker has been given and has not answered.

    Batches fill while the device is busy, so a few calls more than it works on keep it busy; all others wait at the
    server, where their order is fair. A device that answers many at once gets many.
    """

    limit: float = MIN_CALLS
    """Calls at a time."""
    is_fixed: bool = False
    """Whether the limit stays as it is."""
    num: int = 0
    """Calls under way."""
    cost: float = 0.0
    """Their cost."""
    last: float = 0.0
    """Time of the last call whose first worker this was."""

    def has_room(self, *, express: bool = False, shared: bool = False) -> bool:
        """Whether the worker gets one more: `express` for a caller without calls under way, `shared` beside such."""
        if self.num == 0:
            return True
        is_slow = self.limit <= MIN_CALLS and not self.is_fixed
        limit = SHARED_CALLS if shared and is_slow and not express else self.limit + EXPRESS_CALLS * express
        return self.num < limit and self.cost < MAX_COST

    @property
    def load(self) -> tuple[float, int, float]:
        """Larger for a worker that has more to do; of equal ones, for the one that was asked first last."""
        return self.cost, self.num, self.last

    def begin(self, cost: float, now: float, *, is_first: bool = True) -> None:
        """Counts a call that the worker is given, `is_first` if none was asked before."""
        if is_first:
            self.last = now
        self.num += 1
        self.cost += cost

    def end(self, cost: float, answered_in_s: float | None = None) -> None:
        """Counts a call that has ended. `answered_in_s` is None if it failed or was left."""
        was_full = self.num >= int(self.limit)
        self.num -= 1
        self.cost -= cost
        if answered_in_s is None or self.is_fixed:
            return
        if answered_in_s > 2 * ANSWER_S:
            self.limit = max(MIN_CALLS, self.limit - _STEP)
        elif answered_in_s < ANSWER_S and was_full:
            self.limit = min(MAX_CALLS, self.limit + _STEP)


@dataclass
class Rate:
    """Cost that is answered in a second while there is something to answer.

    Counted from an answer to later ones: before the first of them, a worker may have loaded its models.
    """

    per_s: float | None = None
    """None until it was measured."""
    _since: float | None = field(default=None, repr=False)
    _cost: float = field(default=0.0, repr=False)

    def begin(self, num_before: int) -> None:
        """Says that a call begins, beside so many others."""
        if num_before == 0:
            self._since = None

    def end(self, now: float, cost: float) -> None:
        """Says that a call was answered."""
        if self._since is None:
            self._since, self._cost = now, 0.0
            return
        self._cost += cost
        if (took := now - self._since) < _MEASURE_S:
            return
        rate = self._cost / took
        self.per_s = rate if self.per_s is None else _MEMORY * self.per_s + (1 - _MEMORY) * rate
        self._since, self._cost = now, 0.0

    def seconds(self, cost: float) -> float:
        """How long so much cost takes; 0 while nothing was measured."""
        return cost / self.per_s if self.per_s else 0.0
