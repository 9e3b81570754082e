import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
from fixtures_ports import free_port
from fixtures_server import details_of, run_cache, run_front
from fixtures_waiting import PATIENCE_S, happening, until
from google.protobuf import descriptor_pb2
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from crosscope_proto.access import OWN_TOKEN
from crosscope_proto.artefacts import PAIR_MANIFEST
from crosscope_proto.ending import WRONG_SETTINGS
from crosscope_proto.v1 import jobs_pb2, jobs_pb2_grpc, latents_pb2, latents_pb2_grpc, prompts_pb2, prompts_pb2_grpc
from crosscope_server.errors import InvalidRequest, Overloaded, Violation, status_of
from crosscope_server.settings import Settings

ROOT = Path(__file__).parents[2]
LIST = latents_pb2.ListCrosscodersRequest()


@pytest.mark.asyncio
async def test_health_by_service(front):
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    expected = {"": serving, "crosscope.v1.Latents": serving}
    expected |= {"crosscope.v1.Prompts": not_serving, "crosscope.v1.Jobs": not_serving}
    for service, status in expected.items():
        assert (await front.health.Check(health_pb2.HealthCheckRequest(service=service))).status == status


@pytest.mark.asyncio
async def test_jobs_without_a_queue_are_unavailable(front):
    with pytest.raises(grpc.aio.AioRpcError, match="CROSSCOPE_SERVER_QUEUE_URL") as caught:
        await jobs_pb2_grpc.JobsStub(front.channel).ListJobs(jobs_pb2.ListJobsRequest())
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.asyncio
async def test_a_broken_recipe_is_refused_by_field(front):
    request = jobs_pb2.SubmitJobRequest(recipe_yaml="kind: demo-pair\nname: x\nnum_layerz: 3\n", validate_only=True)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await jobs_pb2_grpc.JobsStub(front.channel).SubmitJob(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details_of(caught.value)[1][0][0] == "num_layerz"


@pytest.mark.asyncio
async def test_reflection_alone_is_enough_to_build_a_call(front):
    stub = reflection_pb2_grpc.ServerReflectionStub(front.channel)
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="crosscope.v1.Latents"),
    ]
    replies = [reply async for reply in stub.ServerReflectionInfo(iter(requests))]
    names = {service.name for service in replies[0].list_services_response.service}
    assert {"crosscope.v1.Latents", "crosscope.v1.Prompts", "crosscope.v1.Jobs", "grpc.health.v1.Health"} <= names
    files = [
        descriptor_pb2.FileDescriptorProto.FromString(data)
        for data in replies[1].file_descriptor_response.file_descriptor_proto
    ]
    assert "Latents" in {service.name for file in files for service in file.service}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"listen": "127.0.0.1:1"}, True),
        ({"listen": "[::1]:1"}, True),
        ({"listen": "localhost:1"}, True),
        ({"listen": "unix:/x"}, True),
        ({"listen": "0.0.0.0:1", "allow_plaintext": True}, False),
        ({"listen": "[::]:1", "allow_plaintext": True}, False),
        ({"listen": "example.org:1", "allow_plaintext": True}, False),
        ({"listen": "0.0.0.0:1", "allow_plaintext": True, "reflection": True}, True),
        ({"listen": "127.0.0.1:1", "reflection": False}, False),
    ],
)
def test_reflection_is_off_where_others_can_reach_it_unless_forced(settings, expected):
    assert Settings(**settings).with_reflection is expected


@pytest.mark.asyncio
async def test_reflection_can_be_switched_off(tmp_path):
    async with run_front(home=tmp_path, reflection=False) as front:
        stub = reflection_pb2_grpc.ServerReflectionStub(front.channel)
        requests = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ServerReflectionInfo(requests).read()
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.asyncio
async def test_a_token_is_asked_for_by_everything_but_health(tmp_path):
    async with run_front(home=tmp_path, allow_anyone=False, token="s3cret") as front:
        for metadata in (None, (("authorization", "Bearer wrong"),), (("authorization", "s3cret"),)):
            calls = [
                front.latents.ListCrosscoders(LIST, metadata=metadata),
                front.latents.GetAtlas(latents_pb2.GetAtlasRequest(), metadata=metadata).read(),
                front.prompts.EncodeStream(iter([]), metadata=metadata).read(),
                reflection_pb2_grpc.ServerReflectionStub(front.channel)
                .ServerReflectionInfo(iter([]), metadata=metadata)
                .read(),
            ]
            for call in calls:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
                assert "Bearer TOKEN" in (caught.value.details() or "")
        await front.latents.ListCrosscoders(LIST, metadata=(("authorization", "Bearer s3cret"),))
        await front.health.Check(health_pb2.HealthCheckRequest())
        unknown = front.channel.unary_unary("/crosscope.v1.Latents/Nothing")
        with pytest.raises(grpc.aio.AioRpcError, match="UNIMPLEMENTED"):
            await unknown(b"", metadata=(("authorization", "Bearer s3cret"),))


