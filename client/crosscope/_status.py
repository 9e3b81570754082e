"""Exceptions from gRPC statuses and their rich details. No other module reads statuses."""

import re
from typing import TYPE_CHECKING, TypeVar

import grpc
import grpc.aio

from crosscope._errors import (
    Busy,
    Conflict,
    CrosscopeError,
    DeadlineExceeded,
    FieldViolation,
    InvalidInput,
    NotFound,
    ServerError,
    StaleWrite,
    Unauthorized,
    Unavailable,
    VersionGone,
)
from crosscope._repeats import Failure
from crosscope._unreachable import NOT_REACHED, no_server
from crosscope_proto import request_ids

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from google.rpc.status_pb2 import Status

    from crosscope_proto.v1.prompts_pb2 import StreamError

_Detail = TypeVar("_Detail", bound="Message")

_Answered = grpc.Call | grpc.aio.AioRpcError
"""Errors that carry a status."""
_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
_INVALID = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE}
_CONFLICT = {grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.ABORTED, grpc.StatusCode.ALREADY_EXISTS}
_UNAUTHORIZED = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}
_GONE = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
_UNREADABLE = {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL}
_LOST_ANSWER = re.compile(r"stream removed|(metadata|header).*(size|limit|large)", re.IGNORECASE)
"""gRPC's own errors, of these codes, where the headers of an answer could not be read."""
_SIZES = re.compile(r"\((\d+) vs\. (\d+)\)")


def is_connection_failure(error: grpc.RpcError) -> bool:
    """Whether the connection failed, before the call reached the server or during the call."""
    return _code(error) is grpc.StatusCode.UNAVAILABLE and not _said_by_server(error)


def failure_of(error: grpc.RpcError) -> Failure:
    """What a failed call says about a second try."""
    code = _code(error)
    if _said_by_server(error):
        return _said(code, _retry_after_s(_rich(error)))
    return Failure(code in _GONE, was_begun=not _details(error).startswith(NOT_REACHED))


def failure_of_item(error: "StreamError") -> Failure:
    """What an item of a stream that failed says about a second try."""
    code = _CODES.get(error.code, grpc.StatusCode.UNKNOWN)
    return _said(code, _retry_after_s(_status_of_item(error.status)))


def _said(code: grpc.StatusCode, after_s: float | None) -> Failure:
    """A server that refuses a call and says when to come back has not begun it."""
    is_busy = code is grpc.StatusCode.RESOURCE_EXHAUSTED
    is_passing = after_s is not None and (is_busy or code is grpc.StatusCode.UNAVAILABLE)
    return Failure(is_passing, was_begun=not is_passing, is_busy=is_busy, after_s=after_s)


def error_of(error: grpc.RpcError, address: str, timeout_s: float | None, *, has_tls: bool = False) -> CrosscopeError:
    """The exception for a failed call of a client that speaks TLS, or does not."""
    code = _code(error)
    if is_connection_failure(error):
        return no_server(address, _details(error), has_tls=has_tls)
    if code in _UNREADABLE and not _said_by_server(error) and _LOST_ANSWER.search(_details(error)):
        return ServerError(
            f"{address} refused the call, but its answer was lost on the way, perhaps because it was too long "
            f"({_details(error)}); the server's log tells more"
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        limit = "" if timeout_s is None else f" within {timeout_s:g} s"
        return DeadlineExceeded(f"no answer from {address}{limit}; try again, or give Client(timeout_s=…) more time")
    return _error_of_code(code, _details(error) or f"{address} answered {code.name} without a reason", _rich(error))


def error_of_item(error: "StreamError") -> CrosscopeError:
    """The exception for one item of a stream that failed."""
    return _error_of_code(_CODES.get(error.code, grpc.StatusCode.UNKNOWN), error.message, _status_of_item(error.status))


def _error_of_code(code: grpc.StatusCode, message: str, rich: "Status | None") -> CrosscopeError:
    """The exception for a status that the server sent, with the server's sentence and the call's id."""
    from google.rpc.error_details_pb2 import ErrorInfo

    error = _plain_error(code, message, rich)
    error.request_id = _detail(rich, ErrorInfo).metadata.get(request_ids.FACT, "")
    return error


def _plain_error(code: grpc.StatusCode, message: str, rich: "Status | None") -> CrosscopeError:
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        if "message larger than max" in message:
            return _too_large(message)
        return Busy(message, _retry_after_s(rich))
    if code in _INVALID:
        return InvalidInput(message, _violations(rich))
    if code is grpc.StatusCode.NOT_FOUND:
        return NotFound(message)
    if code in _CONFLICT:
        from google.rpc.error_details_pb2 import ErrorInfo

        info = _detail(rich, ErrorInfo)
        if info.reason == "VERSION_GONE":
            return VersionGone(message, info.metadata["newest_version"])
        if info.reason == "STALE":
            return StaleWrite(message, info.metadata["now"], int(info.metadata["revision"]))
        return Conflict(message)
    if code in _UNAUTHORIZED:
        how = "" if code is grpc.StatusCode.PERMISSION_DENIED else " (give Client(token=…) or set CROSSCOPE_TOKEN)"
        return Unauthorized(f"{message}{how}")
    if code in _GONE:
        return Unavailable(message)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(message)
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return ServerError(f"{message}; is this a crosscope server, of the same version as this client?")
    return ServerError(message)


def _too_large(message: str) -> InvalidInput:
    found = _SIZES.search(message)
    sizes = f"{found[1]} bytes, at most {found[2]}" if found else message
    return InvalidInput(f"too large to send or receive at once: {sizes}; ask with less, or for less")


def _code(error: grpc.RpcError) -> grpc.StatusCode:
    return error.code() if isinstance(error, _Answered) else grpc.StatusCode.UNKNOWN


def _details(error: grpc.RpcError) -> str:
    return (error.details() or "") if isinstance(error, _Answered) else str(error)


def _said_by_server(error: grpc.RpcError) -> bool:
    """Whether the server sent the error. It sends details with each one; gRPC's own errors have none."""
    return isinstance(error, _Answered) and bool(error.trailing_metadata())


def _rich(error: grpc.RpcError) -> "Status | None":
    """The status with its details; None if the error has no status, or a status that contradicts it."""
    from google.protobuf.message import DecodeError
    from grpc_status import rpc_status

    if not isinstance(error, _Answered):
        return None
    try:
        return rpc_status.from_call(error)  # pyright: ignore[reportArgumentType]
    except (ValueError, DecodeError):
        return None


def _status_of_item(data: bytes) -> "Status | None":
    from google.protobuf.message import DecodeError
    from google.rpc.status_pb2 import Status

    try:
        return Status.FromString(data)
    except DecodeError:
        return None


def _detail(rich: "Status | None", kind: type[_Detail]) -> _Detail:
    """The first detail of one kind; an empty message if the status has none."""
    found = kind()
    any(detail.Unpack(found) for detail in (rich.details if rich else ()))
    return found


def _violations(rich: "Status | None") -> tuple[FieldViolation, ...]:
    from google.rpc.error_details_pb2 import BadRequest

    return tuple(FieldViolation(v.field, v.description) for v in _detail(rich, BadRequest).field_violations)


def _retry_after_s(rich: "Status | None") -> float | None:
    from google.rpc.error_details_pb2 import RetryInfo

    info = _detail(rich, RetryInfo)
    return info.retry_delay.ToTimedelta().total_seconds() if info.HasField("retry_delay") else None
