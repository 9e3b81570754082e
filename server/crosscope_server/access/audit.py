"""The audit log: who changed what and who was refused, a JSON object a line. Never prompts, never words.

A line has `at` (seconds since 1970), `who`, `method`, `on` (names, ids and numbers of what it was about) and `outcome`
(the status of the call).
"""

import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from crosscope_proto.access import AUDIT, AUDIT_KEPT

MAX_BYTES = 10_000_000
"""A file of this size becomes AUDIT.1, and a new one is begun."""
_MAX_TEXT = 128
_TEXTS = ("crosscoder", "pair", "version_id", "id")
"""Fields of requests that name things. A list's name and a label are words, and stay out."""

log = logging.getLogger(__name__)


class Audit:
    """The log of one home. For one event loop."""

    def __init__(self, home: Path) -> None:
        self._path = home / AUDIT
        self._is_told = False

    def write(self, who: str, method: str, on: Mapping[str, object], outcome: str) -> None:
        """Appends a line. A log that cannot be written does not stop calls; the server's own log says so."""
        line = {"at": round(time.time(), 3), "who": who, "method": method, "on": dict(on), "outcome": outcome}
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                os.write(descriptor, (json.dumps(line) + "\n").encode())
                size = os.fstat(descriptor).st_size
            finally:
                os.close(descriptor)
            if size >= MAX_BYTES:
                self._rotate()
            self._is_told = False
        except OSError as error:
            if not self._is_told:
                log.error("the audit log cannot be written", extra={"path": str(self._path), "error": str(error)})
            self._is_told = True

    def _rotate(self) -> None:
        for number in range(AUDIT_KEPT - 1, 0, -1):
            older = self._path.with_name(f"{AUDIT}.{number}")
            if older.exists():
                older.replace(self._path.with_name(f"{AUDIT}.{number + 1}"))
        self._path.replace(self._path.with_name(f"{AUDIT}.1"))


def subject(message: Any) -> dict[str, object]:
    """What a request or a reply is about: names and ids, no other texts."""
    found: dict[str, object] = {}
    if not isinstance(message, Message):
        return found
    fields = message.DESCRIPTOR.fields_by_name
    for inner in ("options", "of", "job"):
        if inner in fields and message.HasField(inner):
            found |= subject(getattr(message, inner))
    for name in _TEXTS:
        if name in fields and isinstance(value := getattr(message, name), str) and value:
            found[name] = value[:_MAX_TEXT]
    latent: Any = getattr(message, "latent", None)
    if isinstance(latent, int):
        found["latent"] = latent
    if message.DESCRIPTOR.name == "Job":
        found |= {"id": message.id, "kind": message.kind, "name": message.name[:_MAX_TEXT]}  # pyright: ignore[reportAttributeAccessIssue]
    return found