@pytest.mark.asyncio
async def test_metrics_count_calls(tmp_path):
    port = free_port()
    async with run_front(home=tmp_path, metrics_port=port) as front:
        await front.latents.ListCrosscoders(LIST)
        page = await asyncio.to_thread(_get, f"http://127.0.0.1:{port}/metrics")
    assert 'crosscope_calls_total{caller="-",method="/crosscope.v1.Latents/ListCrosscoders",status="OK"} 1.0' in page


def _get(url: str) -> str:
    with urllib.request.urlopen(url) as reply:
        return reply.read().decode()


def environment(**settings: str) -> dict[str, str]:
    mine = {key: value for key, value in os.environ.items() if not key.startswith("CROSSCOPE_")}
    return mine | {"CROSSCOPE_SERVER_LISTEN": f"127.0.0.1:{free_port()}"} | settings


def run(**settings: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "crosscope_server"]
    return subprocess.run(command, env=environment(**settings), capture_output=True, text=True, timeout=PATIENCE_S)


def test_a_port_in_use_is_one_sentence_and_exit_code_1(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = run(CROSSCOPE_HOME=str(tmp_path), CROSSCOPE_SERVER_LISTEN=address)
    assert ended.returncode == 1
    assert ended.stderr == (
        f"cannot listen on {address}: it is in use or not an address; set CROSSCOPE_SERVER_LISTEN to a free one\n"
    )


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("CROSSCOPE_SERVER_STREAM_IN_FLIGHT", "0", "greater than or equal to 1, but is '0'"),
        ("CROSSCOPE_SERVER_REFLECTION", "maybe", "valid boolean"),
        ("CROSSCOPE_SERVER_CACHE_URL", "cache:6379", "must start with redis://, rediss:// or unix://, but is"),
        ("CROSSCOPE_SERVER_QUEUE_URL", "queue", "must start with redis://, rediss:// or unix://, but is"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(name, value, says):
    ended = run(**{name: value})
    assert ended.returncode == WRONG_SETTINGS
    assert ended.stderr.startswith(name)
    assert says in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_process_even_with_a_call_under_way(tmp_path, number):
    settings = environment(CROSSCOPE_HOME=str(tmp_path))
    with subprocess.Popen([sys.executable, "-m", "crosscope_server"], env=settings, stderr=subprocess.PIPE) as process:
        try:
            with grpc.insecure_channel(settings["CROSSCOPE_SERVER_LISTEN"]) as channel:
                watch = channel.unary_stream(
                    "/grpc.health.v1.Health/Watch", response_deserializer=health_pb2.HealthCheckResponse.FromString
                )(b"", wait_for_ready=True, timeout=PATIENCE_S)
                assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
                own = (("authorization", f"Bearer {(tmp_path / OWN_TOKEN).read_text().strip()}"),)
                latents_pb2_grpc.LatentsStub(channel).ListCrosscoders(LIST, metadata=own)
                process.send_signal(number)
                assert process.wait(PATIENCE_S) == 0
                assert process.stderr is not None
                entries = [json.loads(line) for line in process.stderr]  # no traceback among them
                assert {entry["process"] for entry in entries} == {"server"}
                (call,) = (entry for entry in entries if entry["event"] == "call")
                assert (call["method"], call["status"]) == ("/crosscope.v1.Latents/ListCrosscoders", "OK")
        finally:
            process.kill()


@contextlib.contextmanager
def server_process(**settings: str) -> Iterator[tuple[subprocess.Popen[str], grpc.Channel]]:
    """A server that serves, and a connection that takes little at a time."""
    given = environment(CROSSCOPE_SERVER_ALLOW_ANYONE="true", **settings)
    options = [("grpc.http2.lookahead_bytes", 1), ("grpc.http2.bdp_probe", 0)]
    with (
        subprocess.Popen(
            [sys.executable, "-m", "crosscope_server"], env=given, stderr=subprocess.PIPE, text=True
        ) as process,
        grpc.insecure_channel(given["CROSSCOPE_SERVER_LISTEN"], options=options) as channel,
    ):
        try:
            grpc.channel_ready_future(channel).result(PATIENCE_S)
            yield process, channel
        finally:
            process.kill()


def opened_for_writing(pipe: Path) -> int:
    """The descriptor of a named pipe, as soon as somebody reads it."""
    found: list[int] = []

    def is_read() -> bool:
        with contextlib.suppress(OSError):  # nobody does yet
            found.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        return bool(found)

    until(is_read)
    return found[0]


def test_a_thread_that_is_stuck_for_ever_does_not_keep_the_process(tmp_path):
    """The pair's manifest is a pipe that nobody writes to: who opens it waits for ever."""
    (tmp_path / "pairs" / "stuck").mkdir(parents=True)
    os.mkfifo(tmp_path / "pairs" / "stuck" / PAIR_MANIFEST)
    recipe = (ROOT / "recipes" / "demo.yaml").read_text().replace("  name: demo\n", "  name: stuck\n", 1)
    with server_process(CROSSCOPE_HOME=str(tmp_path)) as (process, channel):
        request = jobs_pb2.PlanJobRequest(recipe_yaml=recipe)
        call = jobs_pb2_grpc.JobsStub(channel).PlanJob.future(request, timeout=10 * PATIENCE_S)
        pipe = opened_for_writing(tmp_path / "pairs" / "stuck" / PAIR_MANIFEST)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
        os.close(pipe)
        assert call.exception() is not None
        assert process.stderr is not None
        (entry,) = (each for each in map(json.loads, process.stderr) if each["level"] == "error")
    assert entry["event"] == "cut off: it had not ended in time"
    assert "check.py" in str(entry["stood_at"])


@pytest.mark.asyncio
async def test_neither_a_queue_that_hangs_nor_a_caller_who_does_not_read_keeps_the_process(tmp_path):
    async with run_cache(tmp_path / "queue") as queue:
        settings = {"CROSSCOPE_HOME": str(tmp_path), "CROSSCOPE_SERVER_QUEUE_URL": f"unix://{tmp_path}/queue"}
        with server_process(**settings) as (process, channel):
            jobs = jobs_pb2_grpc.JobsStub(channel)
            await asyncio.to_thread(jobs.ListJobs, jobs_pb2.ListJobsRequest(), timeout=PATIENCE_S)
            queue.send_signal(signal.SIGSTOP)
            try:
                asked = [jobs.ListJobs.future(jobs_pb2.ListJobsRequest(), timeout=10 * PATIENCE_S) for _ in range(8)]
                text = "x" * 2000
                unread = prompts_pb2_grpc.PromptsStub(channel).EncodeStream(
                    prompts_pb2.EncodeStreamRequest(sequence=i, request={"crosscoder": text}) for i in range(2000)
                )
                await asyncio.sleep(0.5)
                process.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(process.wait, PATIENCE_S) == 0
                await happening(lambda: all(call.done() for call in asked))
                unread.cancel()
            finally:
                queue.send_signal(signal.SIGCONT)


def test_what_lives_from_the_start_is_not_looked_through_for_garbage():
    """In a process of its own: all that was imported is out of the collector's sight, and new garbage is found."""
    program = """if True:
        import gc, weakref
        from crosscope_server.memory import GARBAGE, settle
        settle()
        assert gc.get_freeze_count() > 1000 > len(gc.get_objects()), (gc.get_freeze_count(), len(gc.get_objects()))
        class Node: pass
        gone = []
        for _ in range(2 * GARBAGE[0]):
            node = Node()
            node.itself = node
            weakref.finalize(node, gone.append, 1)
        assert gone
    """
    subprocess.run([sys.executable, "-c", program], check=True, timeout=PATIENCE_S)


def test_an_error_carries_its_details():
    violations = [Violation(f"f{i}", "x" * 1000) for i in range(50)]
    status = status_of(InvalidRequest(violations), "m")
    assert status.ByteSize() < 8192  # what headers may hold
    retry = status_of(Overloaded("too much", retry_after_s=1.5), "m")
    info, after = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert retry.details[0].Unpack(info)
    assert (info.reason, info.domain) == ("OVERLOADED", "crosscope")
    assert retry.details[1].Unpack(after)
    assert after.retry_delay.ToMilliseconds() == 1500


def test_a_bug_shows_an_id_and_nothing_else():
    status = status_of(KeyError("secret"), "m")
    assert status.code == grpc.StatusCode.INTERNAL.value[0]
    assert "secret" not in str(status)
    assert "bug id" in status.message
