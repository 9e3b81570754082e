"""The janitor repairs what a death between two steps has left."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio
import redis
from redis.asyncio import Redis as AsyncRedis

from crosscope_proto import job_record, keys
from crosscope_server.jobs.janitor import Janitor
from crosscope_server.jobs.queue import JobQueue
from crosscope_server.jobs.records import JobRecord, JobRecords, JobState
from tests.jobs.rig import Rig

VALUES = {"kind": "demo-pair", "name": "one", "recipe": "kind: demo-pair"}


@dataclass
class Office:
    """A queue, its records, and janitors without patience."""

    redis: redis.Redis
    records: JobRecords
    queue: JobQueue

    def janitor(self, grace_s: float = 0) -> Janitor:
        return Janitor(self.records, self.queue, interval_s=60, grace_s=grace_s, settle_s=0)

    async def submit(self, job_id: str, *after: str) -> None:
        assert await self.records.submit(job_id, VALUES, after, "", max_open=1000) == job_id

    def claim(self, job_id: str, claim: str, lease_s: float) -> None:
        """Takes, leases and claims a job, as a worker does."""
        self.redis.lrem(f"rq:queue:{keys.JOB_QUEUE}", 0, job_id)
        registry = f"rq:wip:{keys.JOB_QUEUE}"
        self.redis.zremrangebyscore(registry, "-inf", "+inf")
        self.redis.zadd(registry, {f"{job_id}:execution": time.time() + lease_s})
        names = [keys.job_key(job_id), keys.events_key(job_id)]
        assert self.redis.eval(job_record.CLAIM, 2, *names, claim, repr(time.time())) == b"ok"

    async def get(self, job_id: str) -> JobRecord:
        record = await self.records.get(job_id)
        assert record is not None
        return record


@pytest_asyncio.fixture
async def office(bare_rig: Rig) -> AsyncIterator[Office]:
    bare_rig.start_redis()
    path = str(bare_rig.socket)
    async with AsyncRedis(unix_socket_path=path, decode_responses=True) as records:
        with redis.Redis(unix_socket_path=path) as queue:
            yield Office(queue, JobRecords(records), JobQueue(queue))


async def look(janitor: Janitor, times: int = 1) -> None:
    for _ in range(times):
        await janitor.look()


async def test_a_job_that_never_reached_the_queue_gets_there(office: Office) -> None:
    await office.submit("a")
    await look(office.janitor(), times=2)
    assert office.queue.waiting() == ["a"]


async def test_a_job_in_the_queue_is_left_alone(office: Office) -> None:
    for job_id in "ab":
        await office.submit(job_id)
        office.queue.enqueue(job_id)
    await look(office.janitor(), times=3)
    assert office.queue.waiting() == ["a", "b"]


async def test_a_job_whose_lease_lapsed_goes_to_the_front(office: Office) -> None:
    await office.submit("a")
    await office.submit("b")
    office.queue.enqueue("b")
    office.claim("a", "first", lease_s=-1)
    await look(office.janitor(), times=2)
    assert office.queue.waiting() == ["a", "b"]
    record = await office.get("a")
    assert (record.state, record.attempt) == (JobState.QUEUED, 1)
    assert record.message == "Its worker died or stood still; it will be resumed."


async def test_a_job_with_a_lease_goes_on(office: Office) -> None:
    await office.submit("a")
    office.claim("a", "first", lease_s=10)
    await look(office.janitor(), times=3)
    assert (await office.get("a")).claim == "first"
    assert office.queue.waiting() == []


async def test_workers_get_time_to_renew_leases_after_a_start_of_redis(office: Office) -> None:
    await office.submit("a")
    office.claim("a", "first", lease_s=-1)
    await look(office.janitor(grace_s=30), times=3)
    assert (await office.get("a")).claim == "first"


async def look_at_stopped_redis(office: Office, janitor: Janitor, seconds: float) -> None:
    """A look during which Redis stands still for so many seconds, at least."""
    pid = office.redis.info("server")["process_id"]
    os.kill(pid, signal.SIGSTOP)
    try:
        looking = asyncio.create_task(janitor.look())
        await asyncio.sleep(0)  # it has begun, and waits for Redis
        await asyncio.sleep(seconds)
    finally:
        os.kill(pid, signal.SIGCONT)
    await looking


async def test_a_queue_that_stalls_during_a_look_is_no_death(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crosscope_server.jobs.janitor.STALL_S", 0.4)
    await office.submit("a")
    office.claim("a", "first", lease_s=0.3)
    janitor = office.janitor(grace_s=0.5)
    await look(janitor)
    await asyncio.sleep(0.6)  # the grace after its own start
    await look_at_stopped_redis(office, janitor, 0.8)  # it finds a lease that has lapsed meanwhile
    assert (await office.get("a")).claim == "first"
    await asyncio.sleep(0.6)
    await look(janitor)
    record = await office.get("a")
    assert (record.state, record.message) == (
        JobState.QUEUED,
        "The job queue stood still and its worker lost touch; it will be resumed.",
    )
    assert office.redis.hget(keys.job_key("a"), "crashes") is None


async def test_a_stall_between_two_looks_is_no_death(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after looks that Redis did not answer, or while the server itself was stopped."""
    monkeypatch.setattr("crosscope_server.jobs.janitor.STALL_S", 0.2)
    await office.submit("a")
    office.claim("a", "first", lease_s=0.3)
    janitor = Janitor(office.records, office.queue, interval_s=0, grace_s=0.5, settle_s=0)
    await look(janitor)
    await asyncio.sleep(0.7)
    await look(janitor)
    assert (await office.get("a")).claim == "first"


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
async def test_a_clock_that_jumps_is_no_death(office: Office, monkeypatch: pytest.MonkeyPatch, jump_s: float) -> None:
    await office.submit("a")
    office.claim("a", "first", lease_s=10)
    janitor = office.janitor(grace_s=0.5)
    await look(janitor)
    await asyncio.sleep(0.6)
    real = time.time
    monkeypatch.setattr("time.time", lambda: real() + jump_s)
    await look(janitor)
    assert (await office.get("a")).claim == "first"
    office.redis.zadd(f"rq:wip:{keys.JOB_QUEUE}", {"a:execution": time.time() + 10})  # the worker renews its lease
    await asyncio.sleep(0.6)
    await look(janitor)
    assert (await office.get("a")).claim == "first"


