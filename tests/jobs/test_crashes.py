"""Jobs outlive the death of everything around them, and nothing is published twice."""

import grpc
import pytest
from fixtures_waiting import until

from crosscope_proto.v1 import jobs_pb2
from tests.jobs.rig import Rig, is_alive, kill

SUCCEEDED, RUNNING, QUEUED = jobs_pb2.JOB_STATE_SUCCEEDED, jobs_pb2.JOB_STATE_RUNNING, jobs_pb2.JOB_STATE_QUEUED


@pytest.mark.slow
def test_kill_9_of_a_worker_resumes_its_job(bare_rig: Rig) -> None:
    rig = bare_rig
    rig.start_redis()
    rig.start_server()
    worker = rig.start_worker()
    job = rig.submit("hold-on")
    rig.holding(job.id)
    first = rig.pid("hold-on")
    kill(worker)
    until(lambda: not is_alive(first))

    rig.start_worker()
    again = rig.wait_for(job.id, lambda job: job.attempt == 2 and job.stage == "hold")
    assert again.metrics["first_step"] > 0
    rig.go("hold-on")
    assert rig.wait(job.id).state == SUCCEEDED
    assert rig.published("hold-on") == 1


@pytest.mark.slow
def test_kill_9_of_redis_does_not_stop_a_job(bare_rig: Rig) -> None:
    rig = bare_rig
    queue = rig.start_redis()
    rig.start_server()
    rig.start_worker()
    job = rig.submit("hold-on")
    after = rig.submit("next", job.id)
    rig.holding(job.id)
    pid = rig.pid("hold-on")
    kill(queue)
    with pytest.raises(grpc.RpcError) as refused:
        rig.get(job.id)
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    assert "the job queue does not answer" in (refused.value.details() or "")
    rig.go("hold-on")
    journal = rig.home / "jobs" / job.id / "log.jsonl"
    until(lambda: '"publish"' in journal.read_text())
    assert is_alive(pid)
    assert rig.published("hold-on") == 0

    rig.start_redis()
    done = rig.wait(job.id)
    assert (done.state, done.attempt) == (SUCCEEDED, 1)
    assert done.metrics["loss"] == pytest.approx(1 / 3)
    assert rig.published("hold-on") == 1
    assert rig.wait(after.id).state == SUCCEEDED


def test_sigterm_of_a_worker_gives_its_job_back(bare_rig: Rig) -> None:
    rig = bare_rig
    rig.start_redis()
    rig.start_server()
    worker = rig.start_worker()
    job, deaf = rig.submit("hold-on"), rig.submit("deaf-one")
    rig.holding(job.id)
    rig.stop(worker)
    assert worker.returncode == 0
    given_back = rig.get(job.id)
    assert (given_back.state, given_back.queue_position) == (QUEUED, 0)
    assert given_back.message == "Its worker stopped; it will be resumed."
    assert not is_alive(rig.pid("hold-on"))

    worker = rig.start_worker()
    rig.go("hold-on")
    assert rig.wait(job.id).attempt == 2
    rig.wait_for(deaf.id, lambda job: job.stage == "prepare")
    rig.stop(worker)
    assert worker.returncode == 0
    assert not is_alive(rig.pid("deaf-one"))
    assert rig.get(deaf.id).state == QUEUED


def test_an_idle_worker_stops(bare_rig: Rig) -> None:
    rig = bare_rig
    rig.start_redis()
    worker = rig.start_worker()
    rig.start_server()
    assert rig.wait(rig.submit("plain").id).state == SUCCEEDED
    rig.stop(worker)
    assert worker.returncode == 0


def test_two_workers_share_the_jobs(bare_rig: Rig) -> None:
    rig = bare_rig
    rig.start_redis()
    rig.start_server()
    rig.start_worker()
    rig.start_worker()
    jobs = [rig.submit(f"hold-{i}") for i in range(2)]
    for job in jobs:
        rig.holding(job.id)
    assert [rig.get(job.id).state for job in jobs] == [RUNNING] * 2
    more = [rig.submit(f"more-{i}") for i in range(4)]
    for i in range(2):
        rig.go(f"hold-{i}")
    assert [rig.wait(job.id).attempt for job in [*jobs, *more]] == [1] * 6
    assert [rig.published(f"more-{i}") for i in range(4)] == [1] * 4


def test_a_job_ends_while_the_server_is_down(bare_rig: Rig) -> None:
    rig = bare_rig
    rig.start_redis()
    server = rig.start_server()
    rig.start_worker()
    job = rig.submit("hold-on")
    after = rig.submit("next", job.id)
    rig.holding(job.id)
    rig.stop(server)
    rig.go("hold-on")
    until(lambda: rig.published("next") == 1)
    rig.start_server()
    assert [rig.get(one.id).state for one in (job, after)] == [SUCCEEDED] * 2


def test_a_server_without_a_queue_says_so_and_recovers(bare_rig: Rig) -> None:
    rig = bare_rig
    rig.start_server()
    with pytest.raises(grpc.RpcError) as refused:
        rig.submit("plain")
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    rig.start_redis()
    rig.start_worker()
    assert rig.wait(rig.submit("plain").id).state == SUCCEEDED


def test_a_server_without_a_queue_url_says_which_setting(bare_rig: Rig) -> None:
    bare_rig.start_server(queue_url="")
    with pytest.raises(grpc.RpcError) as refused:
        bare_rig.submit("plain")
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    assert refused.value.details() == "this server has no job queue: start it with CROSSCOPE_SERVER_QUEUE_URL"
