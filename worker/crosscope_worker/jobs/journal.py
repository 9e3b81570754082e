"""A job's own log file: a JSON object per line, kept over attempts. Holds what records leave out: tracebacks.

A failed write goes to the log of the process and does not stop the job.
"""

import json
import logging
import time
import traceback
from pathlib import Path

from crosscope_proto.artefacts import JOB_LOG

SAY_EVERY_S = 10.0
"""Least time between two lines about a stage that goes on."""

log = logging.getLogger(__name__)


class Journal:
    """Appends to a job's log file."""

    def __init__(self, folder: Path, attempt: int) -> None:
        """Makes the folder if need be; raises OSError if it cannot."""
        folder.mkdir(parents=True, exist_ok=True)
        self._path, self._attempt = folder / JOB_LOG, attempt
        self._said_at = 0.0

    def write(self, event: str, **fields: object) -> None:
        """Adds a line."""
        entry = {"at": round(time.time(), 3), "attempt": self._attempt, "event": event, **fields}
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry, default=str) + "\n")
        except OSError as error:
            log.warning("cannot write to %s (%s): %s", self._path, error.strerror, entry)

    def say(self, stage: str, message: str) -> None:
        """Adds a line about a stage that goes on, unless the last one is younger than SAY_EVERY_S."""
        if message and time.monotonic() - self._said_at >= SAY_EVERY_S:
            self._said_at = time.monotonic()
            self.write("say", stage=stage, message=message)

    def failure(self, error: BaseException) -> None:
        """Adds an error with its traceback."""
        self.write("error", error=repr(error), traceback="".join(traceback.format_exception(error)))
