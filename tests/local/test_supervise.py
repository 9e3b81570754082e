import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from fixtures_waiting import PATIENCE_S, until

from crosscope_local.child import Child, session_members
from crosscope_local.supervise import State, Supervisor
from crosscope_proto.ending import WRONG_SETTINGS
from tests.local.small_programs import SLEEPER, STUBBORN, Stage, alive, program


def test_a_killed_program_is_started_again_and_the_person_is_told(stage: Stage) -> None:
    def script(supervisor: Supervisor) -> None:
        assert supervisor.wait_ready("one", PATIENCE_S)
        first = supervisor.pids()["one"]
        os.kill(first, signal.SIGKILL)
        until(lambda: supervisor.pids().get("one", first) != first)
        until(lambda: supervisor.states()["one"] is State.READY)
        assert not alive(first)

    assert stage.play([program("one", SLEEPER)], script)
    assert [
        text
        for text in stage.texts("warning")
        if text.startswith("one was killed by SIGKILL. Starting it again in 0.2 s")
    ]
    assert "one is back." in stage.texts("info")


def test_what_keeps_ending_is_told_once_and_comes_back_when_its_cause_has_passed(
    stage: Stage, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("crosscope_local.supervise._RESTART_DELAYS_S", (0.02,))
    monkeypatch.setattr("crosscope_local.supervise._STEADY_AFTER_S", 0.5)
    mended, starts = tmp_path / "mended", tmp_path / "starts"
    source = f"""
import pathlib, signal
pathlib.Path({str(starts)!r}).open("a").write(".")
if not pathlib.Path({str(mended)!r}).exists():
    raise SystemExit("no such model")
signal.pause()
"""

    def script(supervisor: Supervisor) -> None:
        assert not supervisor.wait_ready("bad", PATIENCE_S)
        seen = len(starts.read_text())
        until(lambda: len(starts.read_text()) >= seen + 2)
        mended.touch()
        until(lambda: "bad is back." in stage.texts("info"))

    assert stage.play([program("bad", source, probe=mended.exists)], script)
    log = stage.logs / "bad.log"
    how = "bad ended with code 1: no such model, for the 6th time in a row. It is started again at least every 0.02 s"
    assert stage.texts("error") == [f"{how}; its log is {log}"]


def test_settings_with_which_nothing_can_start_end_the_run(stage: Stage) -> None:
    source = f"import sys; print('SIZE: must be a number, but is many'); sys.exit({WRONG_SETTINGS})"

    def script(supervisor: Supervisor) -> None:
        until(lambda: supervisor.stopping)
        assert not supervisor.wait_ready("bad", PATIENCE_S)

    assert not stage.play([program("bad", source, probe=lambda: False), program("good", SLEEPER)], script)
    log = stage.logs / "bad.log"
    assert stage.texts("error") == [f"bad cannot start: SIZE: must be a number, but is many; its log is {log}"]
    assert not stage.texts("warning")


def test_settings_that_held_once_may_hold_again(stage: Stage, tmp_path: Path, monkeypatch) -> None:
    """As where a device is away for a moment: what was ready is started again and again."""
    monkeypatch.setattr("crosscope_local.supervise._RESTART_DELAYS_S", (0.02,))
    away = tmp_path / "away"
    source = f"""
import pathlib, signal, sys
if pathlib.Path({str(away)!r}).exists():
    sys.exit({WRONG_SETTINGS})
signal.pause()
"""

    def script(supervisor: Supervisor) -> None:
        assert supervisor.wait_ready("one", PATIENCE_S)
        away.touch()
        os.kill(supervisor.pids()["one"], signal.SIGKILL)
        until(lambda: any(f"code {WRONG_SETTINGS}" in text for text in stage.texts("warning")))
        away.unlink()
        until(lambda: "one is back." in stage.texts("info"))

    assert stage.play([program("one", source, probe=lambda: not away.exists())], script)


def test_what_fails_to_the_end_makes_the_run_fail(stage: Stage, monkeypatch) -> None:
    monkeypatch.setattr("crosscope_local.supervise._RESTART_DELAYS_S", (0.02,))

    def script(supervisor: Supervisor) -> None:
        assert not supervisor.wait_ready("bad", PATIENCE_S)
        assert not supervisor.stopping

    assert not stage.play(
        [program("bad", "raise SystemExit(3)", probe=lambda: False), program("good", SLEEPER)], script
    )


def test_order_of_start_follows_after(stage: Stage, tmp_path: Path) -> None:
    allowed = tmp_path / "allowed"

    def script(supervisor: Supervisor) -> None:
        until(lambda: supervisor.states()["first"] is State.STARTING)
        assert supervisor.states()["second"] is State.WAITING
        allowed.touch()
        assert supervisor.wait_ready("second", PATIENCE_S)

    stage.play([program("second", SLEEPER, after=("first",)), program("first", SLEEPER, probe=allowed.exists)], script)


def test_stop_leaves_no_grandchild_even_in_a_group_of_its_own(stage: Stage, tmp_path: Path) -> None:
    note = tmp_path / "grandchild"
    source = f"""
import os, pathlib, signal
pid = os.fork()
if pid == 0:
    os.setpgrp()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pathlib.Path({str(note)!r}).write_text(str(os.getpid()))
signal.pause()
"""

    def script(supervisor: Supervisor) -> None:
        until(lambda: note.exists() and note.read_text())

    stage.play([program("parent", source)], script)
    assert not alive(int(note.read_text()))
    assert not stage.texts("warning"), "nobody waits for the grandchild"


def test_what_a_crashed_program_had_started_is_killed_too(stage: Stage, tmp_path: Path) -> None:
    note = tmp_path / "grandchild"
    source = f"""
import os, pathlib, signal
if os.fork() == 0:
    os.setpgrp()
    pathlib.Path({str(note)!r}).open("a").write(f"{{os.getpid()}}\\n")
signal.pause()
"""

    def script(supervisor: Supervisor) -> None:
        until(lambda: note.exists() and note.read_text())
        first = supervisor.pids()["parent"]
        os.kill(first, signal.SIGKILL)
        until(lambda: len(note.read_text().split()) == 2)
        until(lambda: not alive(int(note.read_text().split()[0])))

    stage.play([program("parent", source)], script)


def test_a_program_that_ignores_sigterm_is_killed_in_the_end(stage: Stage) -> None:
    log = stage.logs / "stubborn.log"
    stopped_at: list[float] = []

    def script(supervisor: Supervisor) -> None:
        until(lambda: log.exists() and "up" in log.read_text())
        stopped_at.append(time.monotonic())

    stage.play([program("stubborn", STUBBORN)], script)
    assert time.monotonic() - stopped_at[0] > 3.5
    assert stage.texts("warning") == ["stubborn did not end within 4 s and had to be killed."]


def test_kill_waits_for_no_process(stage: Stage) -> None:
    log = stage.logs / "stubborn.log"
    stopped_at: list[float] = []

    def script(supervisor: Supervisor) -> None:
        until(lambda: log.exists() and "up" in log.read_text())
        stopped_at.append(time.monotonic())
        supervisor.kill()

    stage.play([program("stubborn", STUBBORN)], script)
    assert time.monotonic() - stopped_at[0] < 4, "the time that it has otherwise"


def test_programs_that_others_use_to_the_end_stop_last(stage: Stage, tmp_path: Path) -> None:
    ends = tmp_path / "ends"

    def source(name: str) -> str:
        return f"""
import pathlib, signal, time
def end(*_):
    time.sleep(0.2)
    pathlib.Path({str(ends)!r}).open("a").write({name!r} + " ")
    raise SystemExit
signal.signal(signal.SIGTERM, end)
print("up", flush=True)
signal.pause()
"""

    logs = [stage.logs / "queue.log", stage.logs / "user.log"]

    def script(supervisor: Supervisor) -> None:
        until(lambda: all(log.exists() and "up" in log.read_text() for log in logs))

    stage.play([program("queue", source("queue"), stop_last=True), program("user", source("user"))], script)
    assert ends.read_text().split() == ["user", "queue"]


def test_warnings_of_a_log_reach_the_person_and_the_previous_log_is_kept(stage: Stage) -> None:
    (stage.logs / "one.log").write_text("of the run before\n")
    source = "print('2026-01-01 10:00:00,000 WARNING disk is slow  path=/x', flush=True)\n" + SLEEPER

    def script(supervisor: Supervisor) -> None:
        until(lambda: stage.texts("warning"))

    stage.play([program("one", source)], script)
    assert stage.texts("warning") == ["one: disk is slow  path=/x"]
    assert (stage.logs / "one.log.1").read_text() == "of the run before\n"


def test_children_end_when_the_supervisor_is_killed(tmp_path: Path) -> None:
    source = f"""
import pathlib, sys
from crosscope_local.child import Child, Program
child = Child(Program("one", (sys.executable, "-c", {SLEEPER!r}), None), pathlib.Path({str(tmp_path / "one.log")!r}))
print(child.pid, flush=True)
child._process.wait()
"""
    with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        pid = int(supervisor.stdout.readline())
        until(lambda: "pause" in Path(f"/proc/{pid}/cmdline").read_text())
        supervisor.kill()
    until(lambda: not alive(pid))


def test_session_members_are_the_living_of_one_session(tmp_path: Path) -> None:
    child = Child(program("one", SLEEPER), tmp_path / "one.log")
    assert session_members(child.pid) == [child.pid]
    child.kill_rest()
    until(child.is_gone)
    assert child.ending() == "was killed by SIGKILL"
