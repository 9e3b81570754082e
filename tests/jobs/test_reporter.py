"""The reports of a job reach its record, whatever Redis does meanwhile."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
import redis
from fixtures_waiting import PATIENCE_S, until
from redis.backoff import NoBackoff
from redis.retry import Retry

from crosscope_proto import job_record, keys
from crosscope_proto.beats import Beats
from crosscope_worker.jobs.claim import Claim, QueueAway
from crosscope_worker.jobs.journal import Journal
from crosscope_worker.jobs.reporter import JobPulse, Reporter
from crosscope_worker.jobs.stages import Shares
from crosscope_worker.work import Cancelled, LostClaim
from tests.jobs.rig import Rig, kill

JOB = "job-1"
STILL = JobPulse(Beats(None), 60, 60)


@pytest.fixture
def queue(bare_rig: Rig) -> Iterator[redis.Redis]:
    """A queue with one job that attempt "mine" runs."""
    bare_rig.start_redis()
    socket, no_retry = str(bare_rig.socket), Retry(NoBackoff(), 0)
    with redis.Redis(unix_socket_path=socket, decode_responses=True, retry=no_retry) as client:
        client.hset(keys.job_key(JOB), mapping={"claim": "mine", "attempt": "1", "recipe": "kind: x"})
        yield client


@pytest.fixture
def report(queue: redis.Redis, tmp_path: Path) -> Iterator[Reporter]:
    reporter = Reporter(Claim(queue, JOB, "mine"), Journal(tmp_path, 1), STILL, lambda: False)
    yield reporter
    reporter.close(wait_s=0)


def events(queue: redis.Redis) -> list[dict[str, str]]:
    entries = cast("list[tuple[str, dict[str, str]]]", queue.xrange(keys.events_key(JOB)))
    return [fields for _, fields in entries]


def raises(error: type[Exception], call: Callable[[], None]) -> Callable[[], bool]:
    def happened() -> bool:
        try:
            call()
        except error:
            return True
        return False

    return happened


def test_figures_and_stages_all_arrive_and_the_rest_is_thinned(queue: redis.Redis, report: Reporter) -> None:
    for step in range(2000):
        report("train", step / 2000, step=step)
        if step % 500 == 0:
            report("train", step / 2000, step=step, metrics={"loss": step})
    report("publish", 1.0, "Nearly there.")
    report.close(wait_s=PATIENCE_S)
    arrived = events(queue)
    assert [json.loads(event["metrics"])["loss"] for event in arrived if event["metrics"] != "{}"] == [
        0,
        500,
        1000,
        1500,
    ]
    assert arrived[0]["stage"] == "train"
    assert arrived[-1]["stage"] == "publish"
    assert len(arrived) < 50
    record = queue.hgetall(keys.job_key(JOB))
    assert (record["stage"], record["fraction"], record["message"]) == ("publish", "1", "Nearly there.")
    assert queue.hgetall(keys.metrics_key(JOB)) == {"loss": "1500.0"}
    assert set(queue.hgetall(keys.stages_key(JOB))) == {"train", "publish"}


def test_nothing_is_lost_while_redis_is_away(bare_rig: Rig, tmp_path: Path) -> None:
    process = bare_rig.start_redis()
    with redis.Redis(unix_socket_path=str(bare_rig.socket), decode_responses=True) as client:
        client.hset(keys.job_key(JOB), "claim", "mine")
        report = Reporter(Claim(client, JOB, "mine"), Journal(tmp_path, 1), STILL, lambda: False)
        report("train", 0, metrics={"loss": 0})
        until(lambda: len(events(client)) == 1)
        kill(process)
        for step in range(1, 1200):
            report("train", step / 1200, step=step, metrics={"loss": step})
        bare_rig.start_redis()
        report.close(wait_s=PATIENCE_S)
        seen = [json.loads(event["metrics"])["loss"] for event in events(client)]
    assert seen == list(range(1200))


def test_a_message_stays_until_the_next_one_or_the_next_stage(queue: redis.Redis, report: Reporter) -> None:
    def message_is(expected: str) -> Callable[[], bool]:
        return lambda: queue.hget(keys.job_key(JOB), "message") == expected

    report("train", 0, "Filling the buffer.")
    until(message_is("Filling the buffer."))
    report("train", 0.5, metrics={"loss": 1})
    until(lambda: len(events(queue)) == 2)
    assert message_is("Filling the buffer.")()
    report("publish", 0)
    until(message_is(""))


def test_the_whole_jobs_share_reaches_the_record(queue: redis.Redis, tmp_path: Path) -> None:
    shares = Shares((("load", 1.0), ("train", 3.0)), done=0.1)
    report = Reporter(Claim(queue, JOB, "mine"), Journal(tmp_path, 1), STILL, lambda: False, shares)
    report("load", 0.2)
    until(lambda: queue.hget(keys.job_key(JOB), "total_fraction") == "0.1")
    report("train", 0.5)
    report.close(wait_s=PATIENCE_S)
    assert queue.hget(keys.job_key(JOB), "total_fraction") == "0.625"


def test_cancel_reaches_the_job(queue: redis.Redis, report: Reporter) -> None:
    report("train", 0)
    queue.hset(keys.job_key(JOB), "cancel_at", "1")
    until(raises(Cancelled, lambda: report("train", 0.5)))


def test_a_lost_claim_reaches_the_job_and_silences_it(queue: redis.Redis, report: Reporter) -> None:
    report("train", 0)
    until(lambda: len(events(queue)) == 1)
    queue.hset(keys.job_key(JOB), "claim", "another's")
    until(raises(LostClaim, lambda: report("train", 0.5)))
    report.close(wait_s=1)
    assert len(events(queue)) == 1


def test_only_the_holder_ends_a_job(queue: redis.Redis) -> None:
    with pytest.raises(LostClaim):
        Claim(queue, JOB, "another's").finish(job_record.SUCCEEDED, "Done.", "v1", 0, lambda: False)
    assert queue.hget(keys.job_key(JOB), "end") is None
    Claim(queue, JOB, "mine").finish(job_record.SUCCEEDED, "Done.", "v1", 0, lambda: False)
    record = queue.hgetall(keys.job_key(JOB))
    assert (record["end"], record["version_id"], record["message"]) == ("succeeded", "v1", "Done.")
    assert "claim" not in record
    with pytest.raises(LostClaim):
        Claim(queue, JOB, "mine").finish(job_record.FAILED, "No.", "", 0, lambda: False)


def test_the_fence_waits_for_redis_only_so_long(bare_rig: Rig, queue: redis.Redis) -> None:
    claim = Claim(queue, JOB, "mine")
    assert claim.standing(0, lambda: False).holds
    queue.shutdown(nosave=True)
    with pytest.raises(QueueAway, match=r"has not answered for \d+ s: Error 2"):
        claim.standing(0.6, lambda: False)


def test_an_attempt_that_lost_its_job_in_the_middle_of_a_step_is_ended(
    queue: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crosscope_worker.jobs.reporter.LOST_GRACE_S", 0.3)
    ended = threading.Event()
    claim, journal = Claim(queue, JOB, "mine"), Journal(tmp_path, 1)
    report = Reporter(claim, journal, STILL, lambda: False, give_up=ended.set)
    report("train", 0.1)
    assert not ended.wait(0.6)
    queue.hset(keys.job_key(JOB), "claim", "another")
    assert ended.wait(PATIENCE_S)
    report.close(wait_s=0)


def test_a_thread_beats_for_the_work_only_while_it_gets_on(queue: redis.Redis, tmp_path: Path) -> None:
    """As `loading` reports each second, whether or not anything comes from the disk."""
    reading, writing = os.pipe()
    report = Reporter(Claim(queue, JOB, "mine"), Journal(tmp_path, 1), JobPulse(Beats(writing), 60, 0), lambda: False)

    def beats(*shares: float) -> int:
        """How often the work beat while a thread reported these shares."""
        for share in shares:
            thread = threading.Thread(target=report, args=("load", share))
            thread.start()
            thread.join()
        os.write(writing, b"end 0\n")
        found = b""
        while not found.endswith(b"end 0\n"):
            found += os.read(reading, 65536)
        return found.count(b"work")

    report("load", 0.0)
    assert beats() == 1
    assert beats(0.1, 0.2, 0.3) == 3
    assert beats(0.3, 0.3) == 0
    report("load", 0.3)
    assert beats(0.4) == 2
    report.close(wait_s=0)
    for end in (reading, writing):
        os.close(end)
