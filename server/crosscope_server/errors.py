"""The errors of calls, and the one mapping from exceptions to gRPC statuses.

A CallError is an error that the caller can cause or mend. Any part of the server raises it, with a sentence that names
the value, the limit and the way out. Every other exception is a bug: the caller gets INTERNAL and a bug id, and the log
gets the traceback. Knows nothing about services.
"""

import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from crosscope_proto import request_ids
from crosscope_proto.recipe import RecipeError
from crosscope_proto.rich_status import bad_request, encodable, retry_info, rich_status

DOMAIN = "crosscope"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Violation:
    """One field that is wrong."""

    field: str
    """Path in the request, for instance "filters[2].column"."""
    sentence: str
    """What it holds and what it may hold."""


class CallError(Exception):
    """A call that cannot be answered, with a sentence for the caller."""

    status: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN
    reason: ClassVar[str] = "UNKNOWN"
    """Stable name of the error for programs, sent in ErrorInfo."""

    def __init__(self, sentence: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.retry_after_s = retry_after_s
        self.violations: tuple[Violation, ...] = ()
        self.facts: Mapping[str, str] = {}
        """Facts for programs, sent in ErrorInfo.metadata."""


class InvalidRequest(CallError):
    """A request that is wrong and must be changed."""

    status = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INVALID_REQUEST"

    def __init__(self, violations: Sequence[Violation], sentence: str | None = None) -> None:
        super().__init__(
            sentence or "; ".join(f"{v.field}: {v.sentence}" if v.field else v.sentence for v in violations)
        )
        self.violations = tuple(violations)


class NotFound(CallError):
    """A name or id that does not exist."""

    status = grpc.StatusCode.NOT_FOUND
    reason = "NOT_FOUND"


class Conflict(CallError):
    """A request that the present state of things does not allow."""

    status = grpc.StatusCode.FAILED_PRECONDITION
    reason = "CONFLICT"


class AlreadyExists(CallError):
    """A name that is taken."""

    status = grpc.StatusCode.ALREADY_EXISTS
    reason = "ALREADY_EXISTS"


class Stale(CallError):
    """A write by somebody who has not seen the last change."""

    status = grpc.StatusCode.ABORTED
    reason = "STALE"

    def __init__(self, sentence: str, revision: int, now: str) -> None:
        super().__init__(sentence)
        self.facts = {"revision": str(revision), "now": now}


class VersionGone(CallError):
    """A version that was asked for by its id and does not exist, or no longer exists."""

    status = grpc.StatusCode.FAILED_PRECONDITION
    reason = "VERSION_GONE"

    def __init__(self, crosscoder: str, version_id: str, newest: str) -> None:
        super().__init__(
            f"version {version_id[:60]!r} of {crosscoder} is gone or never existed; the newest is {newest}: ask for "
            "that one, or leave the version out"
        )
        self.facts = {"crosscoder": crosscoder, "newest_version": newest}


class Unavailable(CallError):
    """A process that the call needs does not answer; the caller may try again."""

    status = grpc.StatusCode.UNAVAILABLE
    reason = "UNAVAILABLE"


class Overloaded(CallError):
    """Too many calls at once; the caller may try again later."""

    status = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "OVERLOADED"


class TooLate(CallError):
    """The caller's deadline passed before the answer."""

    status = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "TOO_LATE"


class BrokenArtefact(CallError):
    """A file of the artefact folder that is missing, truncated or of another schema."""

    status = grpc.StatusCode.DATA_LOSS
    reason = "BROKEN_ARTEFACT"


class NoToken(CallError):
    """A call without a token that the server knows."""

    status = grpc.StatusCode.UNAUTHENTICATED
    reason = "NO_TOKEN"

    def __init__(self, sentence: str, told: int = 0, who: str | None = None) -> None:
        super().__init__(sentence)
        self.told = told
        """How often the caller's host, or a token that was valid once, was refused, where the audit log is to say so;
        else 0."""
        self.who = who
        """The name of a token that was valid once."""


class PermissionDenied(CallError):
    """A call that the caller's token does not allow."""

    status = grpc.StatusCode.PERMISSION_DENIED
    reason = "PERMISSION_DENIED"

    def __init__(self, sentence: str, who: str) -> None:
        super().__init__(sentence)
        self.who = who
        """The token's name."""


def as_call_error(error: Exception) -> CallError | None:
    """The error for the caller; None if the exception is a bug."""
    if isinstance(error, CallError):
        return error
    if isinstance(error, RecipeError):
        return InvalidRequest([Violation(path or "recipe_yaml", text) for path, text in error.violations])
    return None


def reason_of(error: Exception) -> str:
    """The stable name of an exception for programs, as ErrorInfo sends it."""
    known = as_call_error(error)
    return "BUG" if known is None else known.reason


def status_of(error: Exception, method: str) -> status_pb2.Status:
    """The status that a caller gets for an exception, with google.rpc details. Logs bugs."""
    known = as_call_error(error)
    if known is None:
        bug_id = uuid.uuid4().hex[:12]
        log.error("bug", extra={"bug_id": bug_id, "method": method}, exc_info=error)
        return rich_status(
            grpc.StatusCode.INTERNAL,
            f"the server has a bug; its log tells more under bug id {bug_id}",
            [error_details_pb2.ErrorInfo(reason="BUG", domain=DOMAIN, metadata=_facts({"bug_id": bug_id}))],
        )
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=known.reason, domain=DOMAIN, metadata=_facts(known.facts))
    ]
    if known.violations:
        details.append(bad_request([(each.field, each.sentence) for each in known.violations]))
    if known.retry_after_s is not None:
        details.append(retry_info(known.retry_after_s))
    return rich_status(known.status, known.sentence, details)


def _facts(facts: Mapping[str, str]) -> dict[str, str]:
    """Facts for programs, with the id of the call."""
    request_id = request_ids.current()
    sent = {name: encodable(value) for name, value in facts.items()}
    return {**sent, request_ids.FACT: request_id} if request_id else sent


def status_code(status: status_pb2.Status) -> grpc.StatusCode:
    """The gRPC code of a status."""
    return rpc_status.to_status(status).code
