import asyncio
import gc
import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from io import StringIO

import pytest

from crosscope_local.logs import Problem, parse_problem
from crosscope_proto.logs import OUR_LOGGERS, configure_logging
from crosscope_proto.tracebacks import masked_traceback


@pytest.fixture(autouse=True)
def loggers_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    hooks = sys.excepthook, threading.excepthook
    levels = {name: logging.getLogger(name).level for name in OUR_LOGGERS}
    root.handlers = []  # pytest's own, which `force` would close
    yield
    root.handlers, root.level = handlers, level
    sys.excepthook, threading.excepthook = hooks
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_is_json_with_the_details_and_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", written := StringIO())
    configure_logging("server")
    log = logging.getLogger("crosscope_server.calls")
    log.info("call", extra={"method": "Encode", "ms": 3.5, "_of_a_library": 1})
    try:
        raise OSError("no disk")
    except OSError:
        log.exception("bug")
    call, bug = map(json.loads, written.getvalue().splitlines())
    assert call.pop("timestamp").endswith("+00:00")
    assert call == {
        "event": "call",
        "level": "info",
        "process": "server",
        "logger": "crosscope_server.calls",
        "method": "Encode",
        "ms": 3.5,
    }
    assert bug["exception"].splitlines()[0] == "Traceback (most recent call last):"
    assert "test_logs.py" in bug["exception"]
    assert bug["exception"].endswith("OSError (a text of 7 characters is not logged)")


SECRET = "a prompt"


def fail() -> None:
    try:
        int(SECRET)
    except ValueError as error:
        raise ExceptionGroup(SECRET, [KeyError(SECRET), OSError(28, "No space left", SECRET)]) from error


def to_asyncio() -> None:
    async def forget() -> None:
        asyncio.get_running_loop().call_soon(lambda _: fail(), SECRET)
        task = asyncio.create_task(asyncio.to_thread(fail))
        await asyncio.sleep(0.05)
        assert task.done()

    asyncio.run(forget())
    gc.collect()


def to_a_thread() -> None:
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()


def to_the_log() -> None:
    try:
        fail()
    except ExceptionGroup:
        logging.getLogger("crosscope_server").exception("bug")


def to_the_end() -> None:
    try:
        fail()
    except ExceptionGroup as error:
        sys.excepthook(type(error), error, error.__traceback__)


@pytest.mark.parametrize("way", [to_the_log, to_asyncio, to_a_thread, to_the_end])
@pytest.mark.parametrize("stream", [StringIO, Terminal])
def test_no_way_writes_what_an_exception_says(
    monkeypatch: pytest.MonkeyPatch, way: Callable[[], None], stream: type[StringIO]
) -> None:
    """Nor what it follows, holds, or was called with; all say where it was, and of what kind."""
    monkeypatch.setattr(sys, "stderr", written := stream())
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    configure_logging("server")
    way()
    text = written.getvalue()
    assert SECRET not in text
    assert "ValueError" in text
    assert "KeyError" in text
    assert "No space left" in text
    assert "in fail" in text


def test_an_exception_that_follows_itself_is_written_once() -> None:
    first, second = ValueError("a"), KeyError("b")
    first.__context__, second.__context__ = second, first
    assert masked_traceback(first).count("Traceback") == 2


@pytest.mark.parametrize("stream", [StringIO, Terminal])
def test_the_supervisor_understands_both_forms(monkeypatch: pytest.MonkeyPatch, stream: type[StringIO]) -> None:
    monkeypatch.setattr(sys, "stderr", written := stream())
    configure_logging("inference", "warning")
    log = logging.getLogger("crosscope_worker.serve")
    log.info("said to nobody")
    logging.getLogger("httpx").info("nor this")
    log.error("no %s", "memory", extra={"crosscoder": "demo"})
    (line,) = written.getvalue().splitlines()
    problem = parse_problem(line)
    assert isinstance(problem, Problem)
    assert problem.level == "error"
    assert problem.text.startswith("no memory")
    assert "crosscoder" in problem.text


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="LOUD"):
        configure_logging("server", "loud")
