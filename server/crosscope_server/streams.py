"""Ordered, bounded concurrency over a stream. Knows nothing about gRPC."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import TypeVar

from crosscope_server.refusals import Refused
from crosscope_server.unread import Unread

T = TypeVar("T")
R = TypeVar("R")


async def in_order(
    source: AsyncIterable[T],
    work: Callable[[T], Awaitable[R]],
    limit: int,
    unread: Unread | None = None,
    size: Callable[[R], int] = lambda _: 0,
) -> AsyncIterator[R]:
    """The results of `work` on each item, in the items' order, with at most `limit` items taken and not yet yielded.

    So a slow reader slows the reading of the source. Results that wait for their reader count with their `size` in
    `unread`, if it is given; raises Overloaded where this stream leaves most unread. When the reader goes away, all
    work under way is cancelled.
    """
    slots = asyncio.Semaphore(limit)
    results: asyncio.Queue[asyncio.Task[R] | None] = asyncio.Queue()
    running: set[asyncio.Task[R]] = set()

    def forget() -> None:
        for task in (reader, *running):
            task.cancel()
        running.clear()
        while not results.empty():
            results.get_nowait()
        results.put_nowait(None)

    async def run(item: T) -> R:
        result = await work(item)
        held.hold(size(result))
        return result

    async def read() -> None:
        try:
            items = aiter(source)
            while await slots.acquire():
                await held.room()
                try:
                    item = await anext(items)
                except StopAsyncIteration:
                    break
                await held.take()
                task = asyncio.create_task(run(item))
                running.add(task)
                results.put_nowait(task)
                del item, task  # while it waits for the next, nothing keeps the last result
        finally:
            results.put_nowait(None)

    held = (unread or Unread(1, Refused())).begin(forget)
    reader = asyncio.create_task(read())
    try:
        while (task := await results.get()) is not None:
            await asyncio.wait({task})
            if held.error is not None:
                raise held.error
            result = task.result()
            running.discard(task)
            held.hand(size(result))
            task = None
            yield result
            del result
            held.handed()
            slots.release()
        if held.error is not None:
            raise held.error
        await reader
    finally:
        held.close()
        for task in (reader, *running):
            task.cancel()
        await asyncio.gather(reader, *running, return_exceptions=True)
