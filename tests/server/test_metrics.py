import asyncio
import math
import urllib.request
from pathlib import Path

import grpc.aio
import pytest
import redis
from fixtures_ports import free_port
from fixtures_server import run_cache, run_front, run_worker
from metrics_table import documented, exposed

from crosscope_proto import keys
from crosscope_proto.ages import Ages
from crosscope_proto.v1 import jobs_pb2, jobs_pb2_grpc, latents_pb2, prompts_pb2, system_pb2, system_pb2_grpc, types_pb2
from crosscope_server.metrics import MAX_CALLERS, Metrics, Traffic
from crosscope_server.refusals import Reason, Refused

OF_SERVER = {name: each for name, each in documented().items() if each.processes.startswith(("server", "all"))}


async def read(port: int) -> str:
    def get() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
            return reply.read().decode()

    return await asyncio.to_thread(get)


@pytest.mark.asyncio
@pytest.mark.usefixtures("patient")
async def test_the_table_says_what_the_server_exposes(planted_home, tmp_path: Path) -> None:
    port, queue = free_port(), f"unix://{tmp_path}/queue"
    settings = {"home": planted_home[0], "metrics_port": port, "queue_url": queue, "cache_url": queue}
    (tmp_path / "shared").mkdir()
    settings |= {"store": (tmp_path / "shared").as_uri()}
    async with (
        run_cache(tmp_path / "queue"),
        run_worker(tmp_path) as running,
        run_front(**settings, workers=running.target) as front,
    ):
        await front.prompts_serve()
        prompt = types_pb2.Prompt(text="a b")
        await front.prompts.Encode(prompts_pb2.EncodeRequest(crosscoder="demo", prompt=prompt))
        with pytest.raises(grpc.aio.AioRpcError):
            await front.latents.ListLatents(latents_pb2.ListLatentsRequest(crosscoder="nobody"))
        jobs = jobs_pb2_grpc.JobsStub(front.channel)
        recipe = "kind: demo-pair\nname: one\n"
        first = (await jobs.SubmitJob(jobs_pb2.SubmitJobRequest(recipe_yaml=recipe))).job.id
        await jobs.SubmitJob(jobs_pb2.SubmitJobRequest(recipe_yaml=recipe))
        client = redis.Redis(unix_socket_path=str(tmp_path / "queue"))
        client.hset(keys.job_key(first), mapping={"claim": "mine", "total_fraction": "0.25"})
        client.hset(keys.metrics_key(first), "tokens_per_second", "512.5")
        client.close()
        await asyncio.sleep(0)
        page = await read(port)
        found = await system_pb2_grpc.SystemStub(front.channel).GetCapabilities(system_pb2.GetCapabilitiesRequest())
    assert (found.traffic.prompts_under_way, found.traffic.max_prompts_under_way) == (0, 128)
    assert exposed(page) == {name: (each.kind, each.labels) for name, each in OF_SERVER.items()}
    for line in (
        'crosscope_calls_total{caller="-",method="/crosscope.v1.Latents/ListLatents",status="NOT_FOUND"} 1.0',
        'crosscope_errors_total{reason="NOT_FOUND"} 1.0',
        'crosscope_worker_call_seconds_count{method="Encode"} 1.0',
        'crosscope_cache_total{outcome="miss"} 1.0',
        'crosscope_workers{state="alive"} 1.0',
        'crosscope_jobs{state="queued"} 1.0',
        'crosscope_jobs{state="running"} 1.0',
        f'crosscope_job_progress_ratio{{job="{first}",kind="demo-pair",name="one"}} 0.25',
        f'crosscope_job_tokens_per_second{{job="{first}",kind="demo-pair",name="one"}} 512.5',
        "crosscope_queue_up 1.0",
        'crosscope_door_calls{caller="-"} 0.0',
        "crosscope_door_limit 128.0",
        'crosscope_refused_total{reason="door_full"} 0.0',
        'crosscope_moved_calls_total{why="gone"} 0.0',
    ):
        assert line in page.splitlines(), line


