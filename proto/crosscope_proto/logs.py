"""The log of every process: to stderr, one JSON object a line, or a readable line where stderr is a terminal.

Programs log through the standard library's `logging.getLogger(__name__)`; details go into `extra` and become fields of
the line (`log.info("serving", extra={"listen": address})`). Of exceptions only types and places are written, because
their texts may repeat a prompt. Knows nothing about what is logged.
"""

import json
import logging
import re
import sys
import threading
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final

from crosscope_proto import request_ids
from crosscope_proto.tracebacks import masked_traceback

OUR_LOGGERS: Final = ("crosscope", "crosscope_local", "crosscope_server", "crosscope_worker")
"""Our packages, which log from the level that is asked for. All other libraries log from WARNING on."""
OF_EVERY_LINE: Final = frozenset({"event", "level", "timestamp", "process", "logger", "exception"})
"""Keys of a JSON line that are no details of its event."""
_OF_EVERY_RECORD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


def configure_logging(process: str, level: str = "info") -> None:
    """Sends the log of this process to stderr, and to nothing that was configured before.

    `process` is the short name that each line carries ("server", "inference", "jobs"); `level` is debug, info, warning
    or error. Raises ValueError for another level.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PeopleFormatter() if sys.stderr.isatty() else JsonFormatter(process))
    handler.addFilter(with_request_id)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    for name in OUR_LOGGERS:
        logging.getLogger(name).setLevel(level.upper())
    sys.excepthook = _end_of_process
    threading.excepthook = lambda given: _end_of_process(given.exc_type, given.exc_value, given.exc_traceback)


def with_request_id(record: logging.LogRecord) -> bool:
    """Adds the id of the call that is served to a record; lets every record through. A filter for handlers."""
    if request_id := request_ids.current():
        record.__dict__.setdefault(request_ids.FACT, request_id)
    return True


def _end_of_process(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    """Logs what would else be printed whole: an exception that ends the process, or a thread."""
    if error is not None and not issubclass(kind, KeyboardInterrupt | SystemExit):
        logging.getLogger("crosscope").critical("ended by an error", exc_info=(kind, error, trace))


class _WithoutTexts(logging.Formatter):
    """Writes exceptions without their texts, and of asyncio's messages what is not the repr of somebody's data."""

    def formatException(self, ei: Any) -> str:
        """The traceback without what the exceptions say."""
        return masked_traceback(ei[1]) if ei[1] is not None else ""

    def event(self, record: logging.LogRecord) -> str:
        """What happened."""
        text = record.getMessage()
        return re.split(r"[(<\n]", text, maxsplit=1)[0].strip() if record.name == "asyncio" else text


class JsonFormatter(_WithoutTexts):
    """One JSON object: event, level, timestamp (UTC, ISO 8601), process, logger, the details, and a traceback."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process
        self._encode = json.JSONEncoder(default=repr).encode

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line, without a line break. A detail that JSON cannot hold is written as its repr."""
        entry: dict[str, object] = {
            "event": self.event(record),
            "level": record.levelname.lower(),
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "process": self._process,
            "logger": record.name,
        } | _details(record)
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return self._encode(entry)


class PeopleFormatter(_WithoutTexts):
    """A line for a terminal: time, logger, level, sentence and details, and below it a traceback."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(name)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line with its details behind the sentence."""
        details = "".join(f"  {name}={value}" for name, value in _details(record).items())
        record.message = self.event(record)
        return super().formatMessage(record) + details


def _details(record: logging.LogRecord) -> dict[str, object]:
    """What `extra` added to a record; private names are a library's own (Ray marks every record of its process)."""
    found = vars(record).items()
    return {name: value for name, value in found if name not in _OF_EVERY_RECORD and not name.startswith("_")}
