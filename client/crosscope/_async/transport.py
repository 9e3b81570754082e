"""One gRPC channel, opened on first use: calls with deadlines, retries and translated errors. Knows no service."""

import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import grpc.aio

from crosscope import _aio
from crosscope._calls import outgoing
from crosscope._connection import Connection
from crosscope._errors import InvalidInput
from crosscope._status import error_of, is_connection_failure
from crosscope_proto import request_ids

if TYPE_CHECKING:
    from google.protobuf.message import Message

_Reply = TypeVar("_Reply")
_Stub = TypeVar("_Stub")

_RETRY_DELAYS_S = (0.1, 0.3)


class AsyncTransport:
    """The connection of one client."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._lock = threading.Lock()
        self._channel: grpc.aio.Channel | None = None
        self._stubs: dict[object, object] = {}
        self._closed = False

    @property
    def address(self) -> str:
        """Where the server is."""
        return self.connection.address

    def __reduce__(self) -> tuple[object, ...]:
        return AsyncTransport, (self.connection,)

    def stub(self, kind: Callable[[grpc.aio.Channel], _Stub]) -> _Stub:
        """The stub of one service, made once."""
        with self._lock:
            if self._closed:
                raise InvalidInput("this client is closed; make a new Client")
            if self._channel is None:
                self._channel = _aio.open_channel(self.connection)
            if kind not in self._stubs:
                self._stubs[kind] = kind(self._channel)
            return self._stubs[kind]  # pyright: ignore[reportReturnType]

    async def unary(
        self,
        method: "grpc.aio.UnaryUnaryMultiCallable[Any, _Reply]",
        request: "Message",
        *,
        idempotent: bool = True,
        timeout_s: float | None = None,
    ) -> _Reply:
        """Sends a request and returns the reply. An idempotent request is sent again when the connection fails.

        `timeout_s` is the connection's own by default.
        """
        timeout_s = timeout_s or self.connection.timeout_s
        delays = iter(_RETRY_DELAYS_S if idempotent else ())
        with outgoing(self.connection, method) as metadata:
            while True:
                try:
                    with _aio.failing():
                        return await method(request, timeout=timeout_s, metadata=metadata)
                except grpc.RpcError as error:
                    delay_s = next(delays, None) if is_connection_failure(error) else None
                    if delay_s is None:
                        raise error_of(error, self.address, timeout_s) from None
                await _aio.sleep(delay_s)
        raise AssertionError("unreachable: the loop returns or raises")

    async def upload(
        self, method: "grpc.aio.StreamUnaryMultiCallable[Any, _Reply]", requests: "Sequence[Message]"
    ) -> _Reply:
        """Sends many requests and returns the one reply."""
        timeout_s = self.connection.long_timeout_s
        with outgoing(self.connection, method) as metadata:
            try:
                with _aio.failing():
                    return await method(iter(requests), timeout=timeout_s, metadata=metadata)
            except grpc.RpcError as error:
                raise error_of(error, self.address, timeout_s) from None
        raise AssertionError("unreachable: the block returns or raises")

    async def stream(
        self, method: "grpc.aio.UnaryStreamMultiCallable[Any, _Reply]", request: "Message", timeout_s: float | None
    ) -> AsyncGenerator[_Reply, None]:
        """Sends a request and yields the replies; leaving the iterator early cancels the call."""
        with outgoing(self.connection, method) as metadata:
            call = await _aio.start(method, request, timeout=timeout_s, metadata=metadata)
            try:
                with _aio.failing():
                    async for reply in call:
                        yield reply
            except grpc.RpcError as error:
                raise error_of(error, self.address, timeout_s) from None
            finally:
                call.cancel()

    async def converse(self, method: "grpc.aio.StreamStreamMultiCallable[Any, _Reply]") -> "_aio.Conversation[_Reply]":
        """Opens a call with many requests and many replies, without a deadline."""
        metadata = (*self.connection.metadata, (request_ids.METADATA, request_ids.new_id()))
        return await _aio.Conversation[_Reply].open(method, metadata=metadata)

    async def close(self) -> None:
        """Closes the channel; calls in progress end with an error. Closing twice does nothing."""
        with self._lock:
            self._closed = True
            channel, self._channel = self._channel, None
            self._stubs.clear()
        if channel is not None:
            await _aio.close(channel)
