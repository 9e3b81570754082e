"""The launcher of ranks on one machine, with real processes: what dies, hangs, fails, is cancelled or loses its job."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fixtures_waiting import PATIENCE_S, until

from crosscope_worker.recipes.elastic import ElasticLauncher
from crosscope_worker.recipes.ranks import RankTask
from crosscope_worker.work import Cancelled, RankError
from tests.jobs.rig import is_alive
from tests.worker.recipes import rank_runs


@pytest.fixture
def task(tmp_path: Path) -> RankTask:
    return RankTask(recipe="{}", home=str(tmp_path), folder=str(tmp_path), device="cpu", beat_s=8, silent_s=60)


def pids(task: RankTask) -> list[int]:
    return [int(path.read_text()) for path in Path(task.folder).glob("start-*") if path.read_text()]


def test_ranks_that_die_or_hang_are_started_again(task: RankTask) -> None:
    heard: list[tuple[str, float, str, dict[str, Any]]] = []

    def progress(stage: str, fraction: float, message: str = "", **named: Any) -> None:
        heard.append((stage, fraction, message, named))

    ElasticLauncher(rank_runs.dies_then_hangs)(task, 2, progress)
    said = [message for _, _, message, _ in heard if message not in ("at work", "done")]
    assert said == [
        "rank 1 was killed by signal 9; training goes on from step 400 (start 2 of 4)",
        "rank 1 hung (no sign of life for 8 s) and was killed; training goes on from step 400 (start 3 of 4)",
    ]
    assert [(stage, fraction, named["step"]) for stage, fraction, message, named in heard if message in said] == [
        ("train", 0.1, 399),
        ("train", 0.1, 399),
    ], "a sentence stands where the training stood"
    last = {"step": 500, "metrics": {"loss": 0.5}, "rel_norms": [1, 2]}
    assert heard[-1] == ("train", 1.0, "done", last)
    for rank in range(2):
        found = json.loads((Path(task.folder) / f"found-{rank}.json").read_text())
        assert (found["sum"], found["device"], found["threads"]) == (3, "cpu", 1)
        assert set(found["listening"]) <= {"127.0.0.1"}
    assert [path.name for path in (Path(task.folder) / "checkpoints").iterdir()] == ["step-000000400"]
    assert not any(map(is_alive, pids(task)))


def test_an_error_of_one_rank_ends_all_with_its_own_sentence(task: RankTask) -> None:
    """Though ranks wait for each other for half an hour, and closing what is open never ends."""
    with pytest.raises(RankError) as found:
        ElasticLauncher(rank_runs.refuses)(replace(task, silent_s=1800), 2, lambda *_, **__: None)
    assert str(found.value) == "rank 1 of 2: chats.jsonl, line 7: the turns do not alternate"
    took = time.time() - (Path(task.folder) / "refused").stat().st_mtime
    assert took < 300, "CLOSE_S, and what a busy machine adds"
    assert found.value.__notes__ == ["Half of it is kept."]
    assert isinstance(found.value.__cause__, ValueError)
    assert "rank_runs.py" in str(found.value.__cause__.__cause__), "the traceback of the rank"
    assert len(pids(task)) == 2, "it is not tried again"
    assert not any(map(is_alive, pids(task)))
    assert all(path.name.startswith("step-") for path in (Path(task.folder) / "checkpoints").iterdir())


def test_a_rank_that_leaves_ends_all(task: RankTask) -> None:
    told: list[str] = []

    def progress(stage: str, fraction: float, message: str = "", **_: Any) -> None:
        told.append(message)

    with pytest.raises(RankError, match=r"^rank 1 of 2: SystemExit: 0$"):
        ElasticLauncher(rank_runs.exits)(replace(task, silent_s=1800), 2, progress)
    assert told == ["rank 1 ended before its training; training begins again (start 2 of 4)"]
    assert not any(map(is_alive, pids(task)))


def test_a_cancel_ends_all_ranks(task: RankTask) -> None:
    def cancel(*_: Any, **__: Any) -> None:
        raise Cancelled("someone asked the job to stop")

    with pytest.raises(Cancelled):
        ElasticLauncher(rank_runs.waits)(task, 2, cancel)
    assert len(pids(task)) == 2
    assert not any(map(is_alive, pids(task)))


def test_ranks_end_with_the_jobs_process(task: RankTask) -> None:
    script = (
        "from crosscope_worker.recipes.elastic import ElasticLauncher\n"
        "from crosscope_worker.recipes.ranks import RankTask\n"
        "from tests.worker.recipes import rank_runs\n"
        "if __name__ == '__main__':\n"
        f"    ElasticLauncher(rank_runs.waits)({task!r}, 2, lambda *_, **__: None)\n"
    )
    path = Path(task.folder) / "job.py"
    path.write_text(script)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    job = subprocess.Popen([sys.executable, str(path)], env=environment)
    try:
        until(lambda: len(pids(task)) == 2)
    finally:
        job.send_signal(signal.SIGKILL)
        job.wait(PATIENCE_S)
    until(lambda: not any(map(is_alive, pids(task))))
