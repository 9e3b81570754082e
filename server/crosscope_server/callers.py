"""Who makes a call: name, roles and limits. The interceptor of access sets it; everything below asks `calling()`."""

from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum


class Role(StrEnum):
    """What a caller may do. ADMIN may do everything."""

    READ = "read"
    RUN = "run"
    SUBMIT = "submit"
    ADMIN = "admin"


@dataclass(frozen=True)
class Limits:
    """Limits of one caller; None is no limit."""

    prompt_tokens_per_minute: int | None = None
    concurrent_calls: int | None = None
    queued_jobs: int | None = None
    gpu_seconds_per_day: int | None = None


@dataclass(frozen=True)
class Caller:
    """A caller. Calls of one `name` share limits, and their turn in the queue."""

    name: str
    """The token's name; without tokens, the address of the connection."""
    roles: frozenset[Role] = frozenset(Role)
    limits: Limits = field(default_factory=Limits)


_CALLING: ContextVar[Caller] = ContextVar("calling", default=Caller("nobody"))


def calling() -> Caller:
    """The caller of the call that this task serves."""
    return _CALLING.get()


def set_calling(caller: Caller) -> None:
    """Says who makes the call that this task serves."""
    _CALLING.set(caller)
