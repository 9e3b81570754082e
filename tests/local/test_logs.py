import logging
from pathlib import Path

import pytest

from crosscope_local.logs import LogTail, Problem, parse_problem
from crosscope_proto.logs import JsonFormatter, PeopleFormatter

_ERROR = "2026-01-01 10:00:00,000 ERROR "


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (
            '{"event": "no cache", "level": "warning", "timestamp": "2026-01-01", "url": "unix://x"}',
            Problem("warning", "no cache (url unix://x)"),
        ),
        ('{"event": "started", "level": "info"}', None),
        ('{"level": "warning"', None),
        (
            "\x1b[2m2026-01-01 10:00:00,000\x1b[0m \x1b[33mWARNING\x1b[0m slow disk  path=/x",
            Problem("warning", "slow disk  path=/x"),
        ),
        ("2026-01-01 10:00:00,000 crosscope.jobs ERROR no such kind", Problem("error", "no such kind")),
        ("2026-01-01 10:00:00,000 crosscope.jobs INFO an ERROR is not meant", None),
        ("a WARNING without a time", None),
        ("", None),
    ],
)
def test_levels_are_found_in_each_form(line: str, problem: Problem | None) -> None:
    assert parse_problem(line) == problem


def test_a_line_of_our_own_log_is_told_without_the_keys_of_every_line() -> None:
    record = logging.makeLogRecord(
        {"name": "crosscope_server", "levelno": logging.WARNING, "levelname": "WARNING", "msg": "no cache", "url": "x"}
    )
    record.exc_info = (ValueError, ValueError("why"), None)
    assert parse_problem(JsonFormatter("server").format(record)) == Problem("warning", "no cache (url x)")
    record.exc_info = None
    assert parse_problem(PeopleFormatter().format(record)) == Problem("warning", "no cache  url=x")


def test_a_tail_tells_each_line_once_and_waits_for_its_end(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    tail = LogTail(log)
    assert tail.problems() == []
    log.write_text(f"{_ERROR}first\n{_ERROR}sec")
    assert [problem.text for problem in tail.problems()] == ["first"]
    with log.open("a") as file:
        file.write("ond\n")
    assert [problem.text for problem in tail.problems()] == ["second"]
    assert tail.problems() == []


def test_a_flood_is_cut_short(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text(f"{_ERROR}again\n" * 40)
    problems = LogTail(log).problems()
    assert len(problems) == 6
    assert problems[-1] == Problem("warning", f"and 35 more such lines in {log}")
