"""GetCapabilities: what the server says of itself, its workers, queue and cache, also while they are away."""

import asyncio
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import redis
from fixtures_server import CountingWorker, Front, run_cache, run_front, run_worker

from crosscope_proto import __version__, keys
from crosscope_proto.v1 import jobs_pb2, jobs_pb2_grpc, system_pb2, system_pb2_grpc
from crosscope_proto.worker.v1 import inference_pb2

DEVICES = [system_pb2.DeviceMemory(name=f"cuda:{index}", used_bytes=index, limit_bytes=9) for index in (0, 1)]
UP, AWAY, ABSENT = system_pb2.PART_STATE_UP, system_pb2.PART_STATE_AWAY, system_pb2.PART_STATE_ABSENT


class Describing(CountingWorker):
    """Says how it stands, unless it hangs."""

    def __init__(self) -> None:
        super().__init__()
        self.hangs = False

    async def Describe(self, request: Any, context: Any) -> inference_pb2.DescribeResponse:
        if self.hangs:
            await asyncio.Event().wait()
        return inference_pb2.DescribeResponse(
            version="9.9", device="cuda:1", max_prompt_tokens=777, device_busy_s=1.5, devices=DEVICES
        )


async def capabilities(front: Front, version: str = "0.1.0") -> system_pb2.GetCapabilitiesResponse:
    request = system_pb2.GetCapabilitiesRequest(client_version=version)
    return await system_pb2_grpc.SystemStub(front.channel).GetCapabilities(request)


@pytest.mark.asyncio
async def test_workers_queue_jobs_and_cache_as_they_stand(planted_home, tmp_path: Path) -> None:
    queue = f"unix://{tmp_path}/queue"
    async with run_cache(tmp_path / "queue") as process, run_worker(tmp_path, Describing()) as running:
        settings = {"home": planted_home[0], "queue_url": queue, "cache_url": queue}
        async with run_front(**settings, workers=f"{running.target},unix:{tmp_path}/nobody") as front:
            await front.prompts_serve()
            jobs = jobs_pb2_grpc.JobsStub(front.channel)
            request = jobs_pb2.SubmitJobRequest(recipe_yaml="kind: demo-pair\nname: one\n")
            first = (await jobs.SubmitJob(request)).job.id
            await jobs.SubmitJob(request)
            client = redis.Redis(unix_socket_path=str(tmp_path / "queue"))
            client.hset(keys.job_key(first), mapping={"claim": "mine", "total_fraction": "0.25", "stage": "train"})
            client.close()
            found = await capabilities(front)
            process.kill()
            await process.wait()
            later = await capabilities(front)
    assert (found.version, found.limits.prompt_tokens) == (__version__, 777)
    assert set(found.features) == {"latents", "prompts", "jobs", "cache", "reflection"}
    alive, nobody = found.inference_workers
    assert (alive.state, alive.version, alive.device, alive.device_busy_s) == (UP, "9.9", "cuda:1", 1.5)
    assert list(alive.devices) == DEVICES
    assert (nobody.state, nobody.says_serving) == (AWAY, False)
    assert {state: number for state, number in found.queue.jobs.items() if number} == {"queued": 1, "running": 1}
    assert [(job.id, job.stage, job.done) for job in found.queue.running] == [(first, "train", 0.25)]
    assert [(each.name, each.pair) for each in found.crosscoders] == [("demo", planted_home[1].pair.name)]
    assert later.queue.state == AWAY
    assert "jobs" not in later.features


@pytest.mark.asyncio
async def test_a_worker_that_hangs_is_away_although_it_says_that_it_serves(planted_home, tmp_path: Path) -> None:
    worker = Describing()
    async with (
        run_worker(tmp_path, worker) as running,
        run_front(home=planted_home[0], workers=running.target) as front,
    ):
        await front.prompts_serve()
        worker.hangs = True
        (hanging,) = (await capabilities(front)).inference_workers
        worker.hangs = False
        (well,) = (await capabilities(front)).inference_workers
    assert (hanging.state, hanging.says_serving) == (AWAY, True)
    assert (well.state, well.says_serving) == (UP, True)


@pytest.mark.asyncio
async def test_a_worker_of_an_older_version_answers_without_one(online: Front) -> None:
    (worker,) = (await capabilities(online)).inference_workers
    assert (worker.state, worker.version) == (UP, "")


@pytest.mark.asyncio
async def test_a_version_is_a_version(front: Front) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="client_version"):
        await capabilities(front, "a b")
    found = await capabilities(front, "")
    assert (found.queue.state, found.cache, list(found.inference_workers)) == (ABSENT, ABSENT, [])
    assert (found.caller.name, set(found.caller.roles)) == ("", {"read", "run", "submit", "admin"})
