import logging
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures_waiting import PATIENCE_S

from crosscope_local.logs import Keep, LogTail, Problem, empty, parse_problem, rotate
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


def test_as_many_logs_are_kept_as_is_asked_for(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    for run in range(4):
        log.write_text(f"run {run}")
        rotate(log, Keep(num_files=2))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"x.log.1": "run 3", "x.log.2": "run 2"}
    log.write_text("run 4")
    rotate(log, Keep(num_files=0))
    assert not log.exists()


def test_a_log_is_emptied_while_a_process_writes_to_it(tmp_path: Path) -> None:
    """The lines of a process that never opens its log again, counted over all files."""
    log, keep = tmp_path / "x.log", Keep(max_bytes=1000, num_files=100)
    tail = LogTail(log)
    source = "import sys; [print(sys.stdin.readline(), end='', flush=True) for _ in range(200)]"
    with log.open("ab") as output:
        command = [sys.executable, "-c", source]
        writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, text=True)
    assert writer.stdin
    problems: list[Problem] = []
    for number in range(200):
        size = log.stat().st_size
        writer.stdin.write(f"{_ERROR}number {number}\n")
        writer.stdin.flush()
        while log.stat().st_size == size:
            pass
        problems += tail.problems()
        assert tail.empty_if_long(keep)
    writer.stdin.close()
    assert writer.wait(PATIENCE_S) == 0
    assert [problem.text for problem in problems] == [f"number {number}" for number in range(200)]
    lines = [line for path in tmp_path.iterdir() for line in path.read_text().splitlines()]
    assert sorted(lines) == sorted(f"{_ERROR}number {number}" for number in range(200))
    assert max(path.stat().st_size for path in tmp_path.iterdir()) < 1100


def test_a_log_is_emptied_also_if_there_is_no_room_for_a_copy(tmp_path: Path, monkeypatch) -> None:
    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    log = tmp_path / "x.log"
    log.write_text("much")
    monkeypatch.setattr("shutil.copyfileobj", no_room)
    assert not empty(log, Keep())
    assert list(tmp_path.iterdir()) == [log]
    assert log.read_text() == ""
