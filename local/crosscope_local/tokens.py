"""The list of named tokens in a home, as the operator changes it. Knows no command line.

Changes take a lock, so that two do not lose each other's; the file is replaced as a whole, and a server reads it again
within a second.
"""

import errno
import fcntl
import json
import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from crosscope_local.disk import make_home, write_whole
from crosscope_proto import access
from crosscope_proto.access import AccessError, TokenEntry

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def read(home: Path) -> list[TokenEntry]:
    """The named tokens of a home. Raises AccessError."""
    try:
        return access.parse_tokens((home / access.TOKENS).read_bytes())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise AccessError(f"{home / access.TOKENS} cannot be read: {error.strerror}") from error


def last_used(home: Path) -> Mapping[str, float]:
    """When tokens were last used, seconds since 1970, as far as the server has written it (every minute)."""
    try:
        found = json.loads((home / access.USED).read_bytes())
        return {str(name): float(at) for name, at in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def add(home: Path, name: str, roles: Sequence[str], limits: Mapping[str, int], expires_at: float | None) -> str:
    """Adds a token and returns its secret, which is kept nowhere. Raises AccessError."""
    secret = access.new_token()
    made = TokenEntry(name, access.digest(secret), access.with_read(roles), time.time(), expires_at, limits)

    def change(entries: list[TokenEntry]) -> list[TokenEntry]:
        if any(entry.name == name for entry in entries):
            raise AccessError(f"there is a token {name!r} already; revoke it first, or choose another name")
        if len(entries) >= access.MAX_TOKENS:
            raise AccessError(f"there are {len(entries)} tokens, and at most {access.MAX_TOKENS} may be; revoke some")
        return [*entries, made]

    _change(home, change)
    return secret


def revoke(home: Path, name: str) -> None:
    """Removes a token. Raises AccessError."""

    def change(entries: list[TokenEntry]) -> list[TokenEntry]:
        left = [entry for entry in entries if entry.name != name]
        if len(left) == len(entries):
            raise AccessError(f"there is no token {name!r}; `crosscope tokens list` shows those that there are")
        return left

    _change(home, change)


def _change(home: Path, change: Callable[[list[TokenEntry]], list[TokenEntry]]) -> None:
    try:
        with _locked(home):
            text = access.dump_tokens(change(read(home)))
            try:
                write_whole(home / access.TOKENS, text, mode=0o600)
            except OSError as error:
                if error.errno not in _NO_ROOM or not _write_over(home / access.TOKENS, text):
                    raise
    except OSError as error:
        raise AccessError(f"{home / access.TOKENS} cannot be changed: {error.strerror}") from error


def _write_over(path: Path, text: str) -> bool:
    """Writes a text over a longer one, which needs no room: a full disk must not keep a token from being revoked.

    False if the file is shorter. A list that a crash cuts in two refuses all its tokens. Raises OSError.
    """
    with path.open("r+b") as file:
        if len(data := text.encode()) > os.fstat(file.fileno()).st_size:
            return False
        file.write(data)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())
    return True


@contextmanager
def _locked(home: Path) -> Generator[None]:
    make_home(home)
    (home / access.FOLDER).mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(home / access.TOKENS_LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def audit_lines(home: Path, at_most: int) -> list[dict[str, object]]:
    """The last lines of the audit log, older files included; a line that is no JSON object is left out."""
    found: list[dict[str, object]] = []
    names = [access.AUDIT, *(f"{access.AUDIT}.{number}" for number in range(1, access.AUDIT_KEPT + 1))]
    for name in names:
        try:
            lines = (home / name).read_text(errors="replace").splitlines()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise AccessError(f"{home / name} cannot be read: {error.strerror}") from error
        found = [*filter(None, map(_object, lines)), *found][-at_most:]
        if len(found) >= at_most:
            break
    return found


def _object(line: str) -> dict[str, object] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
