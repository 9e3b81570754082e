"""The id of a call: from the caller or new, in log lines, errors, the worker's call and the job."""

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from fixtures_server import CountingWorker, Front, details_of, run_cache, run_front, run_worker
from fixtures_waiting import happening
from google.rpc import error_details_pb2

from crosscope import AsyncClient, DeadlineExceeded, NotFound
from crosscope_proto.logs import JsonFormatter, with_request_id
from crosscope_proto.v1 import jobs_pb2, jobs_pb2_grpc, latents_pb2, prompts_pb2, types_pb2

NOBODY = latents_pb2.ListLatentsRequest(crosscoder="nobody")
A_PROMPT = prompts_pb2.EncodeRequest(crosscoder="demo", prompt=types_pb2.Prompt(text="a b"))


@pytest.fixture
def lines() -> Iterator[list[dict[str, Any]]]:
    """The server's log, as it is written under `crosscope up`."""
    found: list[dict[str, Any]] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(json.loads(self.format(record)))

    handler, logger = Keep(), logging.getLogger("crosscope_server")
    handler.setFormatter(JsonFormatter("server"))
    handler.addFilter(with_request_id)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield found
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


async def id_in_error(front: Front, *given: str | bytes) -> str:
    key = "x-request-id"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await front.latents.ListLatents(NOBODY, metadata=tuple((key, value) for value in given))
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in details_of(caught.value)[0].details)
    return info.metadata["request_id"]


@pytest.mark.asyncio
async def test_the_callers_id_is_in_the_error_and_in_the_line_of_the_call(
    front: Front, lines: list[dict[str, Any]]
) -> None:
    assert await id_in_error(front, "my-run_1.A") == "my-run_1.A"
    assert await id_in_error(front, "x" * 64) == "x" * 64

    def ids() -> list[str]:
        return [line["request_id"] for line in lines if line["event"] == "call"]

    await happening(lambda: ids()[1:])
    assert ids() == ["my-run_1.A", "x" * 64]


@pytest.mark.asyncio
@pytest.mark.parametrize("bad", ["", "a b", "x" * 65, "a/b", 'a"b'])
async def test_an_id_that_could_do_harm_in_a_log_is_replaced(front: Front, bad: str) -> None:
    assert re.fullmatch("[0-9a-f]{16}", await id_in_error(front, bad))


@pytest.mark.asyncio
async def test_calls_without_an_id_get_one_each(front: Front) -> None:
    first, second = await id_in_error(front), await id_in_error(front)
    assert first != second
    assert re.fullmatch("[0-9a-f]{16}", first)


@pytest.mark.asyncio
async def test_a_refused_token_has_the_id_too(tmp_path: Path) -> None:
    async with run_front(home=tmp_path, token="s3cret") as front:
        assert await id_in_error(front, "refused-1") == "refused-1"


@pytest.mark.asyncio
async def test_the_worker_is_told(planted_home, tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    told: list[dict[str, str]] = []

    class Listening(CountingWorker):
        async def Encode(self, request: Any, context: Any) -> Any:
            told.append(dict(context.invocation_metadata()))
            return await super().Encode(request, context)

    worker = Listening()
    async with (
        run_worker(tmp_path, worker) as running,
        run_front(home=planted_home[0], workers=running.target) as front,
    ):
        await front.prompts_serve()
        await front.prompts.Encode(A_PROMPT, metadata=(("x-request-id", "abc"),))
        worker.fails_with = grpc.StatusCode.INTERNAL, "a bug of the worker"
        with pytest.raises(grpc.aio.AioRpcError, match="has a bug"):
            await front.prompts.Encode(A_PROMPT, metadata=(("x-request-id", "def"),))
    assert [each["x-request-id"] for each in told] == ["abc", "def"]
    assert [line["request_id"] for line in lines if line["event"] == "bug"] == ["def"]


@pytest.mark.asyncio
async def test_the_sdks_errors_have_the_id(planted_home, tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    async with (
        run_worker(tmp_path) as running,
        run_front(home=planted_home[0], workers=running.target) as front,
        AsyncClient(front.address) as client,
        AsyncClient(front.address, timeout_s=0.5) as hasty,
    ):
        await front.prompts_serve()
        with pytest.raises(NotFound) as missing:
            await client.crosscoder("nobody")
        running.worker.may_answer.clear()
        crosscoder = await client.crosscoder("demo")
        with pytest.raises(DeadlineExceeded) as late:
            await (await hasty.crosscoder("demo")).encode("a b")
        running.worker.may_answer.set()
        errors = [item async for item in crosscoder.encode_many(["a b"], top_k=70000, return_errors=True)]
    logged = [line["request_id"] for line in lines if line["event"] == "call" and line["status"] != "OK"]
    assert logged[:2] == [missing.value.request_id, late.value.request_id]
    streams = [line["request_id"] for line in lines if line.get("method", "").endswith("EncodeStream")]
    assert [error.request_id for error in errors if isinstance(error, Exception)] == streams
    assert len(streams) == 1


@pytest.mark.asyncio
async def test_a_job_remembers_the_call_that_submitted_it(tmp_path: Path) -> None:
    async with run_cache(tmp_path / "queue"), run_front(home=tmp_path, queue_url=f"unix://{tmp_path}/queue") as front:
        jobs = jobs_pb2_grpc.JobsStub(front.channel)
        request = jobs_pb2.SubmitJobRequest(recipe_yaml="kind: demo-pair\nname: one\n")
        job = (await jobs.SubmitJob(request, metadata=(("x-request-id", "abc"),))).job
        assert job.request_id == "abc"
        async with AsyncClient(front.address) as client:
            assert (await client.jobs.get(job.id)).info.request_id == "abc"
