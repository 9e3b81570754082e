"""Ordered, bounded concurrency over a stream. Knows nothing about gRPC."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


async def in_order(source: AsyncIterable[T], work: Callable[[T], Awaitable[R]], limit: int) -> AsyncIterator[R]:
    """The results of `work` on each item, in the items' order, with at most `limit` items taken and not yet yielded.

    So a slow reader slows the reading of the source. When the reader goes away, all work under way is cancelled.
    """
    slots = asyncio.Semaphore(limit)
    results: asyncio.Queue[asyncio.Task[R] | None] = asyncio.Queue()
    running: set[asyncio.Task[R]] = set()

    async def run(item: T) -> R:
        return await work(item)

    async def read() -> None:
        try:
            items = aiter(source)
            while await slots.acquire():
                try:
                    item = await anext(items)
                except StopAsyncIteration:
                    break
                task = asyncio.create_task(run(item))
                running.add(task)
                results.put_nowait(task)
        finally:
            results.put_nowait(None)

    reader = asyncio.create_task(read())
    try:
        while (task := await results.get()) is not None:
            yield await task
            running.discard(task)
            slots.release()
        await reader
    finally:
        for task in (reader, *running):
            task.cancel()
        await asyncio.gather(reader, *running, return_exceptions=True)
