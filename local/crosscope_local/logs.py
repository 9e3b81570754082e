"""Log files of the processes: rotated at start, followed for warnings and errors. Knows no process."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

_LEVELS = {"warning": "warning", "error": "error", "critical": "error", "exception": "error"}
_CONSOLE = re.compile(r"\[(?P<level>warning|error|critical)\s*\]\s*(?P<text>.+)")
_PLAIN = re.compile(r"^\d{4}-\S+( [\d:,.]+)?( [\w.]+)? (?P<level>WARNING|ERROR|CRITICAL):? +(?P<text>.+)")
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
_MAX_LINES_A_LOOK = 5


@dataclass(frozen=True)
class Problem:
    """A warning or an error out of a log."""

    level: str
    """"warning" or "error"."""
    text: str


def rotate(log: Path) -> None:
    """Keeps the log of the run before as `<name>.log.1`, in place of the one before that."""
    if log.exists():
        log.replace(log.with_name(f"{log.name}.1"))


class LogTail:
    """Reads what was appended to a log since the last look."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._partial = b""

    def problems(self) -> list[Problem]:
        """The new warnings and errors; beyond a handful only how many more there are."""
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
    """The warning or error that a log line holds: structlog's JSON or console
    form, or logging's with the time in front; None for anything else.
    """
    line = _ESCAPES.sub("", line).strip()
    if line.startswith("{"):
        try:
            entry = json.loads(line)
        except ValueError:
            return None
        level = _LEVELS.get(str(entry.get("level", "")).lower())
        return Problem(level, _entry_text(entry)) if level else None
    if match := _CONSOLE.search(line) or _PLAIN.search(line):
        return Problem(_LEVELS[match["level"].lower()], _shorten(match["text"]))
    return None


def _entry_text(entry: dict[str, object]) -> str:
    hidden = {"level", "timestamp", "event", "exception", "exc_info", "logger", "stack"}
    details = ", ".join(f"{key} {value}" for key, value in entry.items() if key not in hidden)
    return _shorten(f"{entry.get('event', '')}" + (f" ({details})" if details else ""))


def _shorten(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:297]}..."
