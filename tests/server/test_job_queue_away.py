"""Watchers share one connection, and a queue that is away or stalls is said in a moment, by every call."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from fixtures_server import run_cache, run_front
from fixtures_waiting import PATIENCE_S
from redis.asyncio import Redis

from crosscope_proto.v1 import jobs_pb2, jobs_pb2_grpc, system_pb2, system_pb2_grpc
from crosscope_server import quota
from crosscope_server.jobs.connections import CALLS, THREADS, end_task

pytestmark = pytest.mark.asyncio

RECIPE = "kind: demo-pair\nname: mine\n"
WATCHERS = 300
QUITE_LONG_S = 20.0


@dataclass
class Queued:
    jobs: Any
    queue: asyncio.subprocess.Process
    socket: Path

    async def submit(self, *after: str) -> str:
        request = jobs_pb2.SubmitJobRequest(recipe_yaml=RECIPE, after=after)
        return (await self.jobs.SubmitJob(request, timeout=QUITE_LONG_S)).job.id


@pytest_asyncio.fixture
async def queued(tmp_path: Path) -> AsyncIterator[Queued]:
    socket = tmp_path / "queue.sock"
    async with run_cache(socket) as queue, run_front(home=tmp_path, queue_url=f"unix://{socket}") as front:
        yield Queued(jobs_pb2_grpc.JobsStub(front.channel), queue, socket)


async def last_state(watch: Any) -> int:
    state = jobs_pb2.JOB_STATE_UNSPECIFIED
    while (reply := await watch.read()) is not grpc.aio.EOF:
        state = reply.job.state
    return state


async def test_300_watchers_leave_room_for_calls_and_the_janitor(queued: Queued) -> None:
    first = await queued.submit()
    second = await queued.submit(first)
    watches = [queued.jobs.WatchJob(jobs_pb2.WatchJobRequest(id=second)) for _ in range(WATCHERS)]
    assert {(await watch.read()).job.id for watch in watches} == {second}
    listed = await queued.jobs.ListJobs(jobs_pb2.ListJobsRequest(), timeout=QUITE_LONG_S)
    assert {job.id for job in listed.jobs} == {first, second}
    async with Redis.from_url(f"unix://{queued.socket}") as redis:
        # Calls, their threads, the watchers', and three of the janitor; one is this one.
        assert len(await redis.client_list()) <= CALLS + THREADS + 1 + 3 + 1

    # The janitor ends the second job, because the first is cancelled; all who watch hear of it.
    await queued.jobs.CancelJob(jobs_pb2.CancelJobRequest(id=first), timeout=QUITE_LONG_S)
    async with asyncio.timeout(PATIENCE_S):
        ends = [await last_state(watch) for watch in watches]
    assert set(ends) == {jobs_pb2.JOB_STATE_CANCELLED}


async def test_a_watch_tells_of_every_event_at_once(queued: Queued) -> None:
    job_id = await queued.submit()
    watch = queued.jobs.WatchJob(jobs_pb2.WatchJobRequest(id=job_id))
    assert [event.message for event in (await watch.read()).events] == ["Queued."]
    await queued.jobs.CancelJob(jobs_pb2.CancelJobRequest(id=job_id))
    last = await watch.read()
    assert [event.message for event in last.events] == ["Cancelled before it started."]
    assert last.job.state == jobs_pb2.JOB_STATE_CANCELLED
    assert await watch.read() is grpc.aio.EOF


def calls_of(jobs: Any, job_id: str) -> list[Any]:
    """A call of every method that needs the queue."""
    of = {"id": job_id}
    return [
        jobs.SubmitJob(jobs_pb2.SubmitJobRequest(recipe_yaml=RECIPE), timeout=QUITE_LONG_S),
        jobs.GetJob(jobs_pb2.GetJobRequest(**of), timeout=QUITE_LONG_S),
        jobs.ListJobs(jobs_pb2.ListJobsRequest(), timeout=QUITE_LONG_S),
        jobs.WatchJob(jobs_pb2.WatchJobRequest(**of), timeout=QUITE_LONG_S).read(),
        jobs.CancelJob(jobs_pb2.CancelJobRequest(**of), timeout=QUITE_LONG_S),
        jobs.RetryJob(jobs_pb2.RetryJobRequest(**of), timeout=QUITE_LONG_S),
        jobs.ReadJobLog(jobs_pb2.ReadJobLogRequest(**of), timeout=QUITE_LONG_S),
    ]


async def refusals(jobs: Any, job_id: str) -> None:
    """Every call says that the queue does not answer, before its deadline."""

    async def one(call: Any) -> None:
        with pytest.raises(grpc.aio.AioRpcError, match="the job queue does not answer") as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

    await asyncio.gather(*map(one, calls_of(jobs, job_id)))


async def test_every_call_says_that_the_queue_stalls_and_goes_on_after_it(queued: Queued) -> None:
    job_id = await queued.submit()
    queued.queue.send_signal(signal.SIGSTOP)
    try:
        await refusals(queued.jobs, job_id)
        planned = await queued.jobs.PlanJob(jobs_pb2.PlanJobRequest(recipe_yaml=RECIPE), timeout=QUITE_LONG_S)
        assert planned.job.name == "mine"
    finally:
        queued.queue.send_signal(signal.SIGCONT)
    assert await queued.submit() != job_id
    watch = queued.jobs.WatchJob(jobs_pb2.WatchJobRequest(id=job_id), timeout=QUITE_LONG_S)
    assert (await watch.read()).job.id == job_id


async def test_a_task_that_takes_its_end_for_an_error_of_redis_ends_all_the_same() -> None:
    """As the janitor's look does whose time is over in the moment in which the server stops."""

    async def for_ever() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(PATIENCE_S)
        await asyncio.sleep(PATIENCE_S)

    task = asyncio.create_task(for_ever())
    await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE_S / 2):
        await end_task(task)
    assert task.cancelled()


