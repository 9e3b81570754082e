"""A channel to an inference worker that says with every call who asks: the worker's token, and the call above."""

from collections.abc import Callable
from typing import Any

import grpc.aio

from crosscope_proto import request_ids, tracing


class WithMetadata:
    """Stands for a channel where stubs are made of it. Health stubs need no metadata, and take the channel itself."""

    def __init__(self, channel: grpc.aio.Channel, token: str | None) -> None:
        self._channel = channel
        self._always = () if token is None else (("authorization", f"Bearer {token}"),)

    def unary_unary(self, *given: Any, **options: Any) -> Callable[..., Any]:
        """A method that sends the metadata."""
        return self._sending(self._channel.unary_unary(*given, **options))

    def unary_stream(self, *given: Any, **options: Any) -> Callable[..., Any]:
        """Likewise."""
        return self._sending(self._channel.unary_stream(*given, **options))

    def _sending(self, method: Any) -> Callable[..., Any]:
        def call(request: Any, *, timeout: float | None = None) -> Any:
            return method(request, timeout=timeout, metadata=(*self._always, *call_metadata()))

        return call


def call_metadata() -> tuple[tuple[str, str], ...]:
    """What a call to a worker says of the call that this server serves: its id, and the span above."""
    given = ((request_ids.METADATA, request_ids.current()), (tracing.TRACEPARENT, tracing.current_traceparent()))
    return tuple((key, value) for key, value in given if value)
