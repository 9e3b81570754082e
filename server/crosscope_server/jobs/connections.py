"""The server's connections to the queue's Redis: few, bounded, and apart for calls, watchers and the janitor.

So a flood of one never takes those of another. Whoever finds none free waits a moment for one.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from redis import BlockingConnectionPool, Redis
from redis.asyncio import BlockingConnectionPool as AsyncBlockingConnectionPool
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from crosscope_server.errors import Unavailable

CALLS, THREADS = 16, 4
"""Connections of calls, and of their threads."""
_CALL_S, _JANITOR_S = 1.0, 15.0
"""How long one command of a call may take, and one of the janitor."""
_ANSWER_S = 1.3
"""How long a call waits in all for a queue that stalls."""
_RETRIES = 3
_CANCEL_AGAIN_S = 0.2
_BACKOFF = ExponentialBackoff(cap=0.2, base=0.02)


class Connections:
    """Clients of one Redis. A broken connection is made anew at once; what takes too long is not asked again."""

    def __init__(self, url: str) -> None:
        self.calls = _asking(url, CALLS, _CALL_S)
        self.calls_blocking = _blocking(url, THREADS, _CALL_S)
        self.watching = _asking(url, 1, _CALL_S)
        self.janitor = _asking(url, 2, _JANITOR_S)
        self.janitor_blocking = _blocking(url, 1, _JANITOR_S)

    async def close(self) -> None:
        """Disconnects."""
        for client in (self.calls, self.watching, self.janitor):
            await client.aclose()
        for client in (self.calls_blocking, self.janitor_blocking):
            client.close()


async def end_task(task: asyncio.Task[None]) -> None:
    """Ends a task that asks Redis for ever, whose client may turn a cancellation into an error of its own."""
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=_CANCEL_AGAIN_S)


def _asking(url: str, most: int, timeout_s: float) -> AsyncRedis:
    """A client for the event loop, which decodes responses."""
    retry = AsyncRetry(_BACKOFF, _RETRIES, supported_errors=(RedisConnectionError,))
    pool = AsyncBlockingConnectionPool.from_url(
        url,
        max_connections=most,
        timeout=timeout_s,
        decode_responses=True,
        socket_connect_timeout=timeout_s,
        socket_timeout=timeout_s,
        retry=retry,
    )
    return AsyncRedis.from_pool(pool)


def _blocking(url: str, most: int, timeout_s: float) -> Redis:
    """A client for threads, which does not decode responses."""
    retry = Retry(_BACKOFF, _RETRIES, supported_errors=(RedisConnectionError,))
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=most,
        timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        socket_timeout=timeout_s,
        retry=retry,
    )
    return Redis.from_pool(pool)


@contextlib.asynccontextmanager
async def queue_needed(within_s: float = _ANSWER_S) -> AsyncGenerator[None]:
    """Raises Unavailable if Redis does not answer in time, or cannot write."""
    try:
        async with asyncio.timeout(within_s):
            yield
    except (RedisConnectionError, RedisTimeoutError, TimeoutError) as error:
        why = str(error) or f"not within {within_s:g} s"
        text = f"the job queue does not answer ({why}); running jobs go on; try again in a moment"
        raise Unavailable(text) from error
    except ResponseError as error:
        if not str(error).startswith(("MISCONF", "OOM", "READONLY")):
            raise
        raise Unavailable(f"the job queue cannot write; its disk or memory may be full: {error}") from error
