"""What a token's limits allow: tokens of prompts, waiting jobs, device time; and whose job may be changed by whom."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from fixtures_artefacts import write_crosscoder
from fixtures_server import Front, details_of, run_cache, run_front, run_worker
from google.rpc import error_details_pb2
from redis.asyncio import Redis

from crosscope_proto import access, job_record, keys
from crosscope_proto.access import TokenEntry
from crosscope_proto.recipe import CrosscoderRecipe, parse_recipe
from crosscope_proto.v1 import jobs_pb2, jobs_pb2_grpc, prompts_pb2
from crosscope_server.budgets import Budgets
from crosscope_server.callers import Caller, Limits, set_calling
from crosscope_server.errors import Overloaded
from crosscope_server.jobs.estimate import Target
from crosscope_server.jobs.owners import num_devices
from crosscope_server.refusals import Refused

ROOT = Path(__file__).parents[2]
EXHAUSTED, DENIED = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.PERMISSION_DENIED


def write(home: Path, **limits: dict[str, int]) -> None:
    """Tokens with the roles run and submit, whose secrets are their names; and the admin root."""
    roles = access.with_read(["run", "submit"])
    entries = [TokenEntry(name, access.digest(name), roles, 0.0, None, of) for name, of in limits.items()]
    entries.append(TokenEntry("root", access.digest("root"), access.ROLES, 0.0))
    (home / access.FOLDER).mkdir(mode=0o700)
    (home / access.TOKENS).write_text(access.dump_tokens(entries))


def bearer(token: str) -> Any:
    return (("authorization", f"Bearer {token}"),)


async def failure(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def retry_after_s(error: grpc.aio.AioRpcError) -> float:
    retry = error_details_pb2.RetryInfo()
    assert any(detail.Unpack(retry) for detail in details_of(error)[0].details)
    return retry.retry_delay.ToMilliseconds() / 1000


async def test_a_bucket_fills_evenly_and_is_refused_only_below_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0

    class Loop:
        def time(self) -> float:
            return now

    monkeypatch.setattr("crosscope_server.budgets.asyncio.get_running_loop", Loop)
    refused = Refused()
    budgets = Budgets(refused)
    set_calling(Caller("ann", limits=Limits(prompt_tokens_per_minute=60)))
    budgets.check()
    budgets.charge(60)
    budgets.check()  # at zero: allowed
    budgets.charge(30)
    with pytest.raises(Overloaded, match="ask again in 30 s") as caught:
        budgets.check()
    assert caught.value.retry_after_s == pytest.approx(30)
    now += 29
    with pytest.raises(Overloaded):
        budgets.check()
    now += 1.01
    budgets.check()
    now += 1000
    budgets.charge(61)  # it never holds more than a minute's
    with pytest.raises(Overloaded):
        budgets.check()
    set_calling(Caller("bob"))
    budgets.charge(10**9)
    budgets.check()
    assert refused == {"prompt_tokens": 3}


async def test_tokens_of_prompts_are_charged_to_who_sent_them(tmp_path: Path) -> None:
    write_crosscoder(tmp_path, "demo", 100)
    write(tmp_path, ann={"prompt_tokens_per_minute": 5}, bob={})
    request = prompts_pb2.EncodeRequest(crosscoder="demo")
    request.prompt.text = "a b c d e f g"  # eight tokens
    async with (
        run_worker(tmp_path) as worker,
        run_front(home=tmp_path, allow_anyone=False, workers=worker.target) as front,
    ):
        await front.prompts_serve()
        await front.prompts.Encode(request, metadata=bearer("ann"))
        refused = await failure(front.prompts.Encode(request, metadata=bearer("ann")))
        assert refused.code() is EXHAUSTED
        assert "5 tokens of prompts read a minute" in (refused.details() or "")
        assert 0 < retry_after_s(refused) <= 36
        items = [prompts_pb2.EncodeStreamRequest(sequence=7, request=request)]
        (reply,) = [each async for each in front.prompts.EncodeStream(iter(items), metadata=bearer("ann"))]
        assert (reply.sequence, reply.error.code) == (7, EXHAUSTED.value[0])
        await front.prompts.Encode(request, metadata=bearer("bob"))


@dataclass
class Queue:
    """A server with a queue, and what a job worker does to it."""

    front: Front
    redis: Any
    jobs: Any

    async def submit(self, who: str, key: str = "") -> jobs_pb2.Job:
        request = jobs_pb2.SubmitJobRequest(recipe_yaml="kind: demo-pair\nname: mine\n", idempotency_key=key)
        return (await self.jobs.SubmitJob(request, metadata=bearer(who))).job

    async def script(self, script: str, job_id: str, *arguments: object) -> str:
        names = [keys.job_key(job_id), keys.events_key(job_id)]
        return cast("str", await self.redis.eval(script, len(names), *names, *map(str, arguments)))


@pytest_asyncio.fixture
async def queue(tmp_path: Path) -> AsyncIterator[Queue]:
    write(tmp_path, ann={"queued_jobs": 1, "gpu_seconds_per_day": 100}, bob={})
    socket = f"unix://{tmp_path}/queue.sock"
    async with (
        run_cache(tmp_path / "queue.sock"),
        run_front(home=tmp_path, allow_anyone=False, queue_url=socket) as front,
    ):
        redis = Redis.from_url(socket, decode_responses=True)
        yield Queue(front, redis, jobs_pb2_grpc.JobsStub(front.channel))
        await redis.aclose()


async def test_a_job_belongs_to_who_submitted_it(queue: Queue) -> None:
    job = await queue.submit("ann")
    assert job.owner == "ann"
    listed = await queue.jobs.ListJobs(jobs_pb2.ListJobsRequest(), metadata=bearer("bob"))
    assert [each.owner for each in listed.jobs] == ["ann"]
    cancel, retry = jobs_pb2.CancelJobRequest(id=job.id), jobs_pb2.RetryJobRequest(id=job.id)
    refused = await failure(queue.jobs.CancelJob(cancel, metadata=bearer("bob")))
    assert refused.code() is DENIED
    assert "belongs to 'ann'" in (refused.details() or "")
    await queue.jobs.CancelJob(cancel, metadata=bearer("ann"))
    assert (await failure(queue.jobs.RetryJob(retry, metadata=bearer("bob")))).code() is DENIED
    again = await queue.jobs.RetryJob(retry, metadata=bearer("root"))
    assert (again.job.state, again.job.owner) == (jobs_pb2.JOB_STATE_QUEUED, "ann")


async def test_no_more_jobs_wait_than_a_token_may_have(queue: Queue) -> None:
    first = await queue.submit("ann", key="k")
    refused = await failure(queue.submit("ann"))
    assert refused.code() is EXHAUSTED
    assert "1 jobs of the token 'ann' wait, and at most 1 may" in (refused.details() or "")
    assert (await queue.submit("ann", key="k")).id == first.id  # sent again, not another one
    await queue.submit("bob")
    assert await queue.script(job_record.CLAIM, first.id, "claim", time.time()) == "ok"
    await queue.submit("ann")


async def test_jobs_that_are_retried_at_once_are_counted_too(queue: Queue) -> None:
    ids = []
    for _ in range(6):
        job = await queue.submit("ann")
        await queue.jobs.CancelJob(jobs_pb2.CancelJobRequest(id=job.id), metadata=bearer("ann"))
        ids.append(job.id)

    async def again(job_id: str) -> grpc.StatusCode:
        try:
            await queue.jobs.RetryJob(jobs_pb2.RetryJobRequest(id=job_id), metadata=bearer("ann"))
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    codes = await asyncio.gather(*map(again, ids))
    assert (codes.count(grpc.StatusCode.OK), codes.count(EXHAUSTED)) == (1, 5)


async def test_device_time_counts_once_for_each_device(queue: Queue) -> None:
    job = await queue.submit("ann")
    await cast("Any", queue.redis.hset(keys.job_key(job.id), "num_devices", "4"))
    now = time.time()
    at = now if now % 86400 > 200 else now - now % 86400 + 201  # no midnight within this test
    assert await queue.script(job_record.CLAIM, job.id, "claim", at - 20) == "ok"
    assert await queue.script(job_record.RELEASE, job.id, "claim", at, "Again.", "", 3) == "ok"
    assert float(await queue.redis.get(keys.spent_key("ann", at))) == pytest.approx(80)
    assert await queue.script(job_record.CLAIM, job.id, "claim", time.time() - 10) == "ok"
    refused = await failure(queue.submit("ann"))
    assert "have taken 12" in (refused.details() or "")


@pytest.mark.parametrize(
    ("devices", "targets", "expected"),
    [
        ("8", [], 8),
        ("auto", [], 1),
        ("auto", [Target("H100", None, torch_device="cuda", num_devices=4)], 4),
        ("8", [Target("H100", None, torch_device="cuda", num_devices=4)], 8),
        ("8", [Target("cpu", None, torch_device="cpu")], 1),
    ],
)
def test_how_many_devices_a_job_holds(devices: str, targets: list[Target], expected: int) -> None:
    recipe = parse_recipe((ROOT / "recipes/demo.yaml").read_text())
    assert isinstance(recipe, CrosscoderRecipe)
    wanted = devices if devices == "auto" else int(devices)
    changed = replace(recipe, training=replace(recipe.training, devices=wanted))
    assert num_devices(changed, targets) == expected


async def test_device_time_is_charged_to_the_submitter_when_an_attempt_ends_however_it_ends(queue: Queue) -> None:
    now = time.time()
    at = now if now % 86400 > 200 else now - now % 86400 + 201  # no midnight within this test
    first = await queue.submit("ann")
    for start, script, rest in (
        (at - 90, job_record.RELEASE, ["Again.", "", 3]),
        (at - 50, job_record.FINISH, ["succeeded", "Done.", "v1"]),
    ):
        assert await queue.script(job_record.CLAIM, first.id, "claim", start) == "ok"
        assert await queue.script(script, first.id, "claim", start + 25.5, *rest) == "ok"
    assert float(await queue.redis.get(keys.spent_key("ann", at))) == pytest.approx(51)
    assert 0 < await queue.redis.ttl(keys.spent_key("ann", at)) <= keys.SPENT_TTL_S
    second = await queue.submit("ann")
    assert await queue.script(job_record.CLAIM, second.id, "claim", now - 60) == "ok"
    refused = await failure(queue.submit("ann"))
    assert refused.code() is EXHAUSTED
    assert "of its 100 GPU seconds of today" in (refused.details() or "")
    assert 0 < retry_after_s(refused) <= 86400
    await queue.submit("bob")
