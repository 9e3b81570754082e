"""What happens around every call of the inference process: bytes and messages that break a rule are refused.

The server has checked a request before a worker gets it. Whoever reaches a worker's own port gets the same refusals.
"""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from crosscope_proto.handlers import Handler, not_a_message, with_behaviour
from crosscope_proto.rich_status import abort, bad_request, rich_status
from crosscope_proto.rules import broken

Context = grpc.aio.ServicerContext[Any, Any]


class RequestInterceptor(grpc.aio.ServerInterceptor):
    """Hands on only messages that keep the rules of their .proto files; others end with INVALID_ARGUMENT."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Wraps the handler."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        inner: Any = handler.unary_unary or handler.unary_stream

        async def unary(request: Message | DecodeError, context: Context) -> Message:
            return await inner(await _checked(request, context), context)

        async def stream(request: Message | DecodeError, context: Context) -> AsyncIterator[Message]:
            replies = inner(await _checked(request, context), context)
            if inspect.isawaitable(replies):  # a handler that writes its replies itself
                await replies
                return
            async with aclosing(replies):  # A caller who goes away ends what was begun at once.
                async for reply in replies:
                    yield reply

        return with_behaviour(handler, unary, stream)


async def _checked(request: Message | DecodeError, context: Context) -> Message:
    """The request. Ends the call if it is not a message, or breaks a rule."""
    wrong = [("", not_a_message(request))] if isinstance(request, DecodeError) else broken(request)
    if wrong:
        sentence = "; ".join(f"{field}: {text}" if field else text for field, text in wrong)
        await abort(context, rich_status(grpc.StatusCode.INVALID_ARGUMENT, sentence, [bad_request(wrong)]))
    assert isinstance(request, Message)
    return request
