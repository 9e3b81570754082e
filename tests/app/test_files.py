"""Streamlit's files come compressed, and only those."""

import asyncio
import gzip
from pathlib import Path
from typing import Any

import pytest
from streamlit.file_util import get_static_dir

from crosscope.app import files

STATIC = Path(get_static_dir())
SCRIPT = next(path for path in sorted((STATIC / "static" / "js").iterdir()) if path.name.startswith("index."))


def ask(path: str, encodings: str = "gzip, br", method: str = "GET") -> tuple[dict[bytes, bytes], bytes] | None:
    """Headers and body of an answer; None if the request was handed on."""
    sent: list[Any] = []

    async def rest(scope: Any, receive: Any, send: Any) -> None:
        pass

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("a GET has no body")

    scope = {"type": "http", "method": method, "path": path, "headers": [(b"accept-encoding", encodings.encode())]}
    asyncio.run(files.Compressed(rest)(scope, receive, send))
    return (dict(sent[0]["headers"]), sent[1]["body"]) if sent else None


def test_a_script_comes_compressed_and_is_kept_for_a_year() -> None:
    answer = ask(f"/static/js/{SCRIPT.name}")
    assert answer is not None
    headers, body = answer
    assert headers[b"content-encoding"] == b"gzip"
    assert b"javascript" in headers[b"content-type"]
    assert b"immutable" in headers[b"cache-control"]
    assert int(headers[b"content-length"]) == len(body) < SCRIPT.stat().st_size / 2
    assert gzip.decompress(body) == SCRIPT.read_bytes()


@pytest.mark.parametrize("path", ["/", "/atlas"])
def test_a_page_is_never_kept_and_loads_no_font_that_the_theme_does_not_use(path: str) -> None:
    answer = ask(path)
    assert answer is not None
    page = gzip.decompress(answer[1]).decode()
    assert answer[0][b"cache-control"] == b"no-cache"
    assert ".woff2" not in page
    assert f"./static/js/{SCRIPT.name}" in page
    assert "<title>crosscope</title>" in page


@pytest.mark.parametrize(
    ("path", "encodings"),
    [
        ("/static/../../secrets.js", "gzip"),
        ("/static/js/none.js", "gzip"),
        ("/static/media/font.woff2", "gzip"),
        ("/_stcore/health", "gzip"),
        (f"/static/js/{SCRIPT.name}", "br"),
        (f"/static/js/{SCRIPT.name}", "gzip;q=0, br"),
    ],
)
def test_everything_else_is_streamlits(path: str, encodings: str) -> None:
    assert ask(path, encodings) is None
