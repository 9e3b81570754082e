"""What strangers' web pages cannot make a browser do with the app: call it by another name, from elsewhere, in a frame.

A page of another site can point its own name at 127.0.0.1 (DNS rebinding); the browser then sends that name as Host.
It can also call the app's own address, and the browser says from where in Origin. Both are refused, for web sockets
too. Also sets the cookie of whoever opens the start address. Knows no page.
"""

import hmac
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Served = Callable[[Message, Receive, Send], Awaitable[None]]

COOKIE = "crosscope-key"
"""Holds the secret of the start address, out of reach of scripts."""
PARAMETER = "key"
"""The start address is `/?key=SECRET`."""
_HEADERS = (
    (b"x-frame-options", b"SAMEORIGIN"),
    (b"content-security-policy", b"frame-ancestors 'self'"),
    (b"referrer-policy", b"same-origin"),
    (b"x-content-type-options", b"nosniff"),
)


class Guard:
    """Stands in front of everything else (ASGI)."""

    def __init__(self, app: Served, hosts: Collection[str], key: str | None) -> None:
        """`hosts` are the names by which browsers may call the app, `key` is the secret of the start address."""
        self._app = app
        self._hosts = hosts
        self._key = key

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serves one request or web socket."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
        elif refusal := self._refusal(scope):
            await _refuse(scope, receive, send, refusal)
        elif scope["type"] == "http" and (target := self._start(scope)) is not None:
            await self._begin(scope, send, target)
        else:
            await self._app(scope, receive, _with_headers(send) if scope["type"] == "http" else send)

    def _refusal(self, scope: Message) -> str | None:
        """Why a request is refused; None if it is not."""
        named = _values(scope, b"host")
        if len(named) != 1 or _host(named[0]) not in self._hosts:
            return "This app does not answer to that name; see CROSSCOPE_APP_ALLOWED_HOSTS."
        origins = _values(scope, b"origin")
        if origins and (len(origins) != 1 or urlsplit(origins[0]).netloc.lower() != named[0].lower()):
            return "This app answers no other site's pages."
        return None

    def _start(self, scope: Message) -> str | None:
        """Where to go on from the start address; None for other requests, and for a wrong secret."""
        pairs = parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
        given = [value for name, value in pairs if name == PARAMETER]
        if self._key is None or scope["method"] != "GET" or not given:
            return None
        if not hmac.compare_digest(given[0].encode(), self._key.encode()):
            return None
        rest = urlencode([(name, value) for name, value in pairs if name != PARAMETER])
        return "./" + (f"?{rest}" if rest else "")

    async def _begin(self, scope: Message, send: Send, target: str) -> None:
        secure = "; Secure" if scope.get("scheme") == "https" else ""
        cookie = f"{COOKIE}={self._key}; Path=/; HttpOnly; SameSite=Strict{secure}"
        headers = [
            (b"location", target.encode("latin-1")),
            (b"set-cookie", cookie.encode("latin-1")),
            (b"cache-control", b"no-store"),
            (b"content-length", b"0"),
            *_HEADERS,
        ]
        await send({"type": "http.response.start", "status": 303, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


def _values(scope: Message, header: bytes) -> list[str]:
    return [value.decode("latin-1") for name, value in scope["headers"] if name.lower() == header]


def _host(named: str) -> str | None:
    """The name in a Host header, without the port."""
    try:
        return urlsplit(f"//{named}").hostname
    except ValueError:
        return None


async def _refuse(scope: Message, receive: Receive, send: Send, why: str) -> None:
    if scope["type"] == "websocket":
        await receive()  # the wish to connect; a close before it is accepted is an answer with status 403
        await send({"type": "websocket.close", "code": 1008})
        return
    body = f"{why}\n".encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 403, "headers": [*headers, *_HEADERS]})
    await send({"type": "http.response.body", "body": body})


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            ours = {name for name, _ in _HEADERS}
            kept = [pair for pair in message.get("headers", []) if pair[0].lower() not in ours]
            message = {**message, "headers": [*kept, *_HEADERS]}
        await send(message)

    return sending
