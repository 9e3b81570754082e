"""How to reach a server: address, token, time limit, TLS. Both kinds of client share it; it opens no connection."""

import getpass
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import grpc

from crosscope._errors import InvalidInput
from crosscope._prompts import check_text
from crosscope._public import public
from crosscope_proto import access
from crosscope_proto.ports import LAST_PORT, is_wrong_port

_MAX_REPLY_BYTES = 64 * 1024 * 1024
_MAX_AUTHOR = 100
_TLS_SCHEME = "grpcs://"
_LOOK_EVERY_S = 1.0
_TOKEN = re.compile(r"[!-~]{1,4096}")
_ADDRESS = re.compile(r"unix:.+|(dns:)?[^\s/:]+:\d{1,5}|(ipv6:)?\[[0-9a-fA-F:.%]+\]:\d{1,5}")


@public
@dataclass(frozen=True)
class Tls:
    """How to encrypt. Without `ca`, this system must trust the server's certificate.

    `Tls.from_environment()` takes the files from CROSSCOPE_TLS_CA, CROSSCOPE_TLS_CERT and CROSSCOPE_TLS_KEY.
    """

    ca: Path | str | None = None
    """PEM file of the authority that signed the server's certificate."""
    certificate: Path | str | None = None
    """PEM file of this client's own certificate, which goes with `key`; only for a server that asks for one."""
    key: Path | str | None = None
    """PEM file of its private key."""

    @classmethod
    def from_environment(cls) -> Self:
        """The files that CROSSCOPE_TLS_CA, CROSSCOPE_TLS_CERT and CROSSCOPE_TLS_KEY name; None for each not set."""
        named = (os.environ.get(f"CROSSCOPE_TLS_{name}") or None for name in ("CA", "CERT", "KEY"))
        return cls(*named)

    def credentials(self) -> grpc.ChannelCredentials:
        """The credentials in the files; raises InvalidInput about a file that cannot be read."""
        ca, key, certificate = (_read(self.ca, "ca"), _read(self.key, "key"), _read(self.certificate, "certificate"))
        if (key is None) != (certificate is None):
            raise InvalidInput.of("tls", "certificate and key go together: give both or neither")
        return grpc.ssl_channel_credentials(ca, key, certificate)


def _read(path: Path | str | None, field: str) -> bytes | None:
    try:
        return None if path is None else Path(path).read_bytes()
    except OSError as error:
        raise InvalidInput.of(f"tls.{field}", f"cannot read {str(path)!r}: {error.strerror}") from error


def login_name() -> str:
    """The name of the person who runs this program; "" where the system does not say."""
    try:
        return getpass.getuser()[:_MAX_AUTHOR]
    except (OSError, KeyError):  # a container may run under a number that has no name
        return ""


@dataclass(frozen=True)
class Connection:
    """How a client reaches its server. Raises InvalidInput for an address or a time limit that cannot be used."""

    address: str
    """host:port or unix:PATH; grpcs://host:port is host:port with TLS."""
    token: str | None = field(repr=False)
    timeout_s: float
    tls: Tls | None
    author: str = ""
    """The name that this client's changes of words are recorded with, as it claims."""
    _own: "_OwnToken | None" = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        address = check_text(self.address, "address").strip()
        if address.startswith(_TLS_SCHEME):
            address = address.removeprefix(_TLS_SCHEME)
            object.__setattr__(self, "tls", self.tls or Tls.from_environment())
        if not _ADDRESS.fullmatch(address):
            problem = f"{self.address!r} is no address; write host:port, grpcs://host:port or unix:/path/to/socket"
            raise InvalidInput.of("address", problem)
        if is_wrong_port(address):
            raise InvalidInput.of("address", f"the port of {self.address!r} is not between 1 and {LAST_PORT}")
        if not self.timeout_s > 0:
            raise InvalidInput.of("timeout_s", f"must be more than 0 seconds, but is {self.timeout_s!r}")
        if self.token:
            if not _TOKEN.fullmatch(check_text(self.token, "token")):
                problem = (
                    "must be 1 to 4096 printable ASCII characters without spaces, but has others, perhaps a line break "
                    "at its end; see CROSSCOPE_TOKEN"
                )
                raise InvalidInput.of("token", problem)
        elif self.token is None and (note := access.note_of(address)) is not None:
            object.__setattr__(self, "_own", _OwnToken(note))
        if len(check_text(self.author, "author")) > _MAX_AUTHOR:
            problem = f"must have at most {_MAX_AUTHOR} characters, but has {len(self.author)}; see CROSSCOPE_AUTHOR"
            raise InvalidInput.of("author", problem)
        object.__setattr__(self, "address", address)

    @property
    def long_timeout_s(self) -> float:
        """Limit of calls that generate, or run models many times: ten times that of others."""
        return 10 * self.timeout_s

    @property
    def options(self) -> list[tuple[str, Any]]:
        """Options of a gRPC channel to the server."""
        return [
            ("grpc.max_receive_message_length", _MAX_REPLY_BYTES),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 1000),
            ("grpc.max_reconnect_backoff_ms", 2000),
            ("grpc.enable_http_proxy", 0 if access.is_loopback(self.address) else 1),
        ]

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata of every call."""
        token = self.token or (self._own.read() if self._own else None)
        return (("authorization", f"Bearer {token}"),) if token else ()


class _OwnToken:
    """The own token of the home that a server of this machine serves, read again when it may have changed.

    It is there only for whoever may read the home: `crosscope up` makes it, mode 0600.
    """

    def __init__(self, note: str) -> None:
        self._note = note
        self._token: str | None = None
        self._looked_at: float | None = None

    def read(self) -> str | None:
        """The token; None if this person has none."""
        now = time.monotonic()
        if self._token is None or self._looked_at is None or now - self._looked_at > _LOOK_EVERY_S:
            self._token, self._looked_at = self._find(), now
        return self._token

    def _find(self) -> str | None:
        notes = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / access.NOTES
        home = _text(notes / self._note) or os.environ.get("CROSSCOPE_HOME") or access.DEFAULT_HOME
        found = _text(Path(home).expanduser() / access.OWN_TOKEN)
        if not found or not _TOKEN.fullmatch(found):
            return None
        port = self._note.removeprefix("port-")
        # Somebody else may have taken the port while nobody listened there.
        is_taken = port.isdecimal() and not owners(int(port)) <= {os.getuid()}
        return None if is_taken else found


def owners(port: int, tables: Sequence[Path] = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))) -> set[int]:
    """Ids of the people of this machine whose processes listen on a port; empty where the system does not say."""
    found: set[int] = set()
    for table in tables:
        try:
            rows = [line.split() for line in table.read_text().splitlines()[1:]]
        except OSError:
            continue
        found |= {int(row[7]) for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port}
    return found


def _text(path: Path) -> str | None:
    """What stands in a small file of this person; None if it cannot be read, or belongs to somebody else."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_uid != os.getuid():
                return None
            return file.read(8192).decode().strip()
    except (OSError, UnicodeDecodeError):
        return None
