"""Says who makes each call before anything looks at it, and writes changes and refusals into the audit log."""

import inspect
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import aclosing
from typing import Any, NoReturn

import grpc
import grpc.aio

from crosscope_proto.handlers import Handler, with_behaviour
from crosscope_proto.rich_status import abort
from crosscope_server.access.audit import Audit, subject
from crosscope_server.access.gate import Admitted, Gate, host_of
from crosscope_server.access.methods import FREE, Rule, rule_of
from crosscope_server.access.streams import Streams
from crosscope_server.callers import Caller, set_calling
from crosscope_server.errors import CallError, NoToken, PermissionDenied, status_of
from crosscope_server.interceptors import Context, Continuation


class AccessInterceptor(grpc.aio.ServerInterceptor):
    """Lets calls through to whoever may make them. It stands in front of all others."""

    def __init__(self, gate: Gate, audit: Audit) -> None:
        self._gate = gate
        self._audit = audit
        self._streams = Streams(gate)

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        """Wraps the handler."""
        method = handler_call_details.method
        handler = await continuation(handler_call_details)
        if handler is None or method.startswith(FREE):
            return handler
        given = dict(handler_call_details.invocation_metadata or ()).get("authorization", "")
        authorization = given.encode("utf-8", "surrogateescape") if isinstance(given, str) else given
        rule = rule_of(method)
        inner: Any = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream

        async def unary(request: Any, context: Context) -> Any:
            caller = (await self._admitted(method, authorization, rule, context)).caller
            if not rule.changes:
                return await inner(request, context)
            return await self._noted(method, caller, inner, request, context)

        async def stream(request: Any, context: Context) -> None:
            admitted = await self._admitted(method, authorization, rule, context)
            try:
                async with self._streams.watched(admitted.token):
                    await _written(inner(request, context), context)
            except NoToken as error:
                await self._refuse(error, method, context)

        return with_behaviour(handler, unary, stream)

    async def _admitted(self, method: str, authorization: bytes, rule: Rule, context: Context) -> Admitted:
        """The caller, from now on that of this task; ends the call if they may not make it."""
        try:
            admitted = await self._gate.admit(authorization, context.peer(), rule)
        except CallError as error:
            await self._refuse(error, method, context)
        set_calling(admitted.caller)
        return admitted

    async def _refuse(self, error: CallError, method: str, context: Context) -> NoReturn:
        """Ends a call; the audit log gets a line where it is to say so."""
        if isinstance(error, PermissionDenied):
            self._audit.write(error.who, method, {}, "PERMISSION_DENIED")
        elif isinstance(error, NoToken) and error.told:
            count = {"refused" if error.who else "wrong_tokens": error.told}
            self._audit.write(error.who or host_of(context.peer()), method, count, "UNAUTHENTICATED")
        await abort(context, status_of(error, method))

    async def _noted(self, method: str, caller: Caller, inner: Any, request: Any, context: Context) -> Any:
        """The reply of a call that changes something; the audit log gets a line, however it ends."""
        on: dict[str, object] = {}
        outcome = "CANCELLED"
        try:
            if isinstance(request, AsyncIterable):
                request = _seen(request, on)
            else:
                on |= subject(request)
            reply = await inner(request, context)
            on |= subject(reply)
            outcome = "OK"
        except grpc.aio.AbortError:
            outcome = _outcome(context)
            raise
        finally:
            self._audit.write(caller.name, method, on, outcome)
        return reply


async def _written(replies: Any, context: Context) -> None:
    """Writes the replies of a stream."""
    if inspect.isawaitable(replies):  # a handler that writes its replies itself
        await replies
        return
    async with aclosing(replies):
        async for reply in replies:
            await context.write(reply)  # were it yielded, gRPC would keep it until the next comes
            del reply


async def _seen(requests: AsyncIterable[Any], on: dict[str, object]) -> AsyncIterator[Any]:
    """The requests of a stream; what they are about is added to `on`."""
    async for request in requests:
        on |= subject(request)
        yield request


def _outcome(context: Context) -> str:
    code = context.code()
    return next((each.name for each in grpc.StatusCode if code in (each, each.value[0])), "UNKNOWN")
