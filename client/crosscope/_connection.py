"""How to reach a server: address, token, time limit, TLS. Both kinds of client share it; it opens no connection."""

import getpass
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from crosscope._errors import InvalidInput
from crosscope._prompts import check_text
from crosscope._public import public

_MAX_REPLY_BYTES = 64 * 1024 * 1024
_MAX_AUTHOR = 100
_LOCAL = re.compile(r"unix:.*|(localhost|127\.[\d.]+|\[::1\])(:\d+)?")
_TOKEN = re.compile(r"[!-~]*")
_ADDRESS = re.compile(r"unix:.+|(dns:)?[^\s/:]+:\d{1,5}|(ipv6:)?\[[0-9a-fA-F:.%]+\]:\d{1,5}")


@public
@dataclass(frozen=True)
class Tls:
    """How to encrypt. Without `ca`, this system must trust the server's certificate."""

    ca: Path | str | None = None
    """PEM file of the authority that signed the server's certificate."""
    certificate: Path | str | None = None
    """PEM file of this client's own certificate, which goes with `key`; only for a server that asks for one."""
    key: Path | str | None = None
    """PEM file of its private key."""

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
    """host:port or unix:PATH."""
    token: str | None = field(repr=False)
    timeout_s: float
    tls: Tls | None
    author: str = ""
    """The name that this client's changes of words are recorded with, as it claims."""

    def __post_init__(self) -> None:
        address = check_text(self.address, "address").strip()
        if not _ADDRESS.fullmatch(address):
            problem = f"{self.address!r} is no address; write host:port or unix:/path/to/socket"
            raise InvalidInput.of("address", problem)
        if not self.timeout_s > 0:
            raise InvalidInput.of("timeout_s", f"must be more than 0 seconds, but is {self.timeout_s!r}")
        if self.token is not None and not _TOKEN.fullmatch(check_text(self.token, "token")):
            problem = (
                "may hold only printable ASCII characters and no spaces, but has others, perhaps a line break at its "
                "end; see CROSSCOPE_TOKEN"
            )
            raise InvalidInput.of("token", problem)
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
            ("grpc.enable_http_proxy", 0 if _LOCAL.fullmatch(self.address) else 1),
        ]

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata of every call."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()
