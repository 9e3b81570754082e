"""Page tokens: opaque texts, bound to the version, the filters and the order of one listing.

A token is not secret and gives no rights; its checksum catches mistakes. Knows nothing about what is listed.
"""

import base64
import binascii
import json
import zlib
from dataclasses import dataclass

from crosscope_server.errors import InvalidRequest, Violation

Key = list[int | str]
"""What identifies the last row of a page."""


@dataclass(frozen=True)
class PageToken:
    """Where a listing goes on."""

    version_id: str
    after: Key


def encode_token(version_id: str, after: Key, query: object) -> str:
    """The token of the page after `after`, for the same `query` (any JSON value)."""
    body = json.dumps([version_id, after, _digest(query)], separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(body).rstrip(b"=").decode()


def decode_token(token: str, query: object) -> PageToken:
    """The page that a token names. Raises InvalidRequest if it is not a token, or belongs to another query."""
    try:
        body = json.loads(base64.urlsafe_b64decode(token.encode() + b"=" * (-len(token) % 4)))
        version_id, after, digest = body
        well_formed = isinstance(version_id, str) and isinstance(after, list)
    except (binascii.Error, ValueError, TypeError):
        well_formed, version_id, after, digest = False, "", [], 0
    if not well_formed:
        raise InvalidRequest([Violation("page_token", "not a token of this server; leave it empty for the first page")])
    if digest != _digest(query):
        sentence = "belongs to a listing with other filters or another order; leave it empty for the first page"
        raise InvalidRequest([Violation("page_token", sentence)])
    return PageToken(version_id, after)


def _digest(query: object) -> int:
    return zlib.crc32(json.dumps(query, sort_keys=True).encode())
