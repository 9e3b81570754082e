"""Answers that are worked out once: from the cache, else by a computation that equal questions share.

Knows nothing about what an answer is or who computes it.
"""

import asyncio
import zlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import DecodeError, Message

from crosscope_proto.keys import ENCODE_TTL_S, per_caller_key
from crosscope_server.cache import Cache
from crosscope_server.callers import calling

T = TypeVar("T")

Compute = Callable[[float], Coroutine[Any, Any, T]]
"""Computes an answer within so many seconds."""

_MAX_WAIT_S = 120.0
"""Longest time for an answer, also of a caller without a deadline."""


@dataclass(frozen=True)
class Packing(Generic[T]):
    """How answers of one kind are kept."""

    message: Callable[[T], Message]
    """The message that holds an answer."""
    answer: Callable[[bytes], T]
    """The answer in a serialised message. Raises ValueError or DecodeError for other bytes."""


@dataclass
class _Flight:
    """A computation that several callers may wait for."""

    task: asyncio.Task[Any]
    deadline: float
    num_waiting: int = 0
    is_kept: bool = False
    """Whether the result is in the cache or on its way there."""


class Replies:
    """Answers by key. For one event loop."""

    def __init__(self, cache: Cache | None, *, per_caller: bool = False) -> None:
        """With `per_caller`, nobody gets what was computed for another, and so learns nothing from how fast it came."""
        self._cache = cache
        self._per_caller = per_caller
        self._flights: dict[str, _Flight] = {}

    async def get(self, key: str, packing: Packing[T], compute: Compute[T], timeout_s: float | None) -> tuple[T, bool]:
        """The answer for a key, and whether it came from the cache."""
        if self._per_caller:
            key = per_caller_key(key, calling().name)
        if (found := await self._cached(key, packing)) is not None:
            return found, True
        return await self._share(key, packing, compute, timeout_s), False

    async def _cached(self, key: str, packing: Packing[T]) -> T | None:
        if self._cache is None or (data := await self._cache.get(key)) is None:
            return None
        try:
            return unpack(data, key, packing)
        except ValueError:
            return None  # the answer that is computed now will replace it

    async def _share(self, key: str, packing: Packing[T], compute: Compute[T], timeout_s: float | None) -> T:
        """Joins a computation under way, unless its deadline is before this caller's."""
        loop = asyncio.get_running_loop()
        timeout_s = _MAX_WAIT_S if timeout_s is None else min(timeout_s, _MAX_WAIT_S)
        deadline = loop.time() + timeout_s
        flight = self._flights.get(key)
        if flight is None or flight.task.done() or flight.deadline < deadline - 0.05:
            flight = self._flights[key] = _Flight(loop.create_task(compute(timeout_s)), deadline)
            flight.task.add_done_callback(lambda _, flight=flight: self._land(key, flight))
        flight.num_waiting += 1
        try:
            answer = await asyncio.shield(flight.task)
        finally:
            flight.num_waiting -= 1
            if flight.num_waiting == 0 and not flight.task.done():
                self._land(key, flight)  # nobody may join a computation that is about to be cancelled
                flight.task.cancel()
        if self._cache is not None and not flight.is_kept:
            flight.is_kept = True
            self._cache.put(key, lambda: pack(answer, key, packing), ENCODE_TTL_S)
        return answer

    def _land(self, key: str, flight: _Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]


def pack(answer: T, key: str, packing: Packing[T]) -> bytes:
    """The bytes of an answer for the cache: a checksum of key and content, then its message."""
    body = packing.message(answer).SerializeToString()
    return _checksum(key, body) + body


def unpack(data: bytes, key: str, packing: Packing[T]) -> T:
    """The answer that was packed for the same key. Raises ValueError for other bytes."""
    body = data[4:]
    if _checksum(key, body) != data[:4]:
        raise ValueError(f"{len(data)} bytes that are no cached answer")
    try:
        return packing.answer(body)
    except DecodeError as error:
        raise ValueError(f"a cached answer of another layout: {error}") from error


def _checksum(key: str, body: bytes) -> bytes:
    return zlib.crc32(body, zlib.crc32(key.encode())).to_bytes(4, "little")
