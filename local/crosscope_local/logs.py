"""Log files of the processes: rotated at start and by size, followed for warnings and errors. Knows no process."""

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from crosscope_proto.logs import OF_EVERY_LINE

_LEVELS = {"warning": "warning", "error": "error", "critical": "error"}
_PLAIN = re.compile(r"^\d{4}-\S+( [\d:,.]+)?( [\w.]+)? (?P<level>WARNING|ERROR|CRITICAL):? +(?P<text>.+)")
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
_MAX_LINES_A_LOOK = 5
_COPY_BYTES = 1 << 20
_MAX_BYTES_A_LOOK = 1 << 24


@dataclass(frozen=True)
class Problem:
    """A warning or an error that stands in a log."""

    level: str
    """"warning" or "error"."""
    text: str


@dataclass(frozen=True)
class Keep:
    """How much of a log is kept."""

    max_bytes: int = 10_000_000
    """A log that is longer is rotated."""
    num_files: int = 3
    """Older files beside the present one."""


KEEP = Keep()


def rotate(log: Path, keep: Keep) -> None:
    """Renames the log of the previous run to `<name>.log.1`, that one to `.2` and so on; the oldest goes."""
    if log.exists():
        _shift(log, keep.num_files)
        log.replace(_older(log, 1)) if keep.num_files else log.unlink()


def empty(log: Path, keep: Keep) -> bool:
    """Copies a log that a process appends to into `<name>.log.1`, as `rotate` does, and empties it.

    The process writes on into the same file. What it writes between the end of the copy and the emptying is lost: a
    line or two at worst. Returns False if the disk had no room for the copy; the log is empty then too.
    """
    _shift(log, keep.num_files)
    copy = _older(log, 1)
    try:
        if keep.num_files:
            with log.open("rb") as source, copy.open("wb") as target:
                shutil.copyfileobj(source, target, _COPY_BYTES)
    except OSError:
        copy.unlink(missing_ok=True)
        os.truncate(log, 0)
        return False
    os.truncate(log, 0)
    return True


def _shift(log: Path, num_files: int) -> None:
    for number in range(num_files - 1, 0, -1):
        if _older(log, number).exists():
            _older(log, number).replace(_older(log, number + 1))


def _older(log: Path, number: int) -> Path:
    return log.with_name(f"{log.name}.{number}")


class LogTail:
    """A log that is followed: reads what was appended since the last call."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._partial = b""

    def empty_if_long(self, keep: Keep) -> bool:
        """Empties the log if it is longer than `keep` allows; call right after `problems`. False as `empty` says."""
        try:
            if self.path.stat().st_size <= keep.max_bytes:
                return True
            copied = empty(self.path, keep)
        except OSError:  # no log yet, or a disk that does not answer
            return True
        self._offset, self._partial = 0, b""
        return copied

    def problems(self) -> list[Problem]:
        """The new warnings and errors: the first five, and then one that says how many more there are."""
        found = [problem for line in self._lines() if (problem := parse_problem(line))]
        if len(found) <= _MAX_LINES_A_LOOK:
            return found
        more = len(found) - _MAX_LINES_A_LOOK
        return [*found[:_MAX_LINES_A_LOOK], Problem("warning", f"and {more} more such lines in {self.path}")]

    def _lines(self) -> list[str]:
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                data = file.read(_MAX_BYTES_A_LOOK)
        except OSError:
            return []
        self._offset += len(data)
        *lines, self._partial = (self._partial + data).split(b"\n")
        return [line.decode(errors="replace") for line in lines]


def parse_problem(line: str) -> Problem | None:
    """The warning or error that a log line holds; None for any other line.

    Knows the JSON lines of crosscope_proto.logs, and lines for people that begin with the time.
    """
    line = _ESCAPES.sub("", line).strip()
    if line.startswith("{"):
        try:
            entry = json.loads(line)
        except ValueError:
            return None
        level = _LEVELS.get(str(entry.get("level", "")).lower())
        return Problem(level, _entry_text(entry)) if level else None
    if match := _PLAIN.search(line):
        return Problem(_LEVELS[match["level"].lower()], _shorten(match["text"]))
    return None


def _entry_text(entry: dict[str, object]) -> str:
    details = ", ".join(f"{key} {value}" for key, value in entry.items() if key not in OF_EVERY_LINE)
    return _shorten(f"{entry.get('event', '')}" + (f" ({details})" if details else ""))


def _shorten(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:297]}..."
