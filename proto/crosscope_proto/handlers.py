"""Handlers of gRPC calls, as server and inference worker add and wrap them: a request may be bytes that are no message.

Knows nothing about what a refusal says.
"""

from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

Handler = Any
"""grpc.RpcMethodHandler, or None for a method that does not exist."""


class ByName:
    """Stands for a server where services are added to it: their methods are found by name, and share one queue.

    Generated code also registers each method by itself. grpc.aio then waits for every method's next call apart, and
    begins all these waits anew for each call that comes: with fifty methods, a fifth of what a call takes in gRPC.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Adds a service."""
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, service_name: str, method_handlers: Any) -> None:
        """Does nothing; the same methods are in the service's generic handler."""


def with_behaviour(handler: Handler, unary: Any, stream: Any) -> Handler:
    """The handler with another behaviour: `unary` for one reply, `stream` for several.

    Bytes that are not a message reach it as a DecodeError, not as a request. Without this, gRPC ends the call with
    UNKNOWN and logs a traceback.
    """
    parse = handler.request_deserializer

    def tolerant(data: bytes) -> Message | DecodeError:
        try:
            return parse(data)
        except DecodeError as error:
            return error

    makers: dict[tuple[bool, bool], Any] = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    make = makers[handler.request_streaming, handler.response_streaming]
    behaviour = stream if handler.response_streaming else unary
    return make(behaviour, request_deserializer=tolerant, response_serializer=handler.response_serializer)


def not_a_message(error: DecodeError) -> str:
    """The sentence for bytes that are not a message."""
    return f"the request is not a valid message: {error}"
