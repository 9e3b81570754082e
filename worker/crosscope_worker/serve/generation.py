"""Lets callers share the device while their prompts are continued. Knows no gRPC and no models.

One step at a time goes to the device's thread, which also runs the batches of prompts that are encoded, in the order in
which they come. So whoever wants the device waits for one step at most.
"""

import asyncio
import functools
import time
from collections.abc import AsyncGenerator, Hashable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch

from crosscope_worker.effects.decoding import Decoder
from crosscope_worker.effects.orders import Ended, Event, Order, Started
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
    num_open: int
    arrived: float = field(default_factory=time.perf_counter)
    events: list[Event] = field(default_factory=list[Event])
    news: asyncio.Event = field(default_factory=asyncio.Event)
    error: Exception | None = None
    has_started: bool = False


@dataclass(eq=False)
class _Desk:
    """The callers of one subject."""

    subject: Subject
    decoder: Decoder | None = None
    arriving: list[_Caller] = field(default_factory=list[_Caller])
    leaving: list[Order] = field(default_factory=list[Order])
    callers: dict[int, _Caller] = field(default_factory=dict[int, _Caller])
    """By the identity of the order, once the decoder has it."""


class Generations:
    """Continues the prompts of many callers. Lives on one event loop."""

    def __init__(
        self,
        executor: Executor,
        cache_bytes: int,
        prefill_tokens: int,
        max_waiting: int,
        max_tokens: int | None = None,
        num_threads: int | None = None,
    ) -> None:
        """`executor` is the device's one thread. `max_waiting` orders may wait for room; see Decoder for the others."""
        self._executor = executor
        self._cache_bytes = cache_bytes
        self._prefill_tokens = prefill_tokens
        self._max_waiting = max_waiting
        self._max_tokens = max_tokens
        self._num_threads = num_threads or torch.get_num_threads()
        self._desks: dict[Hashable, _Desk] = {}
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

    async def generate(
        self, subject_key: Hashable, subject: Subject, order: Order, timeout_s: float | None = None
    ) -> AsyncGenerator[list[Event]]:
        """What comes of an order, until all its answers have ended. Orders of one key share their steps.

        Whoever stops asking frees his place before the next step. Raises Overloaded, DoesNotFit, InterventionError and
        PairError before the first event, and TooLate once `timeout_s` has passed.
        """
        self._check_room()
        deadline = None if timeout_s is None else time.perf_counter() + timeout_s
        caller = _Caller(order, sum(arm.sampling.num_samples for arm in order.arms))
        desk = self._desks.setdefault(subject_key, _Desk(subject))
        desk.arriving.append(caller)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        try:
            while caller.num_open:
                await _news(caller, deadline)
                if caller.events:
                    events, caller.events = caller.events, []
                    yield events
                elif caller.error is not None:
                    raise caller.error
            if caller.events:
                yield caller.events
        finally:
            if caller.num_open:
                self._leave(desk, caller)

    def _check_room(self) -> None:
        if (waiting := self.num_waiting) >= self._max_waiting:
            running = sum(len(desk.callers) for desk in self._desks.values())
            raise Overloaded(
                f"{waiting} prompts wait to be continued, and the limit is {self._max_waiting}; try again later",
                retry_after_s=max(_MIN_RETRY_S, self._order_s * waiting / max(1, running - waiting)),
            )

    @staticmethod
    def _leave(desk: _Desk, caller: _Caller) -> None:
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
                orders = [caller.order for caller in arriving]
                others = (each.decoder for each in self._desks.values() if each is not desk)
                elsewhere = sum(decoder.planned_bytes for decoder in others if decoder is not None)
                turn = functools.partial(self._turn, desk, orders, leaving, elsewhere)
                try:
                    events, refused = await loop.run_in_executor(self._executor, turn)
                except Exception as error:  # the answer to everyone whose order was in the step
                    desk.decoder = None
                    events, refused = [], [(caller.order, error) for caller in desk.callers.values()]
                self._tell(desk, events, refused)
                if (desk.decoder is None or desk.decoder.is_idle) and not desk.arriving:
                    del self._desks[key]

    def _turn(
        self, desk: _Desk, orders: list[Order], leaving: list[Order], elsewhere: int
    ) -> tuple[list[Event], list[tuple[Order, Exception]]]:
        """One step of a subject, on the device's thread; events, and orders that were refused."""
        torch.set_num_threads(self._num_threads)
        decoder = desk.decoder
        if decoder is None:
            known = self._token_bytes.get(desk.subject)
            decoder = Decoder(desk.subject, self._cache_bytes, self._prefill_tokens, self._max_tokens, known)
            self._token_bytes[desk.subject] = decoder.token_bytes
            desk.decoder = decoder
        for order in leaving:
            decoder.drop(order)
        refused: list[tuple[Order, Exception]] = []
        for order in orders:
            try:
                decoder.admit(order)
            except Exception as error:  # the answer to this order alone
                refused.append((order, error))
        return decoder.step(elsewhere), refused

    def _tell(self, desk: _Desk, events: list[Event], refused: list[tuple[Order, Exception]]) -> None:
        for order, error in refused:
            if (caller := desk.callers.pop(id(order), None)) is not None:
                caller.error = error
                caller.news.set()
        for event in events:
            caller = desk.callers.get(id(event.order))
            if caller is None:
                continue
            caller.events.append(event)
            caller.news.set()
            caller.has_started |= isinstance(event, Started)
            caller.num_open -= isinstance(event, Ended)
            if not caller.num_open:
                del desk.callers[id(event.order)]
                took = time.perf_counter() - caller.arrived
                self._order_s = _TIME_MEMORY * self._order_s + (1 - _TIME_MEMORY) * took


async def _news(caller: _Caller, deadline: float | None) -> None:
    """Waits until there are events or an error. Raises TooLate at the deadline."""
    try:
        async with asyncio.timeout(None if deadline is None else max(0.0, deadline - time.perf_counter())):
            await caller.news.wait()
    except TimeoutError as error:
        raise TooLate("the deadline passed before the answers ended") from error
    caller.news.clear()
