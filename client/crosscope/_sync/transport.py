# Written by client/generate.py from _async/transport.py. Do not edit.
"""One gRPC channel, opened on first use: calls with deadlines, retries and translated errors. Knows no service."""

import threading
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from crosscope import _blocking
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


class Transport:
    """The connection of one client."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._stubs: dict[object, object] = {}
        self._closed = False

    @property
    def address(self) -> str:
        """Where the server is."""
        return self.connection.address

    def __reduce__(self) -> tuple[object, ...]:
        return Transport, (self.connection,)

    def stub(self, kind: Callable[[grpc.Channel], _Stub]) -> _Stub:
        """The stub of one service, made once."""
        with self._lock:
            if self._closed:
                raise InvalidInput("this client is closed; make a new Client")
            if self._channel is None:
                self._channel = _blocking.open_channel(self.connection)
            if kind not in self._stubs:
                self._stubs[kind] = kind(self._channel)
            return self._stubs[kind]  # pyright: ignore[reportReturnType]

    def unary(
        self,
        method: "grpc.UnaryUnaryMultiCallable[Any, _Reply]",
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
                    with _blocking.failing():
                        return method(request, timeout=timeout_s, metadata=metadata)
                except grpc.RpcError as error:
                    delay_s = next(delays, None) if is_connection_failure(error) else None
                    if delay_s is None:
                        raise error_of(error, self.address, timeout_s) from None
                _blocking.sleep(delay_s)
        raise AssertionError("unreachable: the loop returns or raises")

    def upload(self, method: "grpc.StreamUnaryMultiCallable[Any, _Reply]", requests: "Sequence[Message]") -> _Reply:
        """Sends many requests and returns the one reply."""
        timeout_s = self.connection.long_timeout_s
        with outgoing(self.connection, method) as metadata:
            try:
                with _blocking.failing():
                    return method(iter(requests), timeout=timeout_s, metadata=metadata)
            except grpc.RpcError as error:
                raise error_of(error, self.address, timeout_s) from None
        raise AssertionError("unreachable: the block returns or raises")

    def stream(
        self, method: "grpc.UnaryStreamMultiCallable[Any, _Reply]", request: "Message", timeout_s: float | None
    ) -> Generator[_Reply, None, None]:
        """Sends a request and yields the replies; leaving the iterator early cancels the call."""
        with outgoing(self.connection, method) as metadata:
            call = _blocking.start(method, request, timeout=timeout_s, metadata=metadata)
            try:
                with _blocking.failing():
                    yield from call
            except grpc.RpcError as error:
                raise error_of(error, self.address, timeout_s) from None
            finally:
                call.cancel()

    def converse(self, method: "grpc.StreamStreamMultiCallable[Any, _Reply]") -> "_blocking.Conversation[_Reply]":
        """Opens a call with many requests and many replies, without a deadline."""
        metadata = (*self.connection.metadata, (request_ids.METADATA, request_ids.new_id()))
        return _blocking.Conversation[_Reply].open(method, metadata=metadata)

    def close(self) -> None:
        """Closes the channel; calls in progress end with an error. Closing twice does nothing."""
        with self._lock:
            self._closed = True
            channel, self._channel = self._channel, None
            self._stubs.clear()
        if channel is not None:
            _blocking.close(channel)
