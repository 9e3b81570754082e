"""Lets callers share the device while their prompts are continued. Knows no gRPC and no models.

One step at a time goes to the device's thread, which also runs the batches of prompts that are encoded, in the order in
which they come. So whoever wants the device waits for one step at most. Subjects take turns, step by step; they share
the room for keys and values, which orders get in the order in which they came, whatever their subject.
"""

import asyncio
import functools
import itertools
import time
from collections.abc import AsyncGenerator, Hashable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch

from crosscope_worker.effects.decoding import Decoder
from crosscope_worker.effects.orders import Ended, EndReason, Event, Order, Started, size_bytes
from crosscope_worker.effects.subject import Subject
from crosscope_worker.effects.trial import TokenBytes
from crosscope_worker.serve.errors import Overloaded, TooLate

_MIN_RETRY_S = 0.05
_FIRST_STEPS_S = 1.0
"""Time that an order takes, assumed before one has ended."""
_TIME_MEMORY = 0.8


@dataclass(eq=False)
class _Caller:
    """Someone who waits for the events of an order."""

    order: Order
    number: int
    """Callers are numbered as they come."""
    desk: "_Desk"
    arrived: float = field(default_factory=time.perf_counter)
    events: list[Event] = field(default_factory=list[Event])
    """What he has not read yet."""
    unread_bytes: int = 0
    num_ended: int = 0
    num_lost: int = 0
    """Answers that ended because memory ran out."""
    news: asyncio.Event = field(default_factory=asyncio.Event)
    error: Exception | None = None
    has_started: bool = False

    @functools.cached_property
    def num_answers(self) -> int:
        return sum(arm.sampling.num_samples for arm in self.order.arms)

    @property
    def is_over(self) -> bool:
        """Whether no more events will come."""
        return self.error is not None or self.num_ended == self.num_answers

    def tell(self, event: Event) -> None:
        self.events.append(event)
        self.unread_bytes += size_bytes(event)
        self.has_started |= isinstance(event, Started)
        if isinstance(event, Ended):
            self.num_ended += 1
            self.num_lost += event.reason is EndReason.OUT_OF_MEMORY
        self.news.set()

    def read(self) -> list[Event]:
        """The events that have come since the last reading."""
        events, self.events, self.unread_bytes = self.events, [], 0
        return events

    def fail(self, error: Exception) -> None:
        self.error = error
        self.news.set()


@dataclass(eq=False)
class _Desk:
    """The callers of one subject."""

    subject: Subject
    decoder: Decoder | None = None
    arriving: list[_Caller] = field(default_factory=list[_Caller])
    leaving: list[Order] = field(default_factory=list[Order])
    callers: dict[int, _Caller] = field(default_factory=dict[int, _Caller])
    """By the identity of the order, once the decoder has it."""

    @property
    def waits_since(self) -> int | None:
        """Number of the oldest caller whose order has no room yet; None if there is none."""
        waiting = [caller.number for caller in self.arriving[:1]]
        if self.decoder is not None and self.decoder.waits_since is not None:
            waiting.append(self.decoder.waits_since)
        return min(waiting, default=None)


