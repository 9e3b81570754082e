"""Lets only callers with the worker's token through. Health checks need none."""

import hmac
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

_HEALTH = "/grpc.health.v1.Health/"
_REFUSAL = (
    "this worker asks for its token: give the server CROSSCOPE_SERVER_WORKER_TOKEN, equal to CROSSCOPE_WORKER_TOKEN"
)


class TokenInterceptor(grpc.aio.ServerInterceptor):
    """Compares the token of each call. The only caller is the server, whose token does not change."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Replaces the handler by a refusal where the token is missing or wrong."""
        handler = await continuation(handler_call_details)
        given = dict(handler_call_details.invocation_metadata or ()).get("authorization", "")
        given_bytes = given.encode("utf-8", "surrogateescape") if isinstance(given, str) else given
        if handler is None or handler_call_details.method.startswith(_HEALTH):
            return handler
        if hmac.compare_digest(given_bytes, self._expected):
            return handler

        async def refuse(_: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, _REFUSAL)

        make = (
            grpc.unary_stream_rpc_method_handler if handler.response_streaming else grpc.unary_unary_rpc_method_handler
        )
        wrapped: Any = refuse
        return make(wrapped, handler.request_deserializer, handler.response_serializer)
