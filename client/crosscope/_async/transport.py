"""One gRPC channel, opened on first use: calls with deadlines, retries and translated errors. Knows no service."""

import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import grpc.aio

from crosscope import _aio
from crosscope._calls import outgoing
from crosscope._connection import Connection
from crosscope._errors import CrosscopeError, InvalidInput, Unauthorized
from crosscope._repeats import REPEATS, Patience, Repeat
from crosscope._status import error_of, failure_of
from crosscope_proto import request_ids

if TYPE_CHECKING:
    from google.protobuf.message import Message

_Reply = TypeVar("_Reply")
_Stub = TypeVar("_Stub")


class AsyncTransport:
    """The connection of one client."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._lock = threading.Lock()
        self._channel: grpc.aio.Channel | None = None
        self._stubs: dict[object, object] = {}
        self._closed = False
        self._was_answered = False

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
        timeout_s: float | None = None,
    ) -> _Reply:
        """Sends a request and returns the reply. What fails in passing is tried again, as REPEATS says.

        `timeout_s` is that of all tries, and the connection's own by default.
        """
        return await self._tried(method, lambda **given: method(request, **given), request, timeout_s)

    async def upload(
        self, method: "grpc.aio.StreamUnaryMultiCallable[Any, _Reply]", requests: "Sequence[Message]"
    ) -> _Reply:
        """Sends many requests and returns the one reply."""
        timeout_s = self.connection.long_timeout_s
        return await self._tried(method, lambda **given: method(iter(requests), **given), requests[0], timeout_s)

    async def _tried(
        self, method: object, send: Callable[..., Any], request: "Message", timeout_s: float | None
    ) -> Any:
        timeout_s = timeout_s or self.connection.timeout_s
        patience = self.patience(timeout_s)
        with outgoing(method) as about:
            while True:
                try:
                    with _aio.failing():
                        reply = await send(timeout=patience.left_s, metadata=(*self.connection.metadata, *about))
                    self._was_answered = True
                    return reply
                except grpc.RpcError as error:
                    pause_s = self._pause_s(error, patience, request)
                    if pause_s is None:
                        raise self.error(error, timeout_s) from None
                await _aio.sleep(pause_s)
        raise AssertionError("unreachable: the loop returns or raises")

    async def stream(
        self, method: "grpc.aio.UnaryStreamMultiCallable[Any, _Reply]", request: "Message", timeout_s: float | None
    ) -> AsyncGenerator[_Reply, None]:
        """Sends a request and yields the replies; leaving the iterator early cancels the call.

        What fails in passing before the first reply is tried again, as REPEATS says.
        """
        patience, num_replies = self.patience(timeout_s), 0
        with outgoing(method) as about:
            while True:
                metadata = (*self.connection.metadata, *about)
                call = await _aio.start(method, request, timeout=patience.left_s, metadata=metadata)
                try:
                    with _aio.failing():
                        async for reply in call:
                            self._was_answered, num_replies = True, num_replies + 1
                            yield reply
                    return
                except grpc.RpcError as error:
                    pause_s = None if num_replies else self._pause_s(error, patience, request)
                    if pause_s is None:
                        raise self.error(error, timeout_s) from None
                finally:
                    call.cancel()
                await _aio.sleep(pause_s)

    def error(self, error: grpc.RpcError, timeout_s: float | None) -> CrosscopeError:
        """The exception for a call that failed."""
        return error_of(error, self.address, timeout_s, has_tls=self.connection.tls is not None)

    def patience(self, timeout_s: float | None) -> Patience:
        """The patience for one call, as this client's server is known."""
        return Patience(timeout_s, self._was_answered)

    def pause_s(self, error: grpc.RpcError, patience: Patience) -> float | None:
        """How long to wait before the same may be asked again; None: it may not."""
        failure = failure_of(error)
        self._was_answered |= failure.after_s is not None
        if self._closed or isinstance(self.error(error, None), Unauthorized):
            return None
        return patience.pause_s(failure)

    def _pause_s(self, error: grpc.RpcError, patience: Patience, request: "Message") -> float | None:
        repeat = REPEATS[request.DESCRIPTOR.name.removesuffix("Request")]
        if repeat is Repeat.BY_ITS_CALLER or (repeat is Repeat.UNSENT and failure_of(error).was_begun):
            return None
        return self.pause_s(error, patience)

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
