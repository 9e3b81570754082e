"""Whose turn it is: a bounded queue that is fair to callers. Knows no clock, no event loop and no calls.

Start-time fair queuing (Goyal, Vin and Cheng 1996). Each caller has two lanes, for calls that somebody waits for and
for bulk. A lane's entries are served as they came, and each moves the lane's mark on by its cost. The lane whose mark
is furthest behind is next. A lane that was empty begins at the mark of the last entry that was served, so nobody saves
up turns by being quiet, and whoever asks for little waits for few.
"""

import heapq
import itertools
from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")

BULK = 4.0
"""By how much more a lane of bulk moves on for the same cost: it gets a quarter of what others get."""
SHARE = 4
"""One caller may have so many times as much as is still free. So a single one gets 4/5 of all places, two get 4/9
each, and a place is left for whoever comes next (Choudhury and Hahne 1998)."""
_MIN_IDLE = 64
"""Empty lanes that are kept before any is forgotten."""


def may_enter(own: int, total: int, most: int) -> bool:
    """Whether a caller who holds `own` of `total` places, of which there are `most`, gets one more."""
    return own < SHARE * (most - total)


@dataclass(eq=False)
class Waiting(Generic[T]):
    """Something that waits for its turn."""

    item: T
    cost: float
    lane: "_Lane[T]"
    has_left: bool = False


@dataclass(eq=False)
class _Lane(Generic[T]):
    caller: str
    is_bulk: bool
    mark: float = 0.0
    """Where its next entry begins."""
    entries: deque[Waiting[T]] = field(default_factory=deque[Waiting[T]])
    """As they came, with those that have left."""
    num: int = 0
    """Entries that have not left."""
    cost: float = 0.0
    """Their cost."""

    @property
    def weight(self) -> float:
        return BULK if self.is_bulk else 1.0


class Turns(Generic[T]):
    """The queue."""

    def __init__(self, most: int) -> None:
        """At most `most` entries wait."""
        self._most = most
        self._lanes: dict[tuple[str, bool], _Lane[T]] = {}
        self._ahead: list[tuple[float, int, _Lane[T]]] = []
        """A heap of the lanes with entries, by mark and then by who came first."""
        self._order = itertools.count()
        self._now = 0.0
        """Mark of the last entry that was served."""
        self._furthest = 0.0
        self._num_kept = 0
        """Lanes that were kept when empty ones were last forgotten."""
        self.num = 0
        """Entries that wait."""
        self.cost = 0.0
        """Their cost."""

    def has_room(self, caller: str) -> bool:
        """Whether an entry of this caller may wait; it then must be added, or left out."""
        own = sum(lane.num for is_bulk in (False, True) if (lane := self._lanes.get((caller, is_bulk))))
        return may_enter(own, self.num, self._most)

    def cost_before(self, caller: str, is_bulk: bool) -> float:
        """About the cost that is served before an entry which this caller would add.

        All that waits, or less: as much of every lane as moves that lane on by what waits in the caller's own.
        """
        lane = self._lanes.get((caller, is_bulk))
        own = lane.cost * lane.weight if lane else 0.0
        return min(self.cost, own * max(1, len(self._ahead)))

    def add(self, caller: str, is_bulk: bool, cost: float, item: T) -> Waiting[T]:
        """Puts an entry at the end of its lane."""
        lane = self._lanes.setdefault((caller, is_bulk), _Lane(caller, is_bulk))
        entry = Waiting(item, cost, lane)
        if not lane.num:
            lane.entries.clear()
            lane.mark = max(lane.mark, self._now)
            heapq.heappush(self._ahead, (lane.mark, next(self._order), lane))
        lane.entries.append(entry)
        self._count(entry, 1)
        return entry

    def drop(self, entry: Waiting[T]) -> None:
        """Takes an entry out that was not served; one that was, or has left, stays as it is."""
        if not entry.has_left:
            entry.has_left = True
            self._count(entry, -1)
            if not entry.lane.num:
                self._ahead = [each for each in self._ahead if each[2] is not entry.lane]
                heapq.heapify(self._ahead)

    def first(self) -> Waiting[T] | None:
        """The entry whose turn it is; it stays."""
        if not self._ahead:
            return None
        entries = self._ahead[0][2].entries
        while entries[0].has_left:
            entries.popleft()
        return entries[0]

    def next(self) -> Waiting[T] | None:
        """Takes out the entry whose turn it is; None if nothing waits."""
        if (entry := self.first()) is None:
            return None
        _, _, lane = heapq.heappop(self._ahead)
        lane.entries.popleft()
        entry.has_left = True
        self._count(entry, -1)
        self._now = lane.mark
        lane.mark += entry.cost * lane.weight
        self._furthest = max(self._furthest, lane.mark)
        if lane.num:
            heapq.heappush(self._ahead, (lane.mark, next(self._order), lane))
        self._forget()
        return entry

    def rest(self) -> None:
        """Says that nothing waits and nothing is served: whoever comes next begins where the furthest lane stands."""
        self._now = self._furthest

    def _count(self, entry: Waiting[T], one: int) -> None:
        entry.lane.num += one
        entry.lane.cost += one * entry.cost
        self.num += one
        self.cost += one * entry.cost

    def _forget(self) -> None:
        """Forgets lanes that say nothing: empty, and no further than whoever begins now."""
        if len(self._lanes) > 2 * self._num_kept + _MIN_IDLE:
            self._lanes = {key: each for key, each in self._lanes.items() if each.num or each.mark > self._now}
            self._num_kept = len(self._lanes)