async def test_every_call_says_that_the_queue_is_gone(queued: Queued) -> None:
    job_id = await queued.submit()
    watch = queued.jobs.WatchJob(jobs_pb2.WatchJobRequest(id=job_id), timeout=QUITE_LONG_S)
    await watch.read()
    with contextlib.suppress(ProcessLookupError):
        queued.queue.kill()
    await queued.queue.wait()
    await refusals(queued.jobs, job_id)
    with pytest.raises(grpc.aio.AioRpcError, match="the job queue does not answer"):
        await watch.read()
    async with run_cache(queued.socket):  # It is back, and has forgotten the job: whoever watches hears so at once.
        watch = queued.jobs.WatchJob(jobs_pb2.WatchJobRequest(id=job_id), timeout=QUITE_LONG_S)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await watch.read()
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_home_that_holds_what_it_may_takes_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "MEASURED_EVERY_S", 0.0)
    socket, full = tmp_path / "queue.sock", tmp_path / "home" / "crosscoders" / "old"
    full.parent.mkdir(parents=True)
    full.write_bytes(bytes(2_000_001))
    async with (
        run_cache(socket),
        run_front(home=tmp_path / "home", queue_url=f"unix://{socket}", home_gb=0.002) as front,
    ):
        jobs: Any = jobs_pb2_grpc.JobsStub(front.channel)
        system: Any = system_pb2_grpc.SystemStub(front.channel)
        with pytest.raises(grpc.aio.AioRpcError, match=r"holds 0\.002 GB of the 0\.002 GB that it may") as caught:
            await jobs.SubmitJob(jobs_pb2.SubmitJobRequest(recipe_yaml=RECIPE))
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert not (await jobs.ListJobs(jobs_pb2.ListJobsRequest())).jobs
        found = await system.GetCapabilities(system_pb2.GetCapabilitiesRequest())
        assert found.home_max_bytes == 2_000_000 < found.home_bytes
        full.unlink()
        await jobs.SubmitJob(jobs_pb2.SubmitJobRequest(recipe_yaml=RECIPE))


async def test_more_jobs_than_the_server_takes_are_refused_and_change_nothing(tmp_path: Path) -> None:
    socket = tmp_path / "queue.sock"
    async with (
        run_cache(socket),
        run_front(home=tmp_path, queue_url=f"unix://{socket}", max_open_jobs=2) as front,
    ):
        jobs: Any = jobs_pb2_grpc.JobsStub(front.channel)
        same = jobs_pb2.SubmitJobRequest(recipe_yaml=RECIPE, idempotency_key="same")
        first = (await jobs.SubmitJob(same)).job.id
        second = (await jobs.SubmitJob(jobs_pb2.SubmitJobRequest(recipe_yaml=RECIPE))).job.id
        with pytest.raises(grpc.aio.AioRpcError, match="2 jobs wait or run, which is the most") as caught:
            await jobs.SubmitJob(jobs_pb2.SubmitJobRequest(recipe_yaml=RECIPE, idempotency_key="third"))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await jobs.SubmitJob(same)).job.id == first
        listed = await jobs.ListJobs(jobs_pb2.ListJobsRequest())
        assert {job.id for job in listed.jobs} == {first, second}
