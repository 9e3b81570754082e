"""What can go wrong, as a tree of exceptions. Knows nothing about gRPC: `_status` turns statuses into these.

CrosscopeError
├── InvalidInput       what was asked cannot be asked; `.violations` names the fields
├── NotFound           no such crosscoder, latent, job
├── Conflict           it does not fit how things stand
│   └── VersionGone    the version that was asked for is gone; `.newest` says which one there is
├── Unauthorized       the token is missing or wrong, or TLS refused
├── Unavailable        nobody answers: no server, no inference worker, no queue
├── Busy               too much is waiting; `.retry_after_s` says when to come back
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
    """Everything that this package raises about a request. `str()` is a sentence that says what to do."""


@public
class InvalidInput(CrosscopeError, ValueError):
    """The request cannot be answered as it is."""

    def __init__(self, message: str, violations: tuple[FieldViolation, ...] = ()) -> None:
        super().__init__(message)
        self.violations = violations

    @classmethod
    def of(cls, field: str, description: str) -> "InvalidInput":
        """About one field."""
        return cls(f"{field}: {description}", (FieldViolation(field, description),))


@public
class NotFound(CrosscopeError, LookupError):
    """What was asked for does not exist."""


@public
class Conflict(CrosscopeError):
    """The request is sound but does not fit how things stand."""


@public
class VersionGone(Conflict):
    """The version that a handle or a listing is bound to is not there any more."""

    def __init__(self, message: str, newest: str = "") -> None:
        super().__init__(message)
        self.newest = newest
        """Id of the crosscoder's current version; empty where the server did not say."""


@public
class Unauthorized(CrosscopeError, PermissionError):
    """The server wants another token, or none of this caller's kind."""


@public
class Unavailable(CrosscopeError, ConnectionError):
    """Nobody is there to answer."""


@public
class Busy(CrosscopeError):
    """The server refuses for now."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@public
class DeadlineExceeded(CrosscopeError, TimeoutError):
    """No answer in time."""


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
