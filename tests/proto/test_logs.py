import json
import logging
import sys
from collections.abc import Iterator
from io import StringIO

import pytest

from crosscope_local.logs import Problem, parse_problem
from crosscope_proto.logs import OUR_LOGGERS, configure_logging


@pytest.fixture(autouse=True)
def loggers_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in OUR_LOGGERS}
    root.handlers = []  # pytest's own, which `force` would close
    yield
    root.handlers, root.level = handlers, level
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_is_json_with_the_details_and_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", written := StringIO())
    configure_logging("server")
    log = logging.getLogger("crosscope_server.calls")
    log.info("call", extra={"method": "Encode", "ms": 3.5})
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
    assert "OSError: no disk" in bug["exception"]


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
