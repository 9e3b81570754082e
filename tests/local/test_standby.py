"""A program that loads for long has a standby, which takes over when it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from fixtures_waiting import PATIENCE_S, until

from crosscope_local.child import Child
from crosscope_local.leftovers import end_leftovers
from crosscope_local.supervise import State, Supervisor
from tests.local.small_programs import STANDBY, Stage, alive, program


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_STANDBY_AFTER_S", "_STANDBY_AGAIN_AFTER_S"):
        monkeypatch.setattr(f"crosscope_local.supervise.{name}", 0.1)


def words(stage: Stage) -> list[str]:
    log = stage.logs / "one.log"
    return log.read_text().split() if log.exists() else []


def standing_by(supervisor: Supervisor, stage: Stage, *but: int) -> int:
    """The standby's id, once it has loaded."""
    until(lambda: (pid := supervisor.standbys().get("one")) and pid not in but and str(pid) in words(stage))
    return supervisor.standbys()["one"]


def test_a_standby_takes_over_and_gets_a_standby_of_its_own(stage: Stage) -> None:
    def script(supervisor: Supervisor) -> None:
        second = standing_by(supervisor, stage)
        first = supervisor.pids()["one"]
        assert f"works {second}" not in " ".join(words(stage))
        os.kill(first, signal.SIGKILL)
        until(lambda: f"works {second}" in " ".join(words(stage)))
        assert supervisor.pids()["one"] == second
        third = standing_by(supervisor, stage, second)
        os.kill(second, signal.SIGKILL)
        until(lambda: f"works {third}" in " ".join(words(stage)))
        until(lambda: supervisor.states()["one"] is State.READY)

    assert stage.play([program("one", STANDBY, has_standby=True)], script)
    pids = [int(word) for word in words(stage) if word.isdigit()]
    assert not [pid for pid in pids if alive(pid)]


def test_a_standby_that_ends_is_told_once_and_started_again(stage: Stage) -> None:
    def script(supervisor: Supervisor) -> None:
        first = standing_by(supervisor, stage)
        os.kill(first, signal.SIGKILL)
        second = standing_by(supervisor, stage, first)
        os.kill(second, signal.SIGKILL)
        standing_by(supervisor, stage, first, second)
        assert supervisor.states()["one"] is State.READY

    assert stage.play([program("one", STANDBY, has_standby=True)], script)
    (told,) = stage.texts("warning")
    assert told.startswith("the standby of one was killed by SIGKILL; another is tried after 0.1 s, and ever")


def test_a_standby_that_keeps_ending_is_tried_ever_more_rarely(stage: Stage) -> None:
    source = "import os, time\nif 'CROSSCOPE_STANDBY_FD' in os.environ: raise SystemExit(3)\ntime.sleep(1e6)"

    def script(supervisor: Supervisor) -> None:
        until(lambda: supervisor._kept["one"].standby_ends == 5)
        kept = supervisor._kept["one"]
        assert kept.standby_due_at - time.monotonic() > 1.0  # the fifth pause is 1.6 s

    assert stage.play([program("one", source, has_standby=True)], script)
    assert len(stage.texts("warning")) == 1


def test_a_standby_that_does_not_hear_the_call_is_killed(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crosscope_local.child._FIRST_BEAT_S", 0.5)

    def script(supervisor: Supervisor) -> None:
        second = standing_by(supervisor, stage)
        os.kill(second, signal.SIGSTOP)
        os.kill(supervisor.pids()["one"], signal.SIGKILL)
        until(lambda: any("hung (no sign of life from its start" in text for text in stage.texts("warning")))
        until(lambda: supervisor.states()["one"] is State.READY and supervisor.pids()["one"] != second)
        assert not alive(second)

    assert stage.play([program("one", STANDBY, has_standby=True)], script)


def test_what_has_no_standby_gets_none(stage: Stage) -> None:
    def script(supervisor: Supervisor) -> None:
        assert supervisor.wait_ready("one", PATIENCE_S)
        until(lambda: len(words(stage)) == 4)
        assert not supervisor.standbys()

    assert stage.play([program("one", STANDBY)], script)


def test_a_standby_that_a_killed_supervisor_left_is_ended(tmp_path: Path) -> None:
    note = tmp_path / "processes.json"
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
from crosscope_local import supervise
from tests.local.small_programs import STANDBY, program
supervise._STANDBY_AFTER_S = 0.1
supervise.Supervisor([program("one", STANDBY, has_standby=True)], Path({str(tmp_path)!r}), print,
    noted_in=Path({str(note)!r})).run()
"""
    with subprocess.Popen([sys.executable, "-c", script]) as supervisor:
        log = tmp_path / "one.log"
        until(lambda: log.exists() and log.read_text().count("loaded") == 2)
        supervisor.kill()
    until(lambda: not [int(word) for word in log.read_text().split() if word.isdigit() and alive(int(word))])
    end_leftovers(note)
    assert not note.exists()


def test_a_child_that_stands_by_is_closed_with_its_pipes(tmp_path: Path) -> None:
    before = psutil.Process().num_fds()
    child = Child(program("one", STANDBY), tmp_path / "one.log", stands_by=True)
    until(lambda: "loaded" in (tmp_path / "one.log").read_text())
    child.close()
    until(child.has_ended)
    assert psutil.Process().num_fds() == before
