"""Handlers of gRPC calls whose request may be bytes that are no message, as server and inference worker wrap them.

Knows nothing about what a refusal says.
"""

from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message

Handler = Any
"""grpc.RpcMethodHandler, or None for a method that does not exist."""


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
