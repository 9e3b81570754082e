"""Settings of the app, from the environment. Knows no page and no browser."""

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path

from crosscope_proto.access import is_loopback

DEFAULT_PORT = 8501
DEFAULT_HOST = "127.0.0.1"
DEFAULT_ADDRESS = "127.0.0.1:50051"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_SECRET = re.compile(r"[A-Za-z0-9_-]{8,}")
_TRUE = ("1", "true", "yes", "on")


class SettingsError(ValueError):
    """An environment with which the app cannot start; the text is one sentence."""


class Login(StrEnum):
    """How viewers say who they are."""

    KEY = "key"
    """Whoever opens the start address, which holds a secret, acts as the app itself; others type a token."""
    TOKEN = "token"
    """Everyone types a token."""
    OIDC = "oidc"
    """Everyone logs in at an identity provider (Streamlit's own log-in), and acts with the token of their address."""
    OPEN = "open"
    """Everyone acts as the app itself."""


@dataclass(frozen=True)
class AppSettings:
    """The settings of one app."""

    port: int
    host: str
    address: str
    """Of the server."""
    login: Login
    key: str | None
    """The secret of the start address; None: to be made."""
    hosts: frozenset[str]
    """Names by which browsers may call the app."""
    tls: tuple[Path, Path] | None
    """Certificate and key, PEM."""
    oidc_tokens: Path | None
    """TOML file: the token of each e-mail address."""
    oidc_secrets: Path | None
    """TOML file with a table [auth], what Streamlit's log-in needs to know of the identity provider."""


def read_settings(environment: Mapping[str, str] = os.environ) -> AppSettings:
    """The settings in the environment. Raises SettingsError."""

    def of(name: str, otherwise: str = "") -> str:
        return environment.get(f"CROSSCOPE_APP_{name}") or otherwise

    host = of("HOST", DEFAULT_HOST)
    certificate, key = of("TLS_CERT"), of("TLS_KEY")
    if bool(certificate) != bool(key):
        raise SettingsError("CROSSCOPE_APP_TLS_CERT and CROSSCOPE_APP_TLS_KEY go together: set both or neither.")
    allows_plaintext = of("ALLOW_PLAINTEXT").lower() in _TRUE
    if not (is_loopback(f"{host}:0") or certificate or allows_plaintext):
        raise SettingsError(
            f"Others can reach {host}, so the app needs TLS: make certificates with `crosscope certs` and set "
            "CROSSCOPE_APP_TLS_CERT and CROSSCOPE_APP_TLS_KEY; or set CROSSCOPE_APP_ALLOW_PLAINTEXT=true where a proxy "
            "speaks TLS, or nobody listens in between."
        )
    named = (part.strip().lower() for part in of("ALLOWED_HOSTS").split(","))
    login = _login(of("LOGIN", Login.KEY))
    tokens, secret = of("OIDC_TOKENS"), of("KEY")
    if secret and not _SECRET.fullmatch(secret):
        raise SettingsError("CROSSCOPE_APP_KEY must be 8 or more of A-Z, a-z, 0-9, - and _, for instance 32 at random.")
    if login is Login.OIDC:
        _check_oidc(tokens, of("OIDC_SECRETS"))
    return AppSettings(
        port=_port(of("PORT", str(DEFAULT_PORT))),
        host=host,
        address=environment.get("CROSSCOPE_ADDRESS") or DEFAULT_ADDRESS,
        login=login,
        key=secret or None,
        hosts=frozenset({*_LOOPBACK, host.lower(), *filter(None, named)}),
        tls=(Path(certificate), Path(key)) if certificate else None,
        oidc_tokens=Path(tokens) if tokens else None,
        oidc_secrets=Path(of("OIDC_SECRETS")) if login is Login.OIDC else None,
    )


def _check_oidc(tokens: str, provider: str) -> None:
    """Raises SettingsError if something is missing that a log-in at an identity provider needs."""
    if not tokens:
        raise SettingsError("CROSSCOPE_APP_LOGIN=oidc needs CROSSCOPE_APP_OIDC_TOKENS, a TOML file of e-mail = token.")
    try:
        known = tomllib.loads(Path(provider).read_text("utf-8")).get("auth") if provider else None
    except (OSError, ValueError) as error:
        raise SettingsError(f"CROSSCOPE_APP_OIDC_SECRETS, {provider}, cannot be read: {error}") from error
    if not isinstance(known, dict):
        raise SettingsError(
            "CROSSCOPE_APP_LOGIN=oidc needs CROSSCOPE_APP_OIDC_SECRETS, a TOML file with a table [auth]: redirect_uri, "
            "cookie_secret, client_id, client_secret and server_metadata_url."
        )
    if find_spec("authlib") is None:
        raise SettingsError("CROSSCOPE_APP_LOGIN=oidc needs the package Authlib: pip install './client[app,oidc]'.")


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise SettingsError(f"CROSSCOPE_APP_PORT is {text!r}; it must be a port number from 1 to 65535.")
    return int(text)


def _login(text: str) -> Login:
    try:
        return Login(text)
    except ValueError as error:
        raise SettingsError(f"CROSSCOPE_APP_LOGIN is {text!r}; it must be one of {', '.join(Login)}.") from error
