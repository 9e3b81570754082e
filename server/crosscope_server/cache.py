"""The result cache. If the cache is away, slow or corrupt, a look-up is a miss and never an error.

After a failure the cache is not asked until a ping in the background succeeds, so a dead cache costs callers nothing.
Knows nothing about what it holds.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

_TIMEOUT_S = 0.05
_PING_EVERY_S = 1.0
_MAX_PENDING_WRITES = 64
_MAX_VALUE_BYTES = 8_000_000

log = logging.getLogger(__name__)


class Cache:
    """Bytes by key in a Redis. For one event loop."""

    def __init__(self, url: str, count: Callable[[str], None]) -> None:
        """Connects to redis:// or unix:// when first used; `count` gets "hit", "miss", "failed" or "skipped"."""
        self._redis = redis.asyncio.from_url(
            url,
            socket_timeout=_TIMEOUT_S,
            socket_connect_timeout=_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        )
        self._count = count
        self._writes: set[asyncio.Task[None]] = set()
        self._recovery: asyncio.Task[None] | None = None

    @property
    def is_up(self) -> bool:
        """Whether the cache is asked."""
        return self._recovery is None

    async def get(self, key: str) -> bytes | None:
        """The value of a key; None if there is none, or if the cache does not answer within 50 ms."""
        if not self.is_up:
            self._count("skipped")
            return None
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                value = await self._redis.get(key)
        except (RedisError, OSError, TimeoutError) as error:
            self._failed(error)
            self._count("failed")
            return None
        self._count("miss" if value is None else "hit")
        return value if isinstance(value, bytes) else None

    def put(self, key: str, pack: Callable[[], bytes], ttl_s: int) -> None:
        """Packs and stores a value in the background, so that no answer waits for it."""
        if not self.is_up or len(self._writes) >= _MAX_PENDING_WRITES:
            return
        task = asyncio.create_task(self._put(key, pack, ttl_s))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)

    async def written(self) -> None:
        """Waits until every value is stored or given up."""
        await asyncio.gather(*self._writes)

    async def close(self) -> None:
        """Cancels all writes under way and disconnects."""
        tasks = [*self._writes, *([self._recovery] if self._recovery else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._redis.aclose()

    async def _put(self, key: str, pack: Callable[[], bytes], ttl_s: int) -> None:
        value = pack()
        if len(value) > _MAX_VALUE_BYTES:
            return
        try:
            async with asyncio.timeout(1.0):
                await self._redis.set(key, value, ex=ttl_s)
        except (RedisError, OSError, TimeoutError) as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        if self._recovery is None:
            said = f"{type(error).__name__}: {error}"[:200]
            log.warning("cache does not answer, going on without it", extra={"error": said})
            self._recovery = asyncio.create_task(self._recover())

    async def _recover(self) -> None:
        while True:
            await asyncio.sleep(_PING_EVERY_S)
            with suppress(RedisError, OSError, TimeoutError):
                async with asyncio.timeout(_TIMEOUT_S):
                    await self._redis.ping()
                break
        log.info("cache answers again")
        self._recovery = None
