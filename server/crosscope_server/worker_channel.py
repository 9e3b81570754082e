"""A channel to an inference worker that sends the worker's token with every call."""

from collections.abc import Callable, Sequence
from typing import Any

import grpc.aio


class WithToken:
    """Stands for a channel where stubs are made of it. Health stubs need no token, and take the channel itself."""

    def __init__(self, channel: grpc.aio.Channel, token: str | None) -> None:
        self._channel = channel
        self._metadata: Sequence[tuple[str, str]] | None = (
            None if token is None else (("authorization", f"Bearer {token}"),)
        )

    def unary_unary(self, *given: Any, **options: Any) -> Callable[..., Any]:
        """A method that sends the token."""
        return self._sending(self._channel.unary_unary(*given, **options))

    def unary_stream(self, *given: Any, **options: Any) -> Callable[..., Any]:
        """Likewise."""
        return self._sending(self._channel.unary_stream(*given, **options))

    def _sending(self, method: Any) -> Callable[..., Any]:
        if self._metadata is None:
            return method

        def call(request: Any, *, timeout: float | None = None) -> Any:
            return method(request, timeout=timeout, metadata=self._metadata)

        return call
