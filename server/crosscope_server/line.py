"""Waiting for a worker: a fair, bounded queue in front of what workers can take. Knows no calls' contents.

A call waits here and not at a worker, so its turn is fair, its refusal is at once, and it costs no device anything if
its caller leaves. While no worker serves, calls wait for one for some seconds, so that a restart is bridged.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from crosscope_server.callers import calling
from crosscope_server.errors import CallError, Overloaded, TooLate, Unavailable
from crosscope_server.refusals import Reason, Refused
from crosscope_server.turns import Turns
from crosscope_server.window import SHARED_S, Rate, Window
from crosscope_server.workers import Worker, Workers

MAX_WAIT_S, MAX_BULK_WAIT_S = 10.0, 60.0
"""A call that would wait longer is refused, also if its deadline is later; bulk has more patience."""
_FIRST_RETRY_S = 1.0
_MIN_RETRY_S = 0.05
_NONE_RETRY_S = 2.0


@dataclass(frozen=True)
class Work:
    """What a call asks of a worker."""

    cost: float
    """About how many tokens the models read for it."""
    is_bulk: bool = False
    """Whether nobody sits and waits for it."""
    least: float | None = None
    """What it costs at least, by which a deadline is judged, where `cost` may be far too much; None: `cost`."""

    @property
    def surely(self) -> float:
        """What it costs at least."""
        return self.cost if self.least is None else self.least


@dataclass(eq=False)
class Place:
    """A place at a worker, for a call. Whoever has it must `end` it."""

    worker: Worker
    line: "Line"
    window: Window
    caller: str
    cost: float
    began: float

    def end(self, *, answered: bool) -> None:
        """Gives the place to the next."""
        self.line.leave(self, answered=answered)


@dataclass(eq=False)
class _Waiter:
    work: Work
    caller: str
    arrived: float
    deadline: float | None
    granted: "asyncio.Future[Place]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Line:
    """A queue for all workers. For one event loop."""

    def __init__(
        self, workers: Workers, window_of: Callable[[Worker], Window], most: int, hold_s: float, refused: Refused
    ) -> None:
        """At most `most` calls wait, `hold_s` seconds if no worker serves. `refused` counts refusals by reason."""
        self._workers = workers
        self._window_of = window_of
        self._most = most
        self._hold_s = hold_s
        self._refused = refused
        self._turns = Turns[_Waiter](most)
        self._rate = Rate()
        self._num_under_way: Counter[str] = Counter()
        self._shared_until = 0.0
        """Until when somebody is taken to ask single calls beside others."""
        self._timer: asyncio.TimerHandle | None = None
        workers.listeners.append(self._workers_changed)

    @property
    def num_waiting(self) -> int:
        """Calls that wait."""
        return self._turns.num

    @property
    def num_under_way(self) -> int:
        """Calls that workers were given."""
        return self._num_under_way.total()

    @property
    def oldest_s(self) -> float:
        """How long the call whose turn it is has waited; 0 if none waits."""
        first = self._turns.first()
        return time.monotonic() - first.item.arrived if first else 0.0  # the loop's clock, also for other threads

    def retry_after_s(self, work: Work | None = None) -> float:
        """After how many seconds this caller's work would find room, by what waits and how fast workers answer."""
        before = self._turns.cost_before(calling().name, is_bulk=work is not None and work.is_bulk)
        if self._rate.per_s is None:
            return _FIRST_RETRY_S
        return max(_MIN_RETRY_S, self._rate.seconds(before + (work.cost if work else 0.0)))

    async def enter(self, work: Work, deadline: float | None, avoid: Sequence[Worker] = ()) -> Place:
        """A place at a worker; at once if another than those of `avoid` serves, since it was this call's turn before.

        `deadline` is a time of the event loop. Raises Overloaded, TooLate and Unavailable.
        """
        caller = calling().name
        if avoid and (others := [each for each in self._workers.alive if each not in avoid]):
            return self._begin(self._least_busy(others), work, caller, is_first=False)
        self._check(work, caller, deadline, is_known=bool(avoid))
        waiter = _Waiter(work, caller, asyncio.get_running_loop().time(), deadline)
        entry = self._turns.add(caller, work.is_bulk, work.cost, waiter)
        self._advance()
        try:
            if waiter.granted.done():
                return waiter.granted.result()
            async with asyncio.timeout_at(deadline):
                return await waiter.granted
        except BaseException as error:
            if waiter.granted.done() and not waiter.granted.cancelled() and waiter.granted.exception() is None:
                waiter.granted.result().end(answered=False)  # its turn came just as it left
            if isinstance(error, TimeoutError):
                self._refused.add(Reason.LATE)
                raise TooLate("the deadline passed while the call waited for its turn; allow more time") from error
            raise
        finally:
            self._turns.drop(entry)

    def _check(self, work: Work, caller: str, deadline: float | None, *, is_known: bool) -> None:
        """Raises the error of a call that cannot be answered in time. One that had its turn before is not too many."""
        now = asyncio.get_running_loop().time()
        since = self._workers.none_since
        if not self._workers.num or (since is not None and now >= since + self._hold_s):
            raise self._none()
        retry_after_s = self.retry_after_s(work)
        if is_known:
            return
        if not self._turns.has_room(caller):
            sentence = f"{self._turns.num} prompts wait for inference workers, of at most {self._most}"
            raise self._full(Reason.QUEUE_FULL, f"{sentence}; try again in {retry_after_s:.1f} s", retry_after_s)
        if since is not None or self._rate.per_s is None:
            return
        wait_s = self._rate.seconds(self._turns.cost_before(caller, work.is_bulk))
        takes_s = wait_s + self._rate.seconds(work.surely)
        if deadline is not None and takes_s > deadline - now:
            what = f"would take about {takes_s:.1f} s, but its deadline is in {max(0.0, deadline - now):.1f} s"
            raise self._full(Reason.DEADLINE, f"the call {what}; allow more time, or try again later", retry_after_s)
        if wait_s > (longest := MAX_BULK_WAIT_S if work.is_bulk else MAX_WAIT_S):
            what = f"would wait about {wait_s:.1f} s, but calls wait for at most {longest:.0f} s"
            raise self._full(Reason.QUEUE_FULL, f"the call {what}; try again later", retry_after_s)

    def _full(self, reason: Reason, sentence: str, retry_after_s: float) -> CallError:
        self._refused.add(reason)
        return Overloaded(sentence, retry_after_s=retry_after_s)

    def _none(self) -> CallError:
        self._refused.add(Reason.NO_WORKER)
        # Whoever is told to come back waits for it, so only workers that may just be starting again are promised.
        retry_after_s = _NONE_RETRY_S if self._workers.may_come_back else None
        return Unavailable(self._workers.why_none(), retry_after_s=retry_after_s)

    def _advance(self) -> None:
        """Gives places to those whose turn it is, while workers have room."""
        while (entry := self._turns.first()) is not None:
            waiter = entry.item
            express = not waiter.work.is_bulk and not self._num_under_way[waiter.caller]
            shared = time.monotonic() < self._shared_until
            free = [
                each for each in self._workers.alive if self._window_of(each).has_room(express=express, shared=shared)
            ]
            if not free:
                return
            self._turns.next()
            if waiter.granted.done():
                continue
            left_s = None if waiter.deadline is None else waiter.deadline - asyncio.get_running_loop().time()
            if left_s is not None and left_s < self._rate.seconds(waiter.work.surely):
                self._refused.add(Reason.LATE)
                sentence = f"the call's turn came {max(0.0, left_s):.2f} s before its deadline, too late to answer it"
                waiter.granted.set_exception(TooLate(f"{sentence}; allow more time"))
            else:
                worker = self._least_busy(free)
                if express and self._num_under_way:
                    self._shared_until = time.monotonic() + SHARED_S
                waiter.granted.set_result(self._begin(worker, waiter.work, waiter.caller, is_first=True))

    def _least_busy(self, workers: Sequence[Worker]) -> Worker:
        return min(workers, key=lambda each: self._window_of(each).load)

    def _begin(self, worker: Worker, work: Work, caller: str, *, is_first: bool) -> Place:
        now = asyncio.get_running_loop().time()
        self._rate.begin(self.num_under_way)
        window = self._window_of(worker)
        window.begin(work.cost, now, is_first=is_first)
        self._num_under_way[caller] += 1
        return Place(worker, self, window, caller, work.cost, now)

    def leave(self, place: Place, *, answered: bool) -> None:
        """Takes back a place, and gives it to the next."""
        now = asyncio.get_running_loop().time()
        place.window.end(place.cost, now - place.began if answered else None)
        if answered:
            self._rate.end(now, place.cost)
        self._num_under_way[place.caller] -= 1
        if not self._num_under_way[place.caller]:
            del self._num_under_way[place.caller]
        if not self._num_under_way and not self._turns.num:
            self._turns.rest()
        self._advance()

    def _workers_changed(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._workers.none_since is None:
            self._advance()
        else:
            self._timer = asyncio.get_running_loop().call_at(self._workers.none_since + self._hold_s, self._give_up)

    def _give_up(self) -> None:
        """Refuses all who wait, because no worker came back."""
        while (entry := self._turns.next()) is not None:
            if not entry.item.granted.done():
                entry.item.granted.set_exception(self._none())

    def close(self) -> None:
        """Stops waiting for workers to come back."""
        if self._timer is not None:
            self._timer.cancel()
