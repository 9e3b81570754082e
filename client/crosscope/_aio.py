"""What differs for asyncio: channels, calls, waiting. `_blocking` has the same names for threads.

The rest of the SDK is written once, in `_async`; `client/generate.py` makes the blocking half from it.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Generator, Iterable
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import grpc
import grpc.aio

from crosscope._connection import Connection

_Item = TypeVar("_Item")
_Reply = TypeVar("_Reply")

Lock = asyncio.Lock
Many = AsyncIterable
"""The base of a listing: an asynchronous iterable here, a sequence for threads."""
AnyIterable = Iterable[_Item] | AsyncIterable[_Item]
sleep = asyncio.sleep


def open_channel(connection: Connection) -> grpc.aio.Channel:
    """A channel to the server, in the event loop that runs."""
    if connection.tls is None:
        return grpc.aio.insecure_channel(connection.address, connection.options)
    return grpc.aio.secure_channel(connection.address, connection.tls.credentials(), connection.options)


async def close(channel: grpc.aio.Channel) -> None:
    """Closes a channel at once."""
    await channel.close(None)


async def start(method: Callable[..., Any], *arguments: object, **options: object) -> Any:
    """Starts a streaming call."""
    return method(*arguments, **options)


@contextmanager
def failing() -> Generator[None, None, None]:
    """A block in which a call raises an RpcError when its channel is closed, as it does for threads.

    gRPC itself cancels the call, which looks as if somebody had cancelled the task.
    """
    try:
        yield
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise _closed() from None
    except grpc.aio.UsageError:
        raise _closed() from None


def _closed() -> grpc.aio.AioRpcError:
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(grpc.StatusCode.CANCELLED, nothing, nothing, "the client was closed during a call", "")


async def drawn(items: AnyIterable[_Item]) -> AsyncIterator[_Item]:
    """The items of either kind of iterable."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


def wait_if_blocking(read: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Does nothing: what is printed in an event loop cannot wait for it."""


async def together(*calls: Callable[[], Coroutine[Any, Any, _Item]]) -> list[_Item]:
    """What calls return that are under way at once, in their order. The first error ends the others."""
    tasks = [asyncio.ensure_future(call()) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


class Conversation(Generic[_Reply]):
    """A call that sends and receives many messages. Sending never waits: messages queue until they can be sent."""

    def __init__(self, outbox: "asyncio.Queue[object]", call: Any) -> None:
        self._outbox, self._call = outbox, call

    @classmethod
    async def open(cls, method: Callable[..., Any], **options: object) -> "Conversation[_Reply]":
        """Starts the call."""
        outbox: asyncio.Queue[object] = asyncio.Queue()

        async def messages() -> AsyncIterator[object]:
            while (message := await outbox.get()) is not None:
                yield message

        return cls(outbox, method(messages(), **options))

    def send(self, message: object) -> None:
        """Queues a message."""
        self._outbox.put_nowait(message)

    async def receive(self) -> _Reply | None:
        """The next message of the other side; None after its last one."""
        reply = await self._call.read()
        return None if reply is grpc.aio.EOF else reply  # pyright: ignore[reportAttributeAccessIssue]

    def close(self) -> None:
        """Ends the call at once."""
        self._outbox.put_nowait(None)
        self._call.cancel()
