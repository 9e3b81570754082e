"""`python -m crosscope_worker jobs` as a process: settings, imports, and its end with its parent."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures_waiting import PATIENCE_S, until

from crosscope_proto.ending import WRONG_SETTINGS
from crosscope_worker.jobs.settings import JobSettings
from tests.jobs.rig import WORKER, Rig, is_alive, kill


def jobs(**environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CROSSCOPE")}
    command = [sys.executable, "-m", "crosscope_worker", "jobs"]
    return subprocess.run(command, env=kept | environment, capture_output=True, text=True, timeout=PATIENCE_S)


def test_a_missing_setting_is_named() -> None:
    ended = jobs()
    assert (ended.returncode, ended.stderr) == (WRONG_SETTINGS, "CROSSCOPE_WORKER_QUEUE_URL: must be set\n")


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("localhost:6379", "must start with redis://"),
        ("redis://here:x", "Port"),
        ("redis://here?health_check_interval=x", "Invalid"),
    ],
)
def test_a_bad_address_is_said(address: str, says: str) -> None:
    ended = jobs(CROSSCOPE_WORKER_QUEUE_URL=address)
    assert ended.returncode == WRONG_SETTINGS
    assert ended.stderr.startswith(f"CROSSCOPE_WORKER_QUEUE_URL: {says}")
    assert len(ended.stderr.splitlines()) == 1


def test_roots_are_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = {"CROSSCOPE_WORKER_QUEUE_URL": "unix:///q.sock"}
    ended = jobs(**url, CROSSCOPE_WORKER_DATA_ROOTS=f"{tmp_path}{os.pathsep}/nowhere")
    assert ended.returncode == WRONG_SETTINGS
    assert ended.stderr.startswith(
        "CROSSCOPE_WORKER_DATA_ROOTS: /nowhere is not the absolute path of a folder, but is "
    )
    monkeypatch.setenv("CROSSCOPE_WORKER_QUEUE_URL", "unix:///q.sock")
    for value, roots in (("", ()), (f"{tmp_path}{os.pathsep}/usr", (tmp_path, Path("/usr")))):
        monkeypatch.setenv("CROSSCOPE_WORKER_DATA_ROOTS", value)
        assert JobSettings().data_roots == roots  # pyright: ignore[reportCallIssue]


def test_worker_and_job_end_with_the_supervisor(bare_rig: Rig) -> None:
    rig = bare_rig
    rig.start_redis()
    rig.start_server()
    supervisor = rig.start_below_a_supervisor(["-c", WORKER])
    job = rig.submit("hold-on")
    rig.holding(job.id)
    worker, child = int((rig.folder / "child.pid").read_text()), rig.pid("hold-on")
    kill(supervisor)
    until(lambda: not is_alive(worker) and not is_alive(child))
    assert rig.get(job.id).message == "Its worker stopped; it will be resumed."
