"""Many prompts over one stream, with a bound on how many are under way. Knows nothing about what is encoded."""

import queue
from collections.abc import Iterator
from itertools import islice

import grpc

from crosscope._errors import CrosscopeError, ServerError
from crosscope._status import error_of, error_of_code, read_status
from crosscope._transport import Transport
from crosscope_proto.v1 import prompts_pb2
from crosscope_proto.v1.prompts_pb2_grpc import PromptsStub

_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def encode_stream(
    transport: Transport, requests: Iterator[prompts_pb2.EncodeRequest], in_flight: int
) -> Iterator[prompts_pb2.EncodeResponse | CrosscopeError]:
    """The outcome of every request, in order. Draws from `requests` in the caller's thread, `in_flight` ahead."""
    outbox: queue.SimpleQueue[prompts_pb2.EncodeStreamRequest | None] = queue.SimpleQueue()
    numbered = (prompts_pb2.EncodeStreamRequest(sequence=i, request=request) for i, request in enumerate(requests))
    call = transport.start(transport.stub(PromptsStub).EncodeStream, iter(outbox.get, None))
    waiting = 0
    try:
        for request in islice(numbered, in_flight):
            outbox.put(request)
            waiting += 1
        sequence = 0
        while waiting:
            reply = next(call, None)
            if reply is None or reply.sequence != sequence:
                raise ServerError(f"the stream of {transport.address} ended or lost its order at prompt {sequence}")
            sequence, waiting = sequence + 1, waiting - 1
            yield _outcome(reply)
            for request in islice(numbered, 1):
                outbox.put(request)
                waiting += 1
    except grpc.RpcError as error:
        raise error_of(error, transport.address, None) from None
    finally:
        outbox.put(None)
        call.cancel()


def _outcome(reply: prompts_pb2.EncodeStreamResponse) -> prompts_pb2.EncodeResponse | CrosscopeError:
    if reply.WhichOneof("outcome") == "response":
        return reply.response
    code = _CODES.get(reply.error.code, grpc.StatusCode.UNKNOWN)
    return error_of_code(code, reply.error.message, read_status(reply.error.status))
