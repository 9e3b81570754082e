"""A job's own log file: a JSON object per line, kept over attempts. Holds what records leave out: tracebacks.

It is bounded: the oldest lines go, and its first line says how many have gone. A failed write goes to the log of the
process and does not stop the job.
"""

import json
import logging
import math
import re
import time
import traceback
from pathlib import Path

from crosscope_proto.artefacts import JOB_LOG
from crosscope_worker.disk import write_whole

MAX_BYTES = 4_000_000
"""A log that is longer loses its oldest lines, until half of this is left."""
MAX_TRACEBACK = 100_000
"""Most characters of a traceback; the middle goes."""
LEFT_OUT = "left-out"
"""The event of the line that says how many older lines have gone."""
SAY_EVERY_S = 10.0
"""Least time between two lines about a stage that goes on which say the same but for numbers."""
_MAX_SAID = 1000
"""Different sentences that are remembered."""
_NUMBER = re.compile(r"\d[\d.]*")

log = logging.getLogger(__name__)


class Journal:
    """Appends to a job's log file."""

    def __init__(self, folder: Path, attempt: int) -> None:
        """Makes the folder if need be; raises OSError if it cannot."""
        folder.mkdir(parents=True, exist_ok=True)
        self._path, self._attempt = folder / JOB_LOG, attempt
        self._said_at: dict[str, float] = {}
        """When a sentence was said last, its numbers left out."""

    def write(self, event: str, **fields: object) -> None:
        """Adds a line."""
        entry = {"at": round(time.time(), 3), "attempt": self._attempt, "event": event, **fields}
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry, default=str) + "\n")
                is_long = file.tell() > MAX_BYTES
            if is_long:
                self._shorten()
        except OSError as error:
            log.warning("cannot write to %s (%s): %s", self._path, error.strerror, entry)

    def say(self, stage: str, message: str) -> None:
        """Adds a line about a stage that goes on, unless one that says the same is younger than SAY_EVERY_S."""
        now, same = time.monotonic(), _NUMBER.sub("", message)
        if message and now - self._said_at.get(same, -math.inf) >= SAY_EVERY_S:
            if len(self._said_at) >= _MAX_SAID:
                self._said_at.clear()
            self._said_at[same] = now
            self.write("say", stage=stage, message=message)

    def failure(self, error: BaseException) -> None:
        """Adds an error with its traceback."""
        text = "".join(traceback.format_exception(error))
        if len(text) > MAX_TRACEBACK:
            half, num_cut = MAX_TRACEBACK // 2, len(text) - MAX_TRACEBACK
            text = f"{text[:half]}\n[{num_cut} characters are left out]\n{text[-half:]}"
        self.write("error", error=repr(error)[:MAX_TRACEBACK], traceback=text)

    def _shorten(self) -> None:
        """Leaves the oldest lines out, and says how many in all."""
        lines = self._path.read_text("utf-8", errors="replace").splitlines(keepends=True)
        before, size, kept = _num_left_out(lines[0]), 0, len(lines)
        while kept > 1 and size + len(lines[kept - 1]) <= MAX_BYTES // 2:
            kept -= 1
            size += len(lines[kept])
        num = before + kept - (1 if before else 0)
        entry = {"at": round(time.time(), 3), "attempt": self._attempt, "event": LEFT_OUT, "lines": num}
        entry |= {"message": f"{num} older lines are left out"}
        write_whole(self._path, "".join([json.dumps(entry) + "\n", *lines[kept:]]))


def _num_left_out(line: str) -> int:
    """How many lines had gone before, as a log's first line says; 0 if it does not."""
    try:
        entry = json.loads(line)
        return int(entry["lines"]) if entry["event"] == LEFT_OUT else 0
    except (ValueError, KeyError, TypeError):
        return 0
