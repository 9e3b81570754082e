"""What happens around every call: rules of the .proto files, errors, log line, metrics.

Knows nothing about services. It never looks into a message and logs no text of one.
"""

import asyncio
import inspect
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from crosscope_proto import request_ids
from crosscope_proto.handlers import Handler, not_a_message, with_behaviour
from crosscope_proto.rich_status import abort
from crosscope_proto.tracing import TRACEPARENT, close_span, make_current, open_span
from crosscope_server.callers import calling
from crosscope_server.errors import InvalidRequest, Violation, reason_of, status_code, status_of
from crosscope_server.metrics import Metrics
from crosscope_server.validation import check

OURS = "/crosscope.v1."

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext
Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Handler]]


class RequestIdInterceptor(grpc.aio.ServerInterceptor):
    """Gives every call its id: the caller's (metadata "x-request-id"), or a new one. Must be the first interceptor."""

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        """Says which call this task serves; a call is intercepted and served by one task."""
        given = dict(handler_call_details.invocation_metadata or ()).get(request_ids.METADATA)
        request_ids.set_current(request_ids.usable(given))
        return await continuation(handler_call_details)


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Checks requests, maps errors, logs and counts calls of our services.

    The messages of a client's stream are handed on unchecked: a message that breaks a rule must not end the stream, so
    the servicer calls `check` on each and answers it on its own; what a door lets in, the door checks. Bytes that are
    not a message end every call with INVALID_ARGUMENT, also in services that are not ours.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        """Wraps the handler."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None:
            return handler
        inner: Any = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        is_ours = method.startswith(OURS)
        around = self._around if is_ours else _around_others
        is_stream = bool(handler.response_streaming)
        read: Any = _messages if handler.request_streaming else checked if is_ours else _message

        async def unary(request: Message | DecodeError, context: Context) -> Message:
            async with around(method, context, is_stream=is_stream):
                return await inner(read(request), context)
            raise AssertionError("unreachable: the context manager never swallows")

        async def stream(request: Any, context: Context) -> AsyncIterator[Message]:
            async with around(method, context, is_stream=is_stream):
                replies = inner(read(request), context)
                if inspect.isawaitable(replies):  # a handler that writes its replies itself
                    await replies
                    return
                async with aclosing(replies):  # A caller who goes away ends what was begun at once.
                    async for reply in replies:
                        yield reply
                        del reply  # a stream that waits for its next reply does not keep the last

        return with_behaviour(handler, unary, stream)

    @asynccontextmanager
    async def _around(self, method: str, context: Context, *, is_stream: bool) -> AsyncGenerator[None]:
        started = time.perf_counter()
        self._metrics.began()
        called = method.removeprefix("/")
        opened = open_span(called, "server", parent=_parent(context), request_id=request_ids.current())
        make_current(opened)
        outcome = grpc.StatusCode.CANCELLED
        try:
            with close_span(opened):
                yield
            outcome = grpc.StatusCode.OK
        except Exception as error:
            status = status_of(error, method)
            outcome = status_code(status)
            self._metrics.failed(reason_of(error))
            await abort(context, status)
        finally:
            seconds = time.perf_counter() - started
            # Record later: the reply goes out first.
            asyncio.get_running_loop().call_soon(self._record, method, outcome, seconds, is_stream)

    def _record(self, method: str, outcome: grpc.StatusCode, seconds: float, is_stream: bool) -> None:
        self._metrics.called(method, outcome.name, calling().name, seconds, is_stream=is_stream)
        log.info("call", extra={"method": method, "status": outcome.name, "ms": round(seconds * 1000, 2)})


@asynccontextmanager
async def _around_others(method: str, context: Context, **_: bool) -> AsyncGenerator[None]:
    """Gives errors of health and reflection their statuses, but for those with which they end a call themselves.

    Likewise where gRPC cannot send that end, because the caller has left.
    """
    try:
        yield
    except (grpc.aio.AbortError, grpc.aio.InternalError):
        raise
    except Exception as error:
        await abort(context, status_of(error, method))


def _parent(context: Context) -> str:
    """The caller's span; empty if it sent none."""
    return next((str(value) for key, value in context.invocation_metadata() or () if key == TRACEPARENT), "")


def _message(request: Message | DecodeError) -> Message:
    if isinstance(request, DecodeError):
        raise InvalidRequest([Violation("", not_a_message(request))])
    return request


def checked(request: Message | DecodeError) -> Message:
    """The message of a call. Raises InvalidRequest if it breaks a rule, or is none."""
    message = _message(request)
    check(message)
    return message


async def _messages(requests: AsyncIterable[Message | DecodeError]) -> AsyncIterator[Message]:
    async for request in requests:
        yield _message(request)
