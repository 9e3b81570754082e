"""The result cache: bytes by key in a Redis. When the cache is away, slow or corrupt, a look-up is a miss and never an
error.

Look-ups that come while one is under way go together in the next. After a failure the cache is not asked until a ping
in the background succeeds, so a dead cache costs callers nothing. Knows nothing about what it holds.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import islice
from typing import TypeVar

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

T = TypeVar("T")

_PATIENCE_S = 0.05
_TICK_S = 0.005
_MOST_S = 0.5
"""Longest wait for an answer where the event loop itself is late."""
_PING_EVERY_S = 1.0
_WRITE_S = 1.0
_MAX_CONNECTIONS = 3
"""One for look-ups, one for writes, one to see whether the cache is back."""
_MAX_KEYS = 32
"""Keys of one look-up, and values of one write."""
_MAX_PENDING_WRITES = 64
_MAX_VALUE_BYTES = 8_000_000
_FAILURES = (RedisError, OSError, TimeoutError)

log = logging.getLogger(__name__)


class Cache:
    """Bytes by key in a Redis. For one event loop."""

    def __init__(self, url: str, count: Callable[[str], None]) -> None:
        """Connects to redis:// or unix:// when first used; `count` gets "hit", "miss", "failed" or "skipped"."""
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            url, max_connections=_MAX_CONNECTIONS, timeout=None, retry=Retry(NoBackoff(), 0)
        )
        self._redis = redis.asyncio.Redis.from_pool(pool)
        self._count = count
        self._wanted: defaultdict[str, list[asyncio.Future[bytes | None]]] = defaultdict(list)
        self._writes: dict[str, tuple[Callable[[], bytes], int]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        """What runs in the background, by what it does."""

    @property
    def is_up(self) -> bool:
        """Whether the cache is asked."""
        return "recover" not in self._tasks

    async def get(self, key: str) -> bytes | None:
        """The value of a key; None if there is none, or if the cache takes more than 50 ms to answer.

        Time in which the event loop was busy does not count.
        """
        if not self.is_up:
            self._count("skipped")
            return None
        waits = asyncio.get_running_loop().create_future()
        self._wanted[key].append(waits)
        self._run("read", self._read)
        try:
            value = await waits
        except _FAILURES:
            self._count("failed")
            return None
        self._count("miss" if value is None else "hit")
        return value

    def put(self, key: str, pack: Callable[[], bytes], ttl_s: int) -> None:
        """Packs and stores a value in the background, so that no answer waits for it."""
        if self.is_up and len(self._writes) < _MAX_PENDING_WRITES:
            self._writes[key] = pack, ttl_s
            self._run("write", self._write)

    async def written(self) -> None:
        """Waits until every value is stored or given up."""
        while task := self._tasks.get("write"):
            await asyncio.wait({task})

    async def close(self) -> None:
        """Cancels all that is under way and disconnects."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._redis.aclose()
        await self._redis.connection_pool.disconnect()

    def _run(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        """Begins one of the background's tasks, unless it is under way."""
        if what not in self._tasks:

            async def run() -> None:
                try:
                    await work()
                finally:
                    del self._tasks[what]

            self._tasks[what] = asyncio.create_task(run())

    async def _read(self) -> None:
        """Looks up whatever is wanted, many keys at a time, until nothing is."""
        while self._wanted:
            keys = list(islice(self._wanted, _MAX_KEYS))
            waiting = [self._wanted.pop(key) for key in keys]
            try:
                values = await patiently(self._redis.mget(keys), _PATIENCE_S, _MOST_S)
            except _FAILURES as error:
                self._failed(error)
                waiting += self._wanted.values()
                self._wanted.clear()
                outcomes: list[bytes | Exception | None] = [error] * len(waiting)
            else:
                outcomes = [value if isinstance(value, bytes) else None for value in values]
            for futures, outcome in zip(waiting, outcomes, strict=True):
                for future in futures:
                    if future.done():
                        continue
                    if isinstance(outcome, Exception):
                        future.set_exception(outcome)
                    else:
                        future.set_result(outcome)

    async def _write(self) -> None:
        while self._writes:
            keys = list(islice(self._writes, _MAX_KEYS))
            pipeline = self._redis.pipeline(transaction=False)
            for key in keys:
                pack, ttl_s = self._writes.pop(key)
                if len(value := pack()) <= _MAX_VALUE_BYTES:
                    pipeline.set(key, value, ex=ttl_s)
                await asyncio.sleep(0)
            try:
                await patiently(pipeline.execute(raise_on_error=False), _WRITE_S, 2 * _WRITE_S)
            except _FAILURES as error:
                self._failed(error)
                self._writes.clear()

    def _failed(self, error: Exception) -> None:
        if self.is_up:
            said = f"{type(error).__name__}: {error}"[:200]
            log.warning("cache does not answer, going on without it", extra={"error": said})
            self._run("recover", self._recover)

    async def _recover(self) -> None:
        while True:
            await asyncio.sleep(_PING_EVERY_S)
            with suppress(*_FAILURES):
                await patiently(self._redis.ping(), _PATIENCE_S, _MOST_S)
                break
        log.info("cache answers again")


async def patiently(work: Awaitable[T], patience_s: float, most_s: float) -> T:
    """The result of `work`. Raises TimeoutError if it takes longer than `patience_s`.

    Time in which the event loop was late does not count, since an answer may have come and waits to be read. In all it
    is given `most_s`.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work)
    begun = loop.time()
    try:
        while patience_s > 0 and loop.time() - begun < most_s:
            before = loop.time()
            done, _ = await asyncio.wait({task}, timeout=_TICK_S)
            if done:
                return task.result()
            if loop.time() - before < 2 * _TICK_S:
                patience_s -= _TICK_S
        raise TimeoutError(f"no answer within {loop.time() - begun:.2f} s")
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
