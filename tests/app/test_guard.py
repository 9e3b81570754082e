"""What strangers' pages cannot make a browser do with the app, by raw requests to the real process."""

import http.client
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from crosscope.app import login
from crosscope.app.guard import Guard
from crosscope.app.settings import SettingsError, read_settings
from tests.app.stack import Stack

KEY = "a-secret"


@pytest.fixture(scope="module")
def app() -> Iterator[Stack]:
    """The app alone, without a server behind it."""
    stack = Stack()
    try:
        stack.start_app(CROSSCOPE_APP_LOGIN="key", CROSSCOPE_APP_KEY=KEY)
        yield stack
    finally:
        stack.close()


def get(app: Stack, path: str = "/", **headers: str) -> tuple[int, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", app.port, timeout=20)
    connection.putrequest("GET", path, skip_host=True, skip_accept_encoding=True)
    for name, value in ({"Host": f"127.0.0.1:{app.port}"} | headers).items():
        if value:
            connection.putheader(name, value)
    connection.endheaders()
    reply = connection.getresponse()
    reply.read()
    connection.close()
    return reply.status, {name.lower(): value for name, value in reply.getheaders()}


def upgrade(app: Stack, host: str, origin: str | None) -> int:
    """The status of a wish for a web socket; 101 where it is granted."""
    headers = {"Host": host} | ({"Origin": origin} if origin else {})
    try:
        sent: Any = headers
        with connect(
            f"ws://{host}/_stcore/stream",
            origin=sent.pop("Origin", None),
            sock=_socket(app.port),
            subprotocols=["streamlit"],  # pyright: ignore[reportArgumentType]
        ):
            return 101
    except InvalidStatus as error:
        return error.response.status_code


def _socket(port: int) -> Any:
    import socket

    return socket.create_connection(("127.0.0.1", port), timeout=20)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8501", "127.0.0.1.evil.example", "", "169.254.1.1"])
@pytest.mark.parametrize("path", ["/", "/_stcore/health", "/_stcore/host-config"])
def test_another_name_is_refused(app: Stack, host: str, path: str) -> None:
    status, headers = get(app, path, Host=host)
    assert status in (400, 403)
    assert "set-cookie" not in headers


def test_its_own_names_are_answered_and_in_no_frame_of_others(app: Stack) -> None:
    for host in (f"127.0.0.1:{app.port}", f"localhost:{app.port}", f"[::1]:{app.port}"):
        for encoding in ("gzip", "identity"):
            status, headers = get(app, Host=host, **{"Accept-Encoding": encoding})
            assert status == 200
            assert headers["x-frame-options"] == "SAMEORIGIN"
            assert headers["content-security-policy"] == "frame-ancestors 'self'"
            assert headers["referrer-policy"] == "same-origin"


def test_pages_of_other_sites_are_refused(app: Stack) -> None:
    own = f"127.0.0.1:{app.port}"
    for origin in ("http://evil.example", "null", f"http://127.0.0.1:{app.port + 1}", "http://localhost"):
        assert get(app, Origin=origin)[0] == 403, origin
        assert upgrade(app, own, origin) == 403, origin
    assert get(app, Origin=f"http://{own}")[0] == 200
    assert upgrade(app, own, f"http://{own}") == 101
    assert upgrade(app, f"evil.example:{app.port}", f"http://evil.example:{app.port}") == 403


def test_only_the_start_address_gives_a_cookie(app: Stack) -> None:
    status, headers = get(app, f"/atlas?key={KEY}&crosscoder=a+b")
    assert (status, headers["location"]) == (303, "./?crosscoder=a+b")
    cookie = headers["set-cookie"]
    assert cookie.startswith(f"crosscope-key={KEY};")
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert headers["cache-control"] == "no-store"
    status, headers = get(app, "/?key=wrong")
    assert status == 200
    assert "crosscope-key" not in headers.get("set-cookie", "")


async def test_what_is_neither_a_request_nor_a_web_socket_is_handed_on() -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    async def nothing(*_: Any) -> Any:
        raise AssertionError

    await Guard(app, frozenset(), None)({"type": "lifespan"}, nothing, nothing)
    assert seen == ["lifespan"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"CROSSCOPE_APP_HOST": "0.0.0.0"}, "needs TLS"),
        ({"CROSSCOPE_APP_TLS_CERT": "c.pem"}, "go together"),
        ({"CROSSCOPE_APP_LOGIN": "nobody"}, "must be one of key, token, oidc, open"),
        ({"CROSSCOPE_APP_KEY": "a; b=c, and so on"}, "CROSSCOPE_APP_KEY"),
        ({"CROSSCOPE_APP_LOGIN": "oidc"}, "CROSSCOPE_APP_OIDC_TOKENS"),
        ({"CROSSCOPE_APP_LOGIN": "oidc", "CROSSCOPE_APP_OIDC_TOKENS": "a"}, "needs CROSSCOPE_APP_OIDC_SECRETS"),
        (
            {
                "CROSSCOPE_APP_LOGIN": "oidc",
                "CROSSCOPE_APP_OIDC_TOKENS": "a",
                "CROSSCOPE_APP_OIDC_SECRETS": "/nowhere/secrets.toml",
            },
            "/nowhere/secrets.toml, cannot be read",
        ),
        *(({"CROSSCOPE_APP_PORT": value}, "must be a port number") for value in ("x", "0", "70000", "-1")),
    ],
)
def test_settings_that_make_no_sense_are_said(given: dict[str, str], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        read_settings(given)


def test_settings_that_are_not_safe_by_themselves_are_taken_by_name() -> None:
    given = {"CROSSCOPE_APP_HOST": "0.0.0.0", "CROSSCOPE_APP_ALLOW_PLAINTEXT": "true"}
    found = read_settings(given | {"CROSSCOPE_APP_ALLOWED_HOSTS": "Lab.example.org, other"})
    assert {"lab.example.org", "other", "localhost"} <= found.hosts
    assert read_settings({}).login == "key"


@pytest.fixture
def addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file of tokens by e-mail address that the app is set to."""
    path = tmp_path / "addresses.toml"
    monkeypatch.setenv("CROSSCOPE_APP_LOGIN", "oidc")
    monkeypatch.setenv("CROSSCOPE_APP_OIDC_TOKENS", str(path))
    monkeypatch.setenv("CROSSCOPE_APP_OIDC_SECRETS", str(tmp_path / "secrets.toml"))
    (tmp_path / "secrets.toml").write_text("[auth]\n")
    login.settings.cache_clear()
    yield path
    login.settings.cache_clear()


def test_an_address_of_an_identity_provider_has_the_token_that_a_file_names(addresses: Path) -> None:
    addresses.write_text('"Ann@example.org" = "cs_a"\n')
    assert login.tokens_by_address() == {"ann@example.org": "cs_a"}


def test_a_thread_beside_the_page_acts_with_the_pages_token() -> None:
    assert login.run_as("cs_a", login.token) == "cs_a"
    with login.acting_with(None):
        assert login.run_as("cs_b", login.token) == "cs_b"
        assert login.token() is None