class Generations:
    """Continues the prompts of many callers. Lives on one event loop."""

    def __init__(
        self,
        executor: Executor,
        cache_bytes: int,
        prefill_tokens: int,
        max_waiting: int,
        max_unread_bytes: int,
        max_tokens: int | None = None,
        num_threads: int | None = None,
    ) -> None:
        """`executor` is the device's one thread. `max_waiting` orders may wait for room. Events that callers have not
        read take at most `max_unread_bytes`, of all callers together. See Decoder for the others.
        """
        self._executor = executor
        self._cache_bytes = cache_bytes
        self._prefill_tokens = prefill_tokens
        self._max_waiting = max_waiting
        self._max_unread_bytes = max_unread_bytes
        self._max_tokens = max_tokens
        self._num_threads = num_threads or torch.get_num_threads()
        self._desks: dict[Hashable, _Desk] = {}
        self._callers: set[_Caller] = set()
        """All who have not left, those among them whose answers have ended."""
        self._numbers = itertools.count()
        self._token_bytes: WeakKeyDictionary[Subject, TokenBytes] = WeakKeyDictionary()
        """What was found when a subject's models were tried, so that it is done once."""
        self._order_s = _FIRST_STEPS_S
        self._worker: asyncio.Task[None] | None = None

    @property
    def num_waiting(self) -> int:
        """Orders whose prompt was not read yet."""
        desks = self._desks.values()
        return sum(not caller.has_started for desk in desks for caller in (*desk.arriving, *desk.callers.values()))

    @property
    def num_running(self) -> int:
        """Orders that have not ended, waiting ones among them."""
        return sum(len(desk.callers) + len(desk.arriving) for desk in self._desks.values())

    @property
    def unread_bytes(self) -> int:
        """About the memory of the events that callers have not read."""
        return sum(caller.unread_bytes for caller in self._callers)

    async def generate(
        self, subject_key: Hashable, subject: Subject, order: Order, timeout_s: float | None = None
    ) -> AsyncGenerator[list[Event]]:
        """What comes of an order, until all its answers have ended. Orders of one key share their steps.

        Whoever stops asking frees his place before the next step. Raises Overloaded, DoesNotFit, InterventionError and
        PairError before the first event, TooLate once `timeout_s` has passed, and Overloaded behind the events of an
        order whose answers all ran out of memory, or instead of events that were left unread for too long.
        """
        self._check_room()
        deadline = None if timeout_s is None else time.perf_counter() + timeout_s
        desk = self._desks.setdefault(subject_key, _Desk(subject))
        caller = _Caller(order, next(self._numbers), desk)
        desk.arriving.append(caller)
        self._callers.add(caller)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        try:
            while not caller.is_over:
                await _news(caller, deadline)
                if caller.events:
                    yield caller.read()
            if caller.events:
                yield caller.read()
            if caller.error is not None:
                raise caller.error
        finally:
            self._callers.discard(caller)
            self._leave(caller)

    def _check_room(self) -> None:
        if (waiting := self.num_waiting) >= self._max_waiting:
            running = sum(len(desk.callers) for desk in self._desks.values())
            raise Overloaded(
                f"{waiting} prompts wait to be continued, and the limit is {self._max_waiting}; try again later",
                retry_after_s=max(_MIN_RETRY_S, self._order_s * waiting / max(1, running - waiting)),
            )

    @staticmethod
    def _leave(caller: _Caller) -> None:
        """Frees the place of a caller, if he still has one."""
        desk = caller.desk
        if caller in desk.arriving:
            desk.arriving.remove(caller)
        elif desk.callers.pop(id(caller.order), None) is not None:
            desk.leaving.append(caller.order)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._desks:
            for key, desk in list(self._desks.items()):
                arriving, leaving = desk.arriving, desk.leaving
                desk.arriving, desk.leaving = [], []
                desk.callers |= {id(caller.order): caller for caller in arriving}
                others = [each for each in self._desks.values() if each is not desk]
                elsewhere = sum(each.decoder.planned_bytes for each in others if each.decoder is not None)
                before = min((since for each in others if (since := each.waits_since) is not None), default=None)
                turn = functools.partial(self._turn, desk, arriving, leaving, elsewhere, before)
                try:
                    events, refused = await loop.run_in_executor(self._executor, turn)
                except Exception as error:  # the answer to everyone whose order was in the step
                    desk.decoder = None
                    events, refused = [], [(caller.order, error) for caller in desk.callers.values()]
                self._tell(desk, events, refused)
                if (desk.decoder is None or desk.decoder.is_idle) and not desk.arriving:
                    del self._desks[key]

    def _turn(
        self, desk: _Desk, arriving: list[_Caller], leaving: list[Order], elsewhere: int, before: int | None
    ) -> tuple[list[Event], list[tuple[Order, Exception]]]:
        """One step of a subject, on the device's thread; events, and orders that were refused."""
        decoder = desk.decoder
        if decoder is None:
            known = self._token_bytes.get(desk.subject)
            decoder = Decoder(desk.subject, self._cache_bytes, self._prefill_tokens, self._max_tokens, known)
            self._token_bytes[desk.subject] = decoder.token_bytes
            desk.decoder = decoder
        for order in leaving:
            decoder.drop(order)
        refused: list[tuple[Order, Exception]] = []
        for caller in arriving:
            try:
                decoder.admit(caller.order, caller.number)
            except Exception as error:  # the answer to this order alone
                refused.append((caller.order, error))
        torch.set_num_threads(decoder.num_threads(self._num_threads))
        return decoder.step(elsewhere, before), refused

    def _tell(self, desk: _Desk, events: list[Event], refused: list[tuple[Order, Exception]]) -> None:
        for order, error in refused:
            if (caller := desk.callers.pop(id(order), None)) is not None:
                caller.fail(error)
        for event in events:
            caller = desk.callers.get(id(event.order))
            if caller is None:
                continue
            caller.tell(event)
            if caller.is_over:
                del desk.callers[id(event.order)]
                took = time.perf_counter() - caller.arrived
                self._order_s = _TIME_MEMORY * self._order_s + (1 - _TIME_MEMORY) * took
                self._check_memory(caller)
        while self.unread_bytes > self._max_unread_bytes:
            self._cut_off(max(self._callers, key=lambda each: each.unread_bytes))

    @staticmethod
    def _check_memory(caller: _Caller) -> None:
        """Makes it an error that all answers of a caller ran out of memory."""
        if caller.num_lost < caller.num_answers:
            return
        if not caller.has_started:  # then nothing is to be read, and another worker may be asked
            caller.read()
        caller.fail(
            Overloaded(
                f"the device's memory ran out in the middle of {caller.num_answers} answers to a prompt of "
                f"{len(caller.order.ids)} tokens, the newest ones, while others went on; ask again later, or for fewer "
                "samples or tokens"
            )
        )

    def _cut_off(self, caller: _Caller) -> None:
        """Ends the answers of a caller who leaves too much unread, and forgets what he did not read."""
        unread_bytes = caller.unread_bytes
        caller.read()
        caller.fail(
            Overloaded(
                f"{unread_bytes} bytes of answers waited to be read, the most of all callers, who together may leave "
                f"{self._max_unread_bytes} bytes unread; read faster, or ask for fewer samples, tokens or latents"
            )
        )
        self._leave(caller)


async def _news(caller: _Caller, deadline: float | None) -> None:
    """Waits until there are events or an error. Raises TooLate at the deadline."""
    try:
        async with asyncio.timeout(None if deadline is None else max(0.0, deadline - time.perf_counter())):
            await caller.news.wait()
    except TimeoutError as error:
        raise TooLate("the deadline passed before the answers ended") from error
    caller.news.clear()
