"""What differs for threads: channels, calls, waiting. `_aio` has the same names for asyncio; here every call blocks."""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any, Generic, TypeVar

import grpc

from crosscope._connection import Connection

_Item = TypeVar("_Item")
_Reply = TypeVar("_Reply")

Lock = threading.Lock
Many = Sequence
AnyIterable = Iterable[_Item]
sleep = time.sleep
failing = nullcontext
drawn = iter


def open_channel(connection: Connection) -> grpc.Channel:
    """A channel to the server."""
    if connection.tls is None:
        return grpc.insecure_channel(connection.address, connection.options)
    return grpc.secure_channel(connection.address, connection.tls.credentials(), connection.options)


def close(channel: grpc.Channel) -> None:
    """Closes a channel at once."""
    channel.close()


def start(method: Callable[..., Any], *arguments: object, **options: object) -> Any:
    """Starts a streaming call in another thread, because Ctrl-C interrupts the main thread only.

    A channel could never be closed again if Ctrl-C interrupted the start of a call.
    """
    with ThreadPoolExecutor(1) as starter:
        return starter.submit(method, *arguments, **options).result()


def wait_if_blocking(read: Callable[[], None]) -> None:
    """Reads what is still to come, so that whatever is printed is whole."""
    read()


def together(*calls: Callable[[], _Item]) -> list[_Item]:
    """What calls return that are under way at once, in their order. Raises the first error, and waits for no other."""
    callers = ThreadPoolExecutor(max(1, len(calls)))
    try:
        return list(callers.map(lambda call: call(), calls))
    finally:
        callers.shutdown(wait=False, cancel_futures=True)


class Conversation(Generic[_Reply]):
    """A call that sends and receives many messages. Sending never waits: messages queue until they can be sent."""

    def __init__(self, outbox: "queue.SimpleQueue[object]", call: Any) -> None:
        self._outbox, self._call = outbox, call

    @classmethod
    def open(cls, method: Callable[..., Any], **options: object) -> "Conversation[_Reply]":
        """Starts the call."""
        outbox: queue.SimpleQueue[object] = queue.SimpleQueue()
        return cls(outbox, start(method, iter(outbox.get, None), **options))

    def send(self, message: object) -> None:
        """Queues a message."""
        self._outbox.put(message)

    def receive(self) -> _Reply | None:
        """The next message of the other side; None after its last one."""
        return next(self._call, None)

    def close(self) -> None:
        """Ends the call at once."""
        self._outbox.put(None)
        self._call.cancel()
