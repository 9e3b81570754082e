"""The id of a call: in its metadata, in every log line about it, in its error, and in the job that it submits.

A client may choose it; otherwise the server does. Knows no gRPC.
"""

import re
import secrets
from contextvars import ContextVar
from typing import Final

METADATA: Final = "x-request-id"
"""The key in a call's metadata."""
FACT: Final = "request_id"
"""The key in ErrorInfo.metadata, and the name of the field in log lines and job records."""
_USABLE: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_CURRENT: ContextVar[str] = ContextVar("request_id", default="")


def new_id() -> str:
    """A new id: 16 hexadecimal digits."""
    return secrets.token_hex(8)


def usable(given: object) -> str:
    """The id that a caller gave, if it has 1 to 64 of A-Z, a-z, 0-9, ".", "_" and "-"; else a new one."""
    return given if isinstance(given, str) and _USABLE.fullmatch(given) else new_id()


def current() -> str:
    """The id of the call that this task serves; empty outside calls."""
    return _CURRENT.get()


def set_current(request_id: str) -> None:
    """Says which call this task serves."""
    _CURRENT.set(request_id)