@pytest.mark.asyncio
async def test_a_queue_that_is_away_is_said_and_hides_nothing_else(tmp_path: Path) -> None:
    port = free_port()
    async with run_front(home=tmp_path, metrics_port=port, queue_url=f"unix://{tmp_path}/nobody"):
        page = await read(port)
    assert "crosscope_queue_up 0.0" in page
    assert "crosscope_jobs{" not in page
    assert "crosscope_calls_in_flight 0.0" in page


def test_a_caller_is_a_tokens_name_and_there_are_only_so_many() -> None:
    metrics = Metrics()
    names = ["nobody", "ipv4:127.0.0.1:40001", "ipv6:[::1]:2", "unix:", *(f"lab{i}" for i in range(MAX_CALLERS + 3))]
    for name in names:
        metrics.began()
        metrics.called("/m", "OK", name, 0.1)
    found = {
        sample.labels["caller"]: sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "crosscope_calls_total"
    }
    assert len(found) == MAX_CALLERS + 2
    assert (found["-"], found["lab0"], found["others"]) == (4, 1, 3)


def test_refusals_are_counted_for_ever_and_for_ten_seconds() -> None:
    now = [0.0]
    refused = Refused(clock=lambda: now[0])
    refused.add(Reason.DOOR_FULL)
    now[0] = 6.0
    refused.add(Reason.DOOR_FULL)
    refused.add(Reason.LATE)
    assert refused.lately() == refused == {"door_full": 2, "late": 1}
    now[0] = 11.0
    assert refused.lately() == {"door_full": 1, "late": 1}
    assert refused == {"door_full": 2, "late": 1}


def test_the_more_are_refused_the_longer_they_are_asked_to_stay_away() -> None:
    now = [100.2]
    refused = Refused(clock=lambda: now[0])
    assert refused.pace_s() == 0
    for _ in range(100):
        refused.add(Reason.BEHIND)
    assert refused.pace_s() == 2  # 100 of them, and 50 may come back in a second
    now[0] = 101.1
    refused.add(Reason.DOOR_FULL)
    assert refused.pace_s() == 2
    now[0] = 102.0
    assert refused.pace_s() == 1 / 50
    now[0] = 104.0
    assert refused.pace_s() == 0
    for _ in range(1000):
        refused.add(Reason.BEHIND)
    assert refused.pace_s() == 5


def test_traffic_of_the_last_ten_seconds() -> None:
    now = [0.0]
    metrics = Metrics(clock=lambda: now[0])

    def call(status: str, seconds: float, *, is_stream: bool = False) -> None:
        metrics.began()
        metrics.called("/m", status, "nobody", seconds, is_stream=is_stream)

    call("OK", 5.0)  # too old in the end
    now[0] = 11.0
    for i in range(1, 11):
        call("OK", i / 1000)
    call("OK", 60.0, is_stream=True)
    call("UNAVAILABLE", 0.1)
    metrics.began()
    assert metrics.traffic() == Traffic(calls_per_s=1.2, errors_per_s=0.1, p50_ms=6.0, p99_ms=100.0, in_flight=1)
    now[0] = 30.0
    assert metrics.traffic() == Traffic(0.0, 0.0, 0.0, 0.0, 1)


def test_the_age_of_the_loop_grows_until_it_beats() -> None:
    now = [0.0]
    ages = Ages(clock=lambda: now[0])
    metrics = Metrics(ages=ages)

    def age() -> float:
        value = metrics.registry.get_sample_value(
            "crosscope_beat_age_seconds", {"process": "server", "part": "event loop"}
        )
        return math.nan if value is None else value

    assert age() == 0
    ages.beat("event loop")
    now[0] = 7.0
    assert age() == 7
    ages.beat("event loop")
    assert age() == 0
