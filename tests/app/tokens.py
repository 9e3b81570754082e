"""The tokens that the app's server knows in tests."""

import time

from crosscope_proto import access
from crosscope_proto.access import TokenEntry
from tests.app.stack import Stack


def ann() -> TokenEntry:
    """Ann, who may read; her token is "anns-token"."""
    return TokenEntry("ann", access.digest("anns-token"), ("read",), time.time())


def write(stack: Stack, *entries: TokenEntry) -> None:
    """Writes the list of tokens of a stack's home."""
    path = stack.home / access.TOKENS
    path.parent.mkdir(mode=0o700, exist_ok=True)
    beside = path.with_suffix(".new")
    beside.write_text(access.dump_tokens(entries))
    beside.replace(path)
