"""The door of a service: so many calls at a time, and of one caller never all. Whoever finds it full hears so at once.

Knows nothing about what calls ask.
"""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import aclosing, contextmanager
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message

from crosscope_server.callers import calling
from crosscope_server.errors import Overloaded
from crosscope_server.turns import SHARE, may_enter

Context = grpc.aio.ServicerContext
Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]


class Door(grpc.aio.ServerInterceptor):
    """Counts the calls of one service, and refuses those beyond a limit. The interceptors around it map its errors."""

    def __init__(self, service: str, most: int, retry_after_s: Callable[[], float], refused: Counter[str]) -> None:
        """`retry_after_s` says when the caller may find room. `refused` counts refusals by reason."""
        self._prefix = f"/{service}/"
        self._most = most
        self._retry_after_s = retry_after_s
        self._refused = refused
        self.inside: Counter[str] = Counter()
        """Calls under way, by caller."""

    async def intercept_service(self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Puts the door around the handler of a call of the service."""
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(self._prefix):
            return handler
        name = next(name for name in _KINDS if getattr(handler, name) is not None)
        inner = getattr(handler, name)

        async def unary(request: Any, context: Context) -> Message:
            with self.entered():
                return await inner(request, context)

        async def stream(request: Any, context: Context) -> AsyncIterator[Message]:
            with self.entered():
                async with aclosing(inner(request, context)) as replies:
                    async for reply in replies:
                        yield reply

        return handler._replace(**{name: stream if handler.response_streaming else unary})

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
            raise self._full("concurrent_calls", f"{sentence}; wait until one has ended, or ask for a higher limit")
        if not may_enter(own, total, self._most):
            sentence = (
                f"{total} calls are under way here, {own} of them yours; there may be {self._most} in all, and one "
                f"caller's at most {SHARE} times as many as are still free"
            )
            raise self._full("door full", sentence)

    def _full(self, reason: str, sentence: str) -> Overloaded:
        self._refused[reason] += 1
        retry_after_s = self._retry_after_s()
        return Overloaded(f"{sentence}; try again in {retry_after_s:.1f} s", retry_after_s=retry_after_s)


_KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
