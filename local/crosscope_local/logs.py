"""Log files of the processes: rotated at start, followed for warnings and errors. Knows no process."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from crosscope_proto.logs import OF_EVERY_LINE

_LEVELS = {"warning": "warning", "error": "error", "critical": "error"}
_PLAIN = re.compile(r"^\d{4}-\S+( [\d:,.]+)?( [\w.]+)? (?P<level>WARNING|ERROR|CRITICAL):? +(?P<text>.+)")
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
_MAX_LINES_A_LOOK = 5


@dataclass(frozen=True)
class Problem:
    """A warning or an error that stands in a log."""

    level: str
    """"warning" or "error"."""
    text: str


def rotate(log: Path) -> None:
    """Renames the log of the previous run to `<name>.log.1`, which replaces an older one."""
    if log.exists():
        log.replace(log.with_name(f"{log.name}.1"))


class LogTail:
    """A log that is followed: reads what was appended since the last call."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._partial = b""

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
                data = file.read()
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
