"""Each process of an installation gets the environment variables that it needs, and no secrets of the others."""

from pathlib import Path

import pytest
from fixtures_waiting import until

from crosscope_local.child import Child
from crosscope_local.programs import Installation
from crosscope_proto.environment import needed
from tests.local.small_programs import SLEEPER, program

PLANTED = {
    "CROSSCOPE_SERVER_TOKEN": {"server"},
    "CROSSCOPE_TOKEN": {"app"},
    "CROSSCOPE_AUTHOR": {"app"},
    "HF_TOKEN": {"worker", "jobs"},
    "HTTPS_PROXY": {"worker", "jobs"},
    "AWS_SECRET_ACCESS_KEY": set(),
    "OPENAI_API_KEY": {"jobs"},
    "CROSSCOPE_WORKER_DEVICE": {"worker", "jobs"},
    "CUDA_VISIBLE_DEVICES": {"worker", "jobs"},
    "PATH": {"queue", "cache", "server", "app", "worker", "jobs"},
}


def test_each_program_gets_its_own_variables(tmp_path: Path) -> None:
    programs = Installation(tmp_path, "127.0.0.1", 1, 2, tmp_path, job_threads=3).programs()
    for variable, owners in PLANTED.items():
        assert {each.name for each in programs if variable in needed(PLANTED, *each.reads)} == owners, variable
    threads = {each.name: each.environment.get("CROSSCOPE_WORKER_JOB_THREADS") for each in programs}
    assert {name for name, number in threads.items() if number} == {"jobs"}
    assert threads["jobs"] == "3"
    found = Installation(
        tmp_path, "127.0.0.1", 1, None, tmp_path, label_addresses=("https://a.org", "http://b")
    ).programs()
    sharing = Installation(tmp_path, "127.0.0.1", 1, 2, tmp_path, store="s3://bucket/x").programs()
    shared = {each.name for each in sharing if each.environment.get("CROSSCOPE_STORE") == "s3://bucket/x"}
    keyed = {each.name for each in sharing if "AWS_SECRET_ACCESS_KEY" in needed(PLANTED, *each.reads)}
    assert shared == keyed == {"server", "worker", "jobs"}
    assert found[-1].environment["CROSSCOPE_WORKER_LABEL_ADDRESSES"] == "https://a.org,http://b"


def test_several_job_workers_have_one_queue_and_the_settings_of_one(tmp_path: Path) -> None:
    settings = {"jobs": {"CROSSCOPE_WORKER_KEEP_CHECKPOINTS_DAYS": "1"}}
    programs = Installation(tmp_path, "127.0.0.1", 1, None, tmp_path, job_workers=2, settings=settings).programs()
    first, second = programs[-2:]
    assert (first.name, second.name) == ("jobs", "jobs-2")
    assert first.defaults == second.defaults == settings["jobs"]
    port = "CROSSCOPE_WORKER_JOBS_METRICS_PORT"
    assert port not in first.environment
    assert dict(second.environment) == {**first.environment, port: ""}  # one port shows one process


def test_a_child_starts_without_the_supervisors_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSCOPE_SERVER_TOKEN", "planted")
    monkeypatch.setenv("LC_TIME", "C")
    child = Child(program("one", SLEEPER, environment={"OWN": "1"}), tmp_path / "log")
    try:
        environ = Path(f"/proc/{child.pid}/environ")
        until(lambda: b"OWN=1" in environ.read_bytes())
        assert b"planted" not in environ.read_bytes()
        assert b"LC_TIME=C" in environ.read_bytes()
    finally:
        child.kill_rest()
        until(child.has_ended)
