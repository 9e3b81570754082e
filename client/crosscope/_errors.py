"""The tree of exceptions. Knows nothing about gRPC: `_status` makes exceptions of statuses.

CrosscopeError
├── InvalidInput       the request is wrong; `.violations` names the fields
├── NotFound           no such crosscoder, latent, job
├── Conflict           the request does not fit the present state
│   ├── VersionGone    the version that was asked for is gone; `.newest` names the current one
│   └── StaleWrite     somebody else changed the words meanwhile; `.now` says what they are, `.revision` their number
├── Unauthorized       the token is missing, wrong or lacks a role, or TLS refused
├── Unavailable        no server answers, or it has no inference worker or no queue
├── Busy               too many requests wait; `.retry_after_s` says when to ask again
├── DeadlineExceeded   no answer within the time given
├── ServerError        a bug or a broken file on the other side
├── JobFailed          `Job.wait`: the job ended with an error; `.job` holds it
└── JobCancelled       `Job.wait`: somebody cancelled the job; `.job` holds it
"""

from typing import NamedTuple

from crosscope._public import public
from crosscope._types import JobInfo


@public
class FieldViolation(NamedTuple):
    """One field of a request that is wrong."""

    field: str
    """Dotted path, for instance "prompt.text"; empty for the whole."""
    description: str


@public
class CrosscopeError(Exception):
    """Base of all errors that this package raises about a request. `str()` says what happened and what to do."""

    request_id: str = ""
    """Id of the call, under which the server's log tells of it; empty for an error before any call."""


@public
class InvalidInput(CrosscopeError, ValueError):
    """The request is wrong."""

    def __init__(self, message: str, violations: tuple[FieldViolation, ...] = ()) -> None:
        super().__init__(message)
        self.violations = violations

    @classmethod
    def of(cls, field: str, description: str) -> "InvalidInput":
        """The error about one field."""
        return cls(f"{field}: {description}", (FieldViolation(field, description),))


@public
class NotFound(CrosscopeError, LookupError):
    """What was asked for does not exist."""


@public
class Conflict(CrosscopeError):
    """The request is correct, but does not fit the present state."""


@public
class VersionGone(Conflict):
    """The version of a handle or a listing no longer exists."""

    def __init__(self, message: str, newest: str = "") -> None:
        super().__init__(message)
        self.newest = newest
        """Id of the crosscoder's current version; empty if the server did not say."""


@public
class StaleWrite(Conflict):
    """A write named a revision, and another change came in between. Nothing was changed."""

    def __init__(self, message: str, now: str = "", revision: int = 0) -> None:
        super().__init__(message)
        self.now = now
        """The text that is there, its first 200 characters; empty: it was cleared."""
        self.revision = revision
        """The revision that is there, 0 if it was cleared."""


@public
class Unauthorized(CrosscopeError, PermissionError):
    """The token is missing or wrong, or TLS failed."""


@public
class Unavailable(CrosscopeError, ConnectionError):
    """No server answers, or it has no inference worker or no queue."""


@public
class Busy(CrosscopeError):
    """The server has too much to do; ask again later."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@public
class DeadlineExceeded(CrosscopeError, TimeoutError):
    """No answer came in time."""


@public
class ServerError(CrosscopeError):
    """The server failed."""


@public
class JobFailed(CrosscopeError):
    """A job that was waited for ended with an error."""

    def __init__(self, job: JobInfo) -> None:
        super().__init__(f"job {job.id} ({job.kind} {job.name}) failed: {job.message or 'no reason was given'}")
        self.job = job

    def __reduce__(self) -> tuple[object, ...]:
        return JobFailed, (self.job,)


@public
class JobCancelled(CrosscopeError):
    """A job that was waited for was cancelled."""

    def __init__(self, job: JobInfo) -> None:
        super().__init__(f"job {job.id} ({job.kind} {job.name}) was cancelled")
        self.job = job

    def __reduce__(self) -> tuple[object, ...]:
        return JobCancelled, (self.job,)