async def test_the_third_death_is_the_last(office: Office) -> None:
    await office.submit("a")
    for attempt in ("first", "second", "third"):
        assert (await office.get("a")).state is JobState.QUEUED
        office.claim("a", attempt, lease_s=-1)
        await look(office.janitor(), times=2)
    record = await office.get("a")
    assert (record.state, record.attempt) == (JobState.FAILED, 3)
    assert record.message == "Given up after its process or worker died 3 times; see the worker's log."
    assert office.queue.waiting() == []


async def test_a_dead_job_that_was_to_stop_is_cancelled(office: Office) -> None:
    await office.submit("a")
    office.claim("a", "first", lease_s=-1)
    assert await office.records.cancel("a") == "running"
    await look(office.janitor(), times=2)
    assert (await office.get("a")).state is JobState.CANCELLED


async def test_a_job_waits_for_the_one_before_it_even_if_rq_forgot(office: Office) -> None:
    await office.submit("a")
    await office.submit("b", "a")
    office.queue.enqueue("a")
    janitor = office.janitor()
    await look(janitor, times=3)
    assert office.queue.waiting() == ["a"]
    office.queue.remove("a")
    office.claim("a", "first", lease_s=10)
    names = [keys.job_key("a"), keys.events_key("a")]
    office.redis.eval(job_record.FINISH, 2, *names, "first", repr(time.time()), "succeeded", "Done.", "")
    await look(janitor, times=2)
    assert office.queue.waiting() == ["b"]


async def test_an_ended_job_is_put_away_after_its_lease(office: Office) -> None:
    await office.submit("a")
    office.claim("a", "first", lease_s=10)
    names = [keys.job_key("a"), keys.events_key("a")]
    office.redis.eval(job_record.FINISH, 2, *names, "first", repr(time.time()), "failed", "No.", "")
    await look(office.janitor(), times=2)
    assert await office.records.open_ids() == ["a"]
    office.redis.delete(f"rq:wip:{keys.JOB_QUEUE}")
    await look(office.janitor(), times=2)
    assert await office.records.open_ids() == []
    assert (await office.get("a")).message == "No."


async def test_a_second_claim_is_refused(office: Office) -> None:
    await office.submit("a")
    office.claim("a", "first", lease_s=10)
    names = [keys.job_key("a"), keys.events_key("a")]
    assert office.redis.eval(job_record.CLAIM, 2, *names, "second", "1") == b"taken"
    assert office.redis.eval(job_record.CLAIM, 2, *names, "first", "2") == b"ok"  # the reply was lost, it asks again
    assert (await office.get("a")).claim == "first"


async def test_five_hundred_jobs_keep_their_order(office: Office) -> None:
    ids = [f"job-{number:03}" for number in range(500)]
    for job_id in ids:
        await office.submit(job_id)
    for job_id in ids[:-1]:
        office.queue.enqueue(job_id)
    await look(office.janitor(), times=2)
    assert office.queue.waiting() == [ids[-1], *ids[:-1]]  # what was lost goes to the front
