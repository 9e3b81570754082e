"""Streamlit's own files, compressed. Streamlit itself sends them as they lie on the disk.

A browser loads some 3 MB of JavaScript before it draws the first page; compressed it is a third of that. Each file is
compressed once, when it is first asked for. Knows no page.
"""

import asyncio
import gzip
import mimetypes
import re
from collections.abc import Awaitable, Callable, MutableMapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from streamlit.file_util import get_static_dir

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Served = Callable[[Message, Receive, Send], Awaitable[None]]

SUFFIXES = (".js", ".css")
YEAR = b"public, immutable, max-age=31536000"
"""The names of these files hold a hash of what is in them."""
_PAGE = re.compile(r"/[a-z]*")
"""Paths of pages, all of which Streamlit answers with the same file. Its own paths have underscores or more parts."""
_UNUSED_FONT = re.compile(rb"<link\s+rel=\"preload\"[^>]*?as=\"font\"[^>]*?/>", re.DOTALL)


_STILL = b"<style>[data-testid=stSkeleton]{animation:none!important}</style></head>"
"""A skeleton that pulses is drawn again sixty times a second, while the page needs the processor."""


class Compressed:
    """Answers what Streamlit's page asks for first with compressed bytes, and hands everything else on.

    The page itself loses its preloaded font, because the app's theme uses fonts of the system, and its skeletons stand
    still.
    """

    def __init__(self, app: Served) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serves one request (ASGI)."""
        file = found(scope) if scope["type"] == "http" and scope["method"] in ("GET", "HEAD") else None
        if file is None or not accepts_gzip(scope):
            await self._app(scope, receive, send)
            return
        body = await asyncio.to_thread(compressed, file)
        kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        headers = [
            (b"content-type", f"{kind}; charset=utf-8".encode()),
            (b"content-encoding", b"gzip"),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-cache" if file.suffix == ".html" else YEAR),
            (b"vary", b"accept-encoding"),
            (b"x-content-type-options", b"nosniff"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def found(scope: Message) -> Path | None:
    """The file of Streamlit's front end that a request asks for; None for everything else."""
    folder = Path(get_static_dir()).resolve()
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    if _PAGE.fullmatch(path):
        return folder / "index.html"
    if not path.startswith("/static/") or not path.endswith(SUFFIXES):
        return None
    file = (folder / path.removeprefix("/")).resolve()
    return file if file.is_relative_to(folder / "static") and file.is_file() else None


def accepts_gzip(scope: Message) -> bool:
    """Whether the browser reads gzip."""
    accepted = b",".join(value for name, value in scope["headers"] if name == b"accept-encoding")
    return any(
        part.partition(b";")[0].strip() == b"gzip" and b"q=0" not in part.replace(b"q=0.", b"")
        for part in accepted.split(b",")
    )


@lru_cache(maxsize=512)
def compressed(file: Path) -> bytes:
    """The file's bytes, compressed."""
    content = file.read_bytes()
    if file.suffix == ".html":
        content = _UNUSED_FONT.sub(b"", content).replace(b"<title>Streamlit</title>", b"<title>crosscope</title>")
        content = content.replace(b"</head>", _STILL, 1)
    return gzip.compress(content, 9, mtime=0)
