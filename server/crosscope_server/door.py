"""The door of a service: so many calls at a time, and of one caller never all. Whoever finds it full hears so at once.

A server that does not keep up lets fewer in, so that what it lets in is answered soon, and what it refuses hears of it.

A call's message is read and checked behind the door, so a refusal costs no more than the call itself. Knows nothing
about what calls ask.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import aclosing, contextmanager
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message

from crosscope_proto.handlers import Handler
from crosscope_server.callers import calling
from crosscope_server.errors import InvalidRequest, Overloaded, TooLate, Violation
from crosscope_server.interceptors import Context, Continuation, checked
from crosscope_server.load import Load
from crosscope_server.refusals import Reason, Refused
from crosscope_server.turns import SHARE, may_enter

MESSAGE_S = 20.0
"""How long a call that was let in may take to send its message."""


class Door(grpc.aio.ServerInterceptor):
    """Counts the calls of one service, and refuses those beyond a limit. The interceptors around it map its errors."""

    def __init__(
        self,
        service: str,
        most: int,
        retry_after_s: Callable[[], float],
        refused: Refused,
        load: Load | None = None,
        least: int = 1,
    ) -> None:
        """At most `most` calls are under way, or as many of them as an event loop with this `load` bears: `least`.

        `retry_after_s` says when the caller may find room; the more were refused lately, the later they are asked to
        come back. `refused` counts refusals by reason.
        """
        self._prefix = f"/{service}/"
        self._most, self._least = most, min(least, most)
        self._load = load or Load()
        self._retry_after_s = retry_after_s
        self._refused = refused
        self.inside: Counter[str] = Counter()
        """Calls under way, by caller."""

    @property
    def most(self) -> int:
        """Calls that may be under way now."""
        return max(self._least, int(self._most * self._load.share))

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        """Puts the door in front of the handler of a call of the service."""
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(self._prefix):
            return handler
        inner: Any = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        read: Any = _all if handler.request_streaming else _single

        async def unary(requests: Any, context: Context) -> Message:
            with self.entered():
                return await inner(await read(requests, context), context)

        async def stream(requests: Any, context: Context) -> AsyncIterator[Message]:
            with self.entered():
                async with aclosing(inner(await read(requests, context), context)) as replies:
                    async for reply in replies:
                        yield reply
                        del reply

        # gRPC reads the message of a call before it begins, but leaves that of a stream to whoever answers it.
        make = grpc.stream_stream_rpc_method_handler if handler.response_streaming else _stream_unary
        return make(
            stream if handler.response_streaming else unary,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    @contextmanager
    def entered(self) -> Generator[None]:
        """Lets the caller in for as long as the context lasts. Raises Overloaded."""
        caller = calling()
        self._check(caller.name, caller.limits.concurrent_calls)
        self.inside[caller.name] += 1
        try:
            yield
        finally:
            self.inside[caller.name] -= 1
            if not self.inside[caller.name]:
                del self.inside[caller.name]

    def _check(self, name: str, most: int | None) -> None:
        own, total = self.inside[name], self.inside.total()
        if most is not None and own >= most:
            sentence = f"{name} has {own} calls under way, and its limit concurrent_calls is {most}"
            raise self._full(
                Reason.CONCURRENT_CALLS, f"{sentence}; wait until one has ended, or ask for a higher limit"
            )
        if not may_enter(own, total, self.most):
            is_behind = self.most < self._most
            why = f" while this server has too much to do, else {self._most}" if is_behind else ""
            sentence = (
                f"{total} calls are under way here, {own} of them yours; there may be {self.most} in all{why}, and one "
                f"caller's at most {SHARE} times as many as are still free"
            )
            raise self._full(Reason.BEHIND if is_behind else Reason.DOOR_FULL, sentence)

    def _full(self, reason: Reason, sentence: str) -> Overloaded:
        self._refused.add(reason)
        retry_after_s = max(self._retry_after_s(), self._refused.pace_s())
        return Overloaded(f"{sentence}; try again in {retry_after_s:.1f} s", retry_after_s=retry_after_s)


_stream_unary = grpc.stream_unary_rpc_method_handler


async def _all(requests: Any, _context: Context) -> Any:
    """The messages of a caller's stream, as they are."""
    return requests


async def _single(_requests: Any, context: Context) -> Message:
    """The only message of a call. Raises InvalidRequest, and TooLate where it does not come."""
    try:
        async with asyncio.timeout(MESSAGE_S):
            request: Any = await context.read()
    except TimeoutError as error:
        raise TooLate(f"the call's message did not come within {MESSAGE_S:.0f} s; send it faster") from error
    if request is grpc.aio.EOF:  # pyright: ignore[reportAttributeAccessIssue]
        raise InvalidRequest([Violation("", "the call ended without a message; send one")])
    return checked(request)
