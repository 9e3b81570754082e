"""The end of a job's log, as lines to show. Masks what looks like a secret, and passes on no text of data or prompts.

The job writes JSON lines (the worker's journal). Of an error only its type and the places in the code are shown: what
it says to people is the job's message, in the line of its end. Knows nothing about Redis or gRPC.
"""

import json
import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crosscope_proto.artefacts import JOB_LOG, job_folder

DEFAULT_LINES = 100
MAX_BYTES = 1 << 20
"""Most bytes that are read of a log, its last ones."""
MAX_TEXT = 2000
"""Most characters of a line."""
MASK = "•••"
_SECRETS = (
    re.compile(r"\b(hf_|sk-|ghp_|github_pat_|xox[a-z]-|AKIA)[A-Za-z0-9_-]{8,}"),
    re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}"),
    re.compile(
        r"(?i)\b([\w-]*(?:token|secret|password|passwd|api[_-]?key))(\s*[=:]\s*)(?!null\b|None\b)['\"]?[^\s'\",;]+"
    ),
    re.compile(r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)"),
)
_FRAME = re.compile(r'^\s*File "([^"]+)", line (\d+), in (\S+)')


@dataclass(frozen=True)
class LogLine:
    """A line of a job's log (LogLine of the .proto)."""

    at: float
    attempt: int
    event: str
    text: str


@dataclass(frozen=True)
class Tail:
    """The end of a log."""

    lines: list[LogLine]
    num_before: int
    """Lines before these that were read and are not shown."""
    has_more: bool
    """Whether more lies before what was read."""


def read_tail(home: Path, job_id: str, at_most: int) -> Tail:
    """The last lines of a job's log; none before its first attempt. Raises OSError if the log cannot be read."""
    path = Path(job_folder(home, job_id)) / JOB_LOG
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = max(0, size - MAX_BYTES)
            file.seek(start)
            raw = file.read(MAX_BYTES)
    except FileNotFoundError:
        return Tail([], 0, has_more=False)
    texts = raw.decode("utf-8", "replace").splitlines()
    if start:
        texts = texts[1:]  # The first one is cut.
    lines: deque[LogLine] = deque(maxlen=at_most)
    num_lines = 0
    for line in (line for text in texts for line in _lines(text)):
        num_lines += 1
        lines.append(line)
    return Tail(list(lines), num_lines - len(lines), has_more=start > 0)


def _lines(text: str) -> Iterator[LogLine]:
    """The lines of a JSON line of the journal; none for one that was cut short."""
    try:
        entry = json.loads(text)
        at, attempt, event = float(entry["at"]), int(entry["attempt"]), str(entry["event"])
    except (ValueError, TypeError, KeyError):
        return
    for said in _said(event, entry):
        yield LogLine(at, attempt, event, masked(said)[:MAX_TEXT])


def _said(event: str, entry: Mapping[str, Any]) -> Iterator[str]:
    message = str(entry.get("message", ""))
    if event == "start":
        yield f"on {entry.get('device', 'an unknown device')}"
    elif event == "error":
        trace = str(entry.get("traceback", ""))
        yield re.split(r"[(\s]", str(entry.get("error", "")), maxsplit=1)[0] or "error"
        for line in trace.splitlines():
            if found := _FRAME.match(line):
                yield f"  {'/'.join(Path(found[1]).parts[-2:])}:{found[2]} in {found[3]}"
    elif event == "end":
        yield ": ".join(filter(None, (str(entry.get("state", "")), message)))
    else:
        yield ": ".join(filter(None, (str(entry.get("stage", "")), message)))


def masked(text: str) -> str:
    """A text in which what looks like a secret is masked."""
    for pattern in _SECRETS:
        groups = pattern.groups
        text = pattern.sub(lambda found, g=groups: f"{found[1]}{found[2]}{MASK}" if g == 2 else MASK, text)
    return text
