"""Tells all who watch jobs that something has changed: one reader and one connection for all of them.

A watcher that is told reads for itself, so nothing is kept for slow ones. Knows nothing about gRPC.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from crosscope_proto import keys
from crosscope_server.errors import Overloaded, Unavailable
from crosscope_server.jobs.connections import end_task

MAX_WATCHERS = 1000
"""Most calls that watch jobs at a time."""
_BLOCK_MS = 200
"""How long one read waits for events; a job that is newly watched is heard of within this time."""
_LOOK_S = 2.0
"""Every watched job is looked at this often, because its place in the queue changes without an event."""
_AWAY_S = 0.5
_TURNS = 8
"""Watchers that read at a time."""


class Watched:
    """A job that somebody watches."""

    def __init__(self) -> None:
        self.version = 0
        """Rises with every change."""
        self.num_watchers = 0
        self.last_event = ""
        self._changed = asyncio.Event()

    async def change(self, seen: int) -> None:
        """Waits until the version is another than `seen`."""
        while self.version == seen:
            await self._changed.wait()

    def wake(self) -> None:
        """Tells those who wait."""
        self.version += 1
        self._changed.set()
        self._changed = asyncio.Event()


class Watchers:
    """All who watch. For one event loop; `redis` decodes responses, and nothing else uses its connection."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._watched: dict[str, Watched] = {}
        self._num_watchers = 0
        self._reader: asyncio.Task[None] | None = None
        self._turns = asyncio.Semaphore(_TURNS)
        self._away_at, self._why_away = float("-inf"), ""

    @contextlib.asynccontextmanager
    async def watching(self, job_id: str) -> AsyncGenerator[Watched]:
        """The job, for as long as one call watches it. Raises Overloaded beyond MAX_WATCHERS."""
        if self._num_watchers >= MAX_WATCHERS:
            sentence = f"{MAX_WATCHERS} calls watch jobs, which is the most; ask for a job's state now and then instead"
            raise Overloaded(sentence, retry_after_s=5.0)
        watched = self._watched.setdefault(job_id, Watched())
        watched.num_watchers += 1
        self._num_watchers += 1
        if self._reader is None or self._reader.done():
            self._reader = asyncio.create_task(self._read(), name="watchers")
        try:
            yield watched
        finally:
            self._num_watchers -= 1
            watched.num_watchers -= 1
            if not watched.num_watchers:
                del self._watched[job_id]

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncGenerator[None]:
        """A watcher's turn to read; few read at a time, so that all others' calls find room.

        If the queue turns out to be away, all who wait for their turn get the same Unavailable at once. Who comes later
        asks anew.
        """
        came_at = time.monotonic()
        async with self._turns:
            if self._away_at >= came_at:
                raise Unavailable(self._why_away)
            try:
                yield
            except Unavailable as error:
                self._away_at, self._why_away = time.monotonic(), error.sentence
                raise

    async def close(self) -> None:
        """Stops reading."""
        if self._reader is not None:
            await end_task(self._reader)

    async def _read(self) -> None:
        """Reads for as long as anybody watches."""
        looked_at = time.monotonic()
        while self._watched:
            try:
                await self._join([job_id for job_id, each in self._watched.items() if not each.last_event])
                await self._hear({job_id: each.last_event for job_id, each in self._watched.items()})
            except RedisError:
                self._wake(list(self._watched))  # Each finds for itself that the queue is away.
                await asyncio.sleep(_AWAY_S)
            if time.monotonic() - looked_at >= _LOOK_S:
                looked_at = time.monotonic()
                self._wake(list(self._watched))

    async def _join(self, job_ids: Sequence[str]) -> None:
        """Notes where the events of newly watched jobs end, and wakes those who may have missed the last one."""
        if not job_ids:
            return
        async with self._redis.pipeline(transaction=False) as pipeline:
            for job_id in job_ids:
                pipeline.xrevrange(keys.events_key(job_id), count=1)
            found: list[Any] = await pipeline.execute()
        for job_id, entries in zip(job_ids, found, strict=True):
            if watched := self._watched.get(job_id):
                watched.last_event = entries[0][0] if entries else "0-0"
        self._wake(job_ids)

    async def _hear(self, after: Mapping[str, str]) -> None:
        """Waits a moment for events, and wakes those who watch their jobs."""
        job_ids = {keys.events_key(job_id): job_id for job_id in after}
        streams: Any = {keys.events_key(job_id): event for job_id, event in after.items()}
        reply: Any = await self._redis.xread(streams, count=100, block=_BLOCK_MS)
        heard = [(stream, found[0]) for stream, found in reply.items()] if isinstance(reply, dict) else reply
        for stream, entries in heard:
            if (watched := self._watched.get(job_ids[stream])) and entries:
                watched.last_event = entries[-1][0]
        self._wake([job_ids[stream] for stream, _ in heard])

    def _wake(self, job_ids: Sequence[str]) -> None:
        for job_id in job_ids:
            if watched := self._watched.get(job_id):
                watched.wake()
