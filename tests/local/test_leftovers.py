"""What a killed supervisor leaves behind ends: at once on Linux, also if it is stopped, and else at the next start."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
from fixtures_waiting import until

from crosscope_local.child import Child
from crosscope_local.leftovers import end_leftovers, note
from tests.local.small_programs import SLEEPER, alive, program


def test_a_stopped_child_ends_with_its_supervisor(tmp_path: Path) -> None:
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
        until(lambda: Path(f"/proc/{pid}/cmdline").read_text().split("\0")[1:3] == ["-c", SLEEPER])
        os.kill(pid, signal.SIGSTOP)
        supervisor.kill()
    until(lambda: not alive(pid))


def test_the_next_start_ends_what_still_runs(tmp_path: Path) -> None:
    child = Child(program("server", SLEEPER), tmp_path / "server.log")
    noted = tmp_path / "processes.json"
    note(noted, {"server": child.pid, "gone": 2**22 - 1})
    os.kill(child.pid, signal.SIGSTOP)
    assert end_leftovers(noted) == [f"server (process {child.pid})"]
    until(child.is_gone)
    assert not noted.exists()
    child.beats.close()


def test_the_note_in_a_copy_of_a_home_that_runs_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    child = Child(program("server", SLEEPER), tmp_path / "server.log")
    note(tmp_path / "home/processes.json", {"server": child.pid})
    shutil.copytree(tmp_path / "home", tmp_path / "copy")
    assert end_leftovers(tmp_path / "copy/processes.json") == []
    assert not (tmp_path / "copy/processes.json").exists()
    assert alive(child.pid)
    assert end_leftovers(tmp_path / "home/processes.json") == [f"server (process {child.pid})"]
    until(child.is_gone)
    child.beats.close()


def test_another_process_with_a_noted_id_is_left_alone(tmp_path: Path) -> None:
    noted = tmp_path / "processes.json"
    me = psutil.Process()
    note(noted, {"server": me.pid})
    said = json.loads(noted.read_text())
    said["processes"]["server"][1] -= 60
    noted.write_text(json.dumps(said))
    assert end_leftovers(noted) == []
    for odd in ("", "[]", "{}", '{"processes": 1}', '{"folder": 1, "processes": {"server": ["x", 1]}}'):
        noted.write_text(odd)
        assert end_leftovers(noted) == []
