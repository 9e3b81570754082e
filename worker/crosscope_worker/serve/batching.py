"""Puts entries that wait for the device into batches. Does not know what an entry is or what the device does.

There is no timed wait: a batch starts as soon as the device is free, with everything that fits. So batches grow by
themselves while the device is busy.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from crosscope_worker.serve.errors import Overloaded, TooLate
from crosscope_worker.work import is_out_of_memory

Key = TypeVar("Key")
Item = TypeVar("Item")
Result = TypeVar("Result")

_FIRST_RATE = 10_000.0
"""Tokens per second assumed before anything was measured."""
_RATE_MEMORY = 0.8
_MIN_RETRY_S = 0.05


@dataclass(frozen=True)
class Answer(Generic[Result]):
    """The result of an entry, and its waiting and computing times."""

    result: Result
    queue_s: float
    """From arrival until its batch started."""
    compute_s: float
    """Time of the batch that held the entry."""
    batch: int
    """Entries of that batch."""


@dataclass(eq=False)
class _Entry(Generic[Key, Item, Result]):
    key: Key
    item: Item
    num_tokens: int
    deadline: float | None
    future: "asyncio.Future[Answer[Result]]"
    arrived: float = field(default_factory=time.perf_counter)


class Batcher(Generic[Key, Item, Result]):
    """A queue in front of one device.

    `run(key, items)` returns one result per item; it is called on `executor`, one call at a time, with items of one
    key. A batch that runs out of memory is split. A batch that fails otherwise is bisected until the faulty entry is
    alone.
    """

    def __init__(
        self,
        run: Callable[[Key, Sequence[Item]], Sequence[Result]],
        executor: Executor,
        max_batch_tokens: int,
        max_queued_tokens: int,
        on_batch: Callable[[Sequence[float], int, float], None] | None = None,
    ) -> None:
        """`max_batch_tokens` includes padding; a longer entry runs alone.

        `on_batch` is told of each batch how many seconds its entries had waited, how many tokens they have together,
        and how many seconds the batch took.
        """
        self._run = run
        self._executor = executor
        self._on_batch = on_batch
        self._max_batch_tokens = max_batch_tokens
        self._max_queued_tokens = max_queued_tokens
        self._waiting: deque[_Entry[Key, Item, Result]] = deque()
        self._queued_tokens = 0
        self._rate = _FIRST_RATE
        self._worker: asyncio.Task[None] | None = None

    @property
    def queued_tokens(self) -> int:
        """Tokens that wait for the device."""
        return self._queued_tokens

    async def submit(self, key: Key, item: Item, num_tokens: int, timeout_s: float | None = None) -> Answer[Result]:
        """The result of one entry.

        Raises Overloaded if too many tokens wait or the entry alone does not fit the device's memory, TooLate if
        `timeout_s` passes before its batch starts, and whatever `run` raises for this entry.
        """
        if self._queued_tokens and self._queued_tokens + num_tokens > self._max_queued_tokens:
            raise Overloaded(
                f"{self._queued_tokens} tokens wait for the device, and {num_tokens} more would exceed the limit of "
                f"{self._max_queued_tokens}; try again later",
                retry_after_s=max(_MIN_RETRY_S, self._queued_tokens / self._rate),
            )
        deadline = None if timeout_s is None else time.perf_counter() + timeout_s
        entry = _Entry[Key, Item, Result](key, item, num_tokens, deadline, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        self._queued_tokens += num_tokens
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await entry.future

    async def _work(self) -> None:
        while batch := self._next_batch():
            await self._answer(batch)

    def _next_batch(self) -> list[_Entry[Key, Item, Result]]:
        """The oldest entry and those of its key that fit beside it, oldest first. Drops entries that no caller waits
        for.
        """
        now = time.perf_counter()
        batch: list[_Entry[Key, Item, Result]] = []
        passed: deque[_Entry[Key, Item, Result]] = deque()
        longest = 0
        while self._waiting:
            entry = self._waiting.popleft()
            if not self._is_wanted(entry, now):
                self._queued_tokens -= entry.num_tokens
                continue
            width = max(longest, entry.num_tokens)
            if batch and (entry.key != batch[0].key or (len(batch) + 1) * width > self._max_batch_tokens):
                passed.append(entry)
                continue
            batch.append(entry)
            longest = width
            self._queued_tokens -= entry.num_tokens
        self._waiting = passed
        return batch

    @staticmethod
    def _is_wanted(entry: _Entry[Key, Item, Result], now: float) -> bool:
        if entry.future.done():
            return False
        if entry.deadline is not None and now > entry.deadline:
            entry.future.set_exception(TooLate("the deadline passed while the prompt waited for the device"))
            return False
        return True

    async def _answer(self, batch: list[_Entry[Key, Item, Result]]) -> None:
        """Runs a batch and answers its entries; halves it where it fails."""
        started = time.perf_counter()
        batch = [entry for entry in batch if self._is_wanted(entry, started)]
        if not batch:
            return
        key, items = batch[0].key, [entry.item for entry in batch]
        try:
            results = await asyncio.get_running_loop().run_in_executor(self._executor, self._run, key, items)
        except Exception as error:  # any error is the answer to the entry that causes it
            if len(batch) == 1:
                self._fail(batch[0], error)
                return
            middle = len(batch) // 2
            await self._answer(batch[:middle])
            await self._answer(batch[middle:])
            return
        compute_s = time.perf_counter() - started
        num_tokens = sum(entry.num_tokens for entry in batch)
        if self._on_batch is not None:
            self._on_batch([started - entry.arrived for entry in batch], num_tokens, compute_s)
        rate = num_tokens / max(compute_s, 1e-6)
        self._rate = _RATE_MEMORY * self._rate + (1 - _RATE_MEMORY) * rate
        for entry, result in zip(batch, results, strict=True):
            if not entry.future.done():
                entry.future.set_result(Answer(result, started - entry.arrived, compute_s, len(batch)))

    @staticmethod
    def _fail(entry: _Entry[Key, Item, Result], error: Exception) -> None:
        if entry.future.done():
            return
        if is_out_of_memory(error):
            sentence = f"work on {entry.num_tokens} tokens does not fit the device's memory; shorten the prompt"
            error = Overloaded(sentence)
        entry.future.set_exception(error)
