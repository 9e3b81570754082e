"""What the errors of inference workers mean to a caller. Knows no workers."""

import grpc
import grpc.aio
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from crosscope_server.errors import (
    BrokenArtefact,
    Conflict,
    InvalidRequest,
    NotFound,
    Overloaded,
    TooLate,
    Unavailable,
    Violation,
)

RETRY_S = 0.25
_GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
"""What a call ends with if its worker dies, or cuts it off because it stops. Our own callers' cancels are no errors."""
_CUT = "Stream removed"
"""gRPC's words, with the code UNKNOWN, for a connection that broke while an answer came."""


def is_gone(error: grpc.aio.AioRpcError) -> bool:
    """Whether a call ended with its worker or the connection, so that another worker may be asked."""
    return error.code() in _GONE or (error.code() is grpc.StatusCode.UNKNOWN and error.details() == _CUT)


def caller_error(error: grpc.aio.AioRpcError) -> Exception:
    """The error that our caller gets for a worker's error. An unexpected one is a bug and stays as it is."""
    if is_gone(error):
        return Unavailable("the inference worker ended while it worked on the call; ask again", retry_after_s=RETRY_S)
    sentence = error.details() or error.code().name
    violations, retry_after_s = _details(error)
    match error.code():
        case grpc.StatusCode.INVALID_ARGUMENT | grpc.StatusCode.OUT_OF_RANGE:
            return InvalidRequest(violations or [Violation("prompt", sentence)], sentence)
        case grpc.StatusCode.NOT_FOUND:
            return NotFound(sentence)
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return Overloaded(sentence, retry_after_s=retry_after_s or 1.0)
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return TooLate("the deadline passed before the worker answered; allow more time or shorten the prompt")
        case grpc.StatusCode.DATA_LOSS:
            return BrokenArtefact(sentence)
        case grpc.StatusCode.FAILED_PRECONDITION:
            return Conflict(sentence)
        case grpc.StatusCode.UNAUTHENTICATED:
            return Unavailable(f"the inference worker refuses this server: {sentence}")
        case _:
            return error


def _details(error: grpc.aio.AioRpcError) -> tuple[list[Violation], float | None]:
    """The fields that a worker found wrong, and after how many seconds to ask it again; None if it did not say."""
    status = rpc_status.from_call(error)  # pyright: ignore[reportArgumentType] (the stubs know no grpc.aio)
    violations: list[Violation] = []
    retry_after_s: float | None = None
    for packed in status.details if status else ():
        bad_request, retry = error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if packed.Unpack(bad_request):
            violations += [Violation(v.field, v.description) for v in bad_request.field_violations]
        elif packed.Unpack(retry):
            retry_after_s = retry.retry_delay.ToMilliseconds() / 1000
    return violations, retry_after_s
