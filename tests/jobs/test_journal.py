"""A job's log is bounded and says what it has lost."""

import json
from pathlib import Path

import pytest

from crosscope_proto.artefacts import JOB_LOG
from crosscope_server.jobs.log import read_tail
from crosscope_worker.jobs.journal import Journal


def test_a_long_log_loses_its_oldest_lines_and_counts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crosscope_worker.jobs.journal.MAX_BYTES", 10_000)
    folder = tmp_path / "jobs" / "j"
    journal, largest = Journal(folder, 1), 0
    for number in range(1000):
        journal.write("stage", stage="train", message=f"number {number}")
        largest = max(largest, (folder / JOB_LOG).stat().st_size)
    lines = [json.loads(line) for line in (folder / JOB_LOG).read_text().splitlines()]
    assert largest < 10_200
    assert lines[0]["lines"] + len(lines) - 1 == 1000
    assert [line["message"] for line in lines[1:]] == [f"number {n}" for n in range(1001 - len(lines), 1000)]
    shown = read_tail(tmp_path, "j", 1000).lines
    assert shown[0].text == f"{lines[0]['lines']} older lines are left out"


def test_a_long_traceback_loses_its_middle(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 1)
    try:
        raise ValueError("x" * 500_000)
    except ValueError as error:
        journal.failure(error)
    entry = json.loads((tmp_path / JOB_LOG).read_text())
    assert "characters are left out]" in entry["traceback"]
    assert (tmp_path / JOB_LOG).stat().st_size < 250_000


def test_what_is_said_anew_is_written_and_what_is_said_again_waits(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 1)
    for message in ("step 1 of 9", "step 2 of 9", "rank 1 was killed by signal 9", "step 3 of 9"):
        journal.say("train", message)
    lines = [json.loads(line)["message"] for line in (tmp_path / JOB_LOG).read_text().splitlines()]
    assert lines == ["step 1 of 9", "rank 1 was killed by signal 9"]
