"""The tokens that a server knows: the home's own, the operator's, and the named ones, read again when they change."""

import json
import logging
import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path

from crosscope_proto import access
from crosscope_proto.access import OPERATOR, AccessError, TokenEntry
from crosscope_server.callers import Caller, Limits, Role

LOOK_EVERY_S = 0.5
"""How often the files are looked at, so that a revoked token is refused within a second."""
_WRITE_USED_EVERY_S = 60.0
_MAX_REVOKED = 10_000

log = logging.getLogger(__name__)


class StoreError(Exception):
    """The home's own token cannot be used; the text is one sentence."""


@dataclass(frozen=True)
class Known:
    """A token that the server knows."""

    caller: Caller
    expires_at: float | None = None
    """Seconds since 1970; None: never."""

    @property
    def expired(self) -> bool:
        """Whether its time is over."""
        return self.expires_at is not None and time.time() >= self.expires_at


class Tokens:
    """All tokens of one home."""

    def __init__(self, home: Path, operator_token: str | None) -> None:
        """Makes the home's own token if there is none. Raises StoreError."""
        self._home = home
        self._operator = {} if operator_token is None else {access.digest(operator_token): Known(Caller(OPERATOR))}
        _make_own(home)
        self._states: tuple[object, ...] = ()
        self._known: dict[str, Known] = {}
        self._revoked: dict[str, str] = {}
        """Names of tokens that were known since the start and are no longer, by hash."""
        self._looked_at = -1.0
        self._used: dict[str, float] = _read_used(home)
        self._wrote_used_at = time.monotonic()
        self._used_changed = False

    def find(self, hashed: str) -> Known | None:
        """The token with this hash (access.digest); None if nobody has it. It may have expired.

        Hashes are compared, not tokens, so how long it takes says nothing about them.
        """
        self._look()
        found = self._known.get(hashed)
        if found is not None and not found.expired:
            self._used[found.caller.name] = time.time()
            self._used_changed = True
        return found

    def get(self, hashed: str) -> Known | None:
        """As `find`, but it does not count as used."""
        self._look()
        return self._known.get(hashed)

    def revoked(self, hashed: str) -> str | None:
        """The name of a token that was known since the start and is no longer."""
        return self._revoked.get(hashed)

    def close(self) -> None:
        """Writes when tokens were last used."""
        if self._used_changed:
            self._write_used()

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._wrote_used_at > _WRITE_USED_EVERY_S and self._used_changed:
            self._wrote_used_at = now
            self._write_used()
        if self._looked_at >= 0 and now - self._looked_at < LOOK_EVERY_S:
            return
        self._looked_at = now
        states = (_state(self._home / access.TOKENS), _state(self._home / access.OWN_TOKEN))
        if states != self._states:
            self._states = states
            self._change()

    def _change(self) -> None:
        """Reads the tokens again, and remembers the names of those that were revoked."""
        named = _named(self._home)
        known = {**(named or {}), **self._operator, **_own(self._home)}
        if named is not None:
            names = self._revoked | {hashed: each.caller.name for hashed, each in self._known.items()}
            gone = [(hashed, name) for hashed, name in names.items() if hashed not in known]
            self._revoked = dict(gone[-_MAX_REVOKED:])
        self._known = known

    def _write_used(self) -> None:
        path = self._home / access.USED
        beside = path.with_name(f".used.{os.getpid()}")
        names = {known.caller.name for known in self._known.values()}
        try:
            beside.write_text(json.dumps({name: at for name, at in sorted(self._used.items()) if name in names}))
            beside.replace(path)
            self._used_changed = False
        except OSError as error:
            log.warning("cannot write when tokens were last used", extra={"error": str(error)})


def _state(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _named(home: Path) -> dict[str, Known] | None:
    """The named tokens by hash; None while the list cannot be read."""
    try:
        entries = access.parse_tokens((home / access.TOKENS).read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, AccessError) as error:
        log.error("the list of tokens cannot be read; all named tokens are refused", extra={"error": str(error)})
        return None
    return {entry.digest: Known(_caller(entry), entry.expires_at) for entry in entries}


def _caller(entry: TokenEntry) -> Caller:
    return Caller(entry.name, frozenset(Role(role) for role in entry.roles), Limits(**entry.limits))


def _own(home: Path) -> dict[str, Known]:
    try:
        token = (home / access.OWN_TOKEN).read_bytes().strip()
    except OSError:
        return {}
    return {access.digest(token): Known(Caller(OPERATOR))} if token else {}


def _make_own(home: Path) -> None:
    """Makes the home's own token unless there is one, whole or not at all. Raises StoreError."""
    path = home / access.OWN_TOKEN
    try:
        for folder in (home, path.parent):  # both are their owner's alone, unless they are there
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            beside = path.with_name(f".token.{os.getpid()}")
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(access.new_token() + "\n")
            try:
                os.link(beside, path)  # where another server has just made one, that one stays
            except FileExistsError:
                pass
            finally:
                beside.unlink()
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise StoreError(f"the home's own token {path} cannot be made or read: {error.strerror}") from error
    if mode & 0o077:
        raise StoreError(f"others may read {path} (mode {mode:04o}): remove it, and the next start makes a new one")


def _read_used(home: Path) -> dict[str, float]:
    try:
        found = json.loads((home / access.USED).read_bytes())
        return {str(name): float(at) for name, at in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
