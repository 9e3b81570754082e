"""A failed or cancelled job continues from its checkpoints, until these have expired."""

import os
import time
from pathlib import Path

import grpc
import pytest
from fixtures_waiting import until

from crosscope_proto.v1 import jobs_pb2
from crosscope_worker.jobs.retention import retry_hint, sweep
from tests.jobs.rig import Rig

SUCCEEDED, FAILED, CANCELLED = jobs_pb2.JOB_STATE_SUCCEEDED, jobs_pb2.JOB_STATE_FAILED, jobs_pb2.JOB_STATE_CANCELLED
RUNNING = jobs_pb2.JOB_STATE_RUNNING


def refused(rig: Rig, job_id: str) -> str:
    with pytest.raises(grpc.RpcError) as found:
        rig.retry(job_id)
    assert found.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    return found.value.details() or ""


def test_a_failed_job_goes_on_from_its_checkpoints(rig: Rig) -> None:
    job, after = rig.submit("learn-retried"), rig.submit("plain-after-learn")
    failed = rig.wait(job.id)
    assert (failed.state, failed.attempt) == (FAILED, 1)
    assert failed.message.startswith("Unexpected error: Error -3 while decompressing data")
    assert failed.message.endswith(f" crosscope retry {job.id} continues from step 5.")
    assert rig.wait(after.id).state == SUCCEEDED
    (rig.home / "learn-retried.mended").touch()

    again = rig.retry(job.id)
    assert (again.id, again.ended_at, again.message) == (
        job.id,
        0,
        "Queued again; it goes on from its checkpoints.",
    )
    done = rig.wait(job.id)
    assert (done.state, done.attempt, done.metrics["first_step"]) == (SUCCEEDED, 2, 5)
    assert rig.published("learn-retried") == 1
    told = [event.message for reply in rig.watch(job.id) for event in reply.events if event.message]
    assert told == [
        "Queued.",
        "Started.",
        "Getting ready.",
        "From step 0.",
        failed.message,
        again.message,
        "Started.",
        "Getting ready.",
        "From step 5.",
        "Done.",
    ]
    assert refused(rig, job.id).startswith(f"job {job.id!r} has succeeded, and there is nothing to retry")


def test_a_cancelled_job_is_retried_and_a_running_one_is_not(rig: Rig) -> None:
    job = rig.submit("hold-retried")
    rig.holding(job.id)
    assert refused(rig, job.id).startswith(f"job {job.id!r} is running: cancel it first")
    rig.cancel(job.id)
    rig.wait(job.id)
    rig.retry(job.id)
    again = rig.wait_for(job.id, lambda job: job.attempt == 2 and job.stage == "hold")
    assert (again.state, again.ended_at) == (RUNNING, 0)
    rig.go("hold-retried")
    assert rig.wait(job.id).state == SUCCEEDED


def test_a_job_after_a_failed_one_is_retried_after_it(rig: Rig) -> None:
    first = rig.submit("learn-first")
    second = rig.submit("learn-second", first.id)
    (rig.home / "learn-second.mended").touch()
    assert rig.wait(first.id).state == rig.wait(second.id).state == FAILED
    said = refused(rig, second.id)
    assert said == f"job {first.id!r} has failed, which job {second.id!r} waits for: retry that one first"
    (rig.home / "learn-first.mended").touch()
    rig.retry(first.id)
    waiting = rig.retry(second.id)
    assert rig.retry(second.id).state == waiting.state == jobs_pb2.JOB_STATE_QUEUED  # asked twice, it stays queued
    first, second = rig.wait(first.id), rig.wait(second.id)
    assert (first.state, second.state) == (SUCCEEDED, SUCCEEDED)
    assert first.ended_at <= second.started_at


def test_checkpoints_expire_and_then_nobody_can_retry(bare_rig: Rig) -> None:
    rig = bare_rig
    rig.start_redis()
    rig.start_server()
    worker = rig.start_worker(CROSSCOPE_WORKER_KEEP_CHECKPOINTS_DAYS=f"{1 / 86_400}")
    job = rig.submit("learn-old")
    failed = rig.wait(job.id)
    folder = rig.home / "jobs" / job.id / "checkpoints"
    assert folder.exists()
    until(lambda: time.time() > failed.ended_at + 1.1)
    assert rig.wait(rig.submit("plain").id).state == SUCCEEDED
    until(lambda: not folder.exists())
    assert (folder.parent / "log.jsonl").exists()
    assert refused(rig, job.id).startswith(f"job {job.id!r} has no checkpoints any more")
    rig.stop(worker)

    rig.start_worker(CROSSCOPE_WORKER_KEEP_CHECKPOINTS_DAYS="0")
    failed = rig.wait(rig.submit("learn-never").id)
    assert "crosscope retry" not in failed.message


def made(jobs: Path, name: str, size: int, age_s: float) -> Path:
    folder = jobs / name / "checkpoints"
    (folder / "step-000000007").mkdir(parents=True)
    (folder / "step-000000007" / "tensors.safetensors").write_bytes(bytes(size))
    os.utime(folder, (1000 - age_s, 1000 - age_s))
    return folder


def test_what_a_sweep_removes(tmp_path: Path) -> None:
    ends = {"succeeded": None, "failed-old": 800.0, "failed-big": 950.0, "failed-new": 990.0}

    def expire(job_id: str, before: float) -> str:
        if job_id == "open":
            return "open"
        if job_id not in ends:
            return "unknown"
        ended = ends[job_id]
        return "kept" if ended is not None and ended > before else "gone"

    ages = {
        "succeeded": 1,
        "open": 900,
        "failed-old": 200,
        "failed-big": 50,
        "failed-new": 10,
        "lost": 5,
        "lost-old": 300,
    }
    folders = {name: made(tmp_path, name, 1000, age) for name, age in ages.items()}
    removed = sweep(tmp_path, expire, keep_s=100, keep_bytes=1500, now=1000)
    assert sorted(removed) == ["failed-big", "failed-old", "lost-old", "succeeded"]
    assert {name for name, folder in folders.items() if folder.exists()} == {"open", "failed-new", "lost"}
    assert retry_hint(tmp_path / "open") == "crosscope retry open continues from step 7."
    assert retry_hint(tmp_path / "failed-old") == ""
