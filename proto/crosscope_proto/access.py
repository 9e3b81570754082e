"""What lies on disk about who may call: the names of the files, and the list of tokens, read strictly.

The server, the command line and the SDK meet here. Touches no disk.
"""

import hashlib
import ipaddress
import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

FOLDER: Final = "access"
"""Folder of the home, mode 0700, with all that is about who may call. No recipe reads it."""
TOKENS: Final = f"{FOLDER}/tokens.json"
"""The list of named tokens, each as its hash. `crosscope tokens` writes it, and the server reads it when it changes."""
TOKENS_LOCK: Final = f"{FOLDER}/tokens.lock"
USED: Final = f"{FOLDER}/used.json"
"""When each named token was last used, by name, seconds since 1970. The server writes it."""
OWN_TOKEN: Final = f"{FOLDER}/token"
"""The secret of the home's own token, mode 0600: whoever can read it may do everything."""
APP_KEY: Final = f"{FOLDER}/app-key"
"""The secret of the app's start address, mode 0600."""
AUDIT: Final = "audit.jsonl"
"""Who changed what, and who was refused; a JSON object a line. Older lines lie in AUDIT.1 and so on."""
AUDIT_KEPT: Final = 3
"""Number of older files."""

DEFAULT_HOME: Final = "~/.local/share/crosscope"
"""The home where CROSSCOPE_HOME says nothing."""
NOTES: Final = "crosscope/servers"
"""Folder below XDG_STATE_HOME (~/.local/state) of this person's running servers: a file each, which holds its home."""

ROLES: Final = ("read", "run", "submit", "admin")
"""What a token may be allowed. Every role includes "read"; "admin" includes all."""
LIMITS: Final = ("prompt_tokens_per_minute", "concurrent_calls", "queued_jobs", "gpu_seconds_per_day")
"""What may be limited for a token."""
OPERATOR: Final = "operator"
"""Who calls with the home's own token, or with CROSSCOPE_SERVER_TOKEN. No named token is called so."""
MAX_TOKENS: Final = 10_000
_RESERVED: Final = (OPERATOR, "nobody")
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_MAX_LIMIT: Final = 10**12


class AccessError(ValueError):
    """A list of tokens that cannot be read, or a token that cannot be in it; the text is one sentence."""


@dataclass(frozen=True)
class TokenEntry:
    """A named token. Times are in seconds since 1970."""

    name: str
    digest: str
    """SHA-256 of the token, hexadecimal. Tokens are 32 random bytes, so a slow hash would protect no better."""
    roles: tuple[str, ...]
    created_at: float
    expires_at: float | None = None
    limits: Mapping[str, Any] = field(default_factory=dict)
    """Limits by name, of LIMITS; one that is missing is no limit."""

    def __post_init__(self) -> None:
        """Raises AccessError."""
        if not is_name(self.name):
            raise AccessError(
                f"{self.name!r} cannot name a token: use 1 to 64 of a-z, 0-9 and ._-, and not {' or '.join(_RESERVED)}"
            )
        if not _DIGEST.fullmatch(self.digest):
            raise AccessError(f"token {self.name}: digest is not a SHA-256 in hexadecimal")
        if not self.roles or not set(self.roles) <= set(ROLES):
            has = ", ".join(self.roles) or "none"
            raise AccessError(f"token {self.name}: roles are {', '.join(ROLES)}, but it has {has}")
        for name, value in self.limits.items():
            if name not in LIMITS or isinstance(value, bool) or not isinstance(value, int):
                raise AccessError(f"token {self.name}: {name!r} is no limit, or {value!r} is no whole number")
            if not 0 <= value <= _MAX_LIMIT:
                raise AccessError(f"token {self.name}: {name} must be from 0 to {_MAX_LIMIT}, but is {value}")


def is_name(text: str) -> bool:
    """Whether a text can name a token in the list. No address of a connection can, and OPERATOR cannot."""
    return bool(_NAME.fullmatch(text)) and text not in _RESERVED


def new_token() -> str:
    """A new token: "cs_" and 32 random bytes."""
    return f"cs_{secrets.token_urlsafe(32)}"


def digest(token: str | bytes) -> str:
    """The hash by which a token is known."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass") if isinstance(token, str) else token).hexdigest()


def with_read(roles: Iterable[str]) -> tuple[str, ...]:
    """The roles with those that they include, in the order of ROLES."""
    given = set(roles)
    return ROLES if "admin" in given else tuple(role for role in ROLES if role in given or role == "read")


def parse_tokens(data: bytes) -> list[TokenEntry]:
    """The entries of TOKENS. Raises AccessError."""
    try:
        found: Any = json.loads(data)
        entries = [_entry(each) for each in found["tokens"]]
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, AccessError):
            raise
        raise AccessError(f"{TOKENS} is no list of tokens ({error})") from error
    if len({entry.name for entry in entries}) < len(entries) or len(entries) > MAX_TOKENS:
        raise AccessError(f"{TOKENS} has a name twice, or more than {MAX_TOKENS} tokens")
    return entries


def _entry(each: Any) -> TokenEntry:
    expires_at = each["expires_at"]
    return TokenEntry(
        name=str(each["name"]),
        digest=str(each["digest"]),
        roles=tuple(map(str, each["roles"])),
        created_at=float(each["created_at"]),
        expires_at=None if expires_at is None else float(expires_at),
        limits=dict(each["limits"]),
    )


def dump_tokens(entries: Sequence[TokenEntry]) -> str:
    """The text of TOKENS."""
    return json.dumps({"tokens": [asdict(entry) for entry in entries]}, indent=2) + "\n"


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach a gRPC address, host:port or unix:PATH."""
    if address.startswith("unix:"):
        return True
    host = address.removeprefix("dns:").removeprefix("ipv6:").rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def note_of(address: str) -> str | None:
    """The name below NOTES of the server at an address of this machine; None for other addresses."""
    if not is_loopback(address):
        return None
    if address.startswith("unix:"):
        path = address.removeprefix("unix:").removeprefix("//")
        return f"unix-{hashlib.sha256(path.encode('utf-8', 'surrogateescape')).hexdigest()[:24]}"
    return f"port-{address.rpartition(':')[2]}"
