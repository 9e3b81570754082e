"""Bytes that are no message are refused by every method, and errors fit their headers; see test_generated_messages.py.

Methods are those of the descriptors, so a new one is tried without a line here.
"""

import base64
import contextlib
import string
import urllib.parse
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
import pytest_asyncio
from fixtures_artefacts import write_crosscoder, write_rows
from fixtures_hostile import SERVER_METHODS
from fixtures_server import Front, details_of, run_cache, run_front, run_worker
from fixtures_waiting import PATIENCE_S
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2

from crosscope_proto.artefacts import version_folder
from crosscope_proto.v1 import annotations_pb2, jobs_pb2, jobs_pb2_grpc, prompts_pb2, types_pb2

pytestmark = pytest.mark.asyncio

METHODS = SERVER_METHODS
GARBAGE = (b"\xff\xff\xff", b"\x0a\x05ab", b"\x0a\x02\xff\xfe", b"\x08" + b"\xff" * 20, b"\x0b" * 500, b"\x00")
RECIPE = "kind: demo-pair\nname: mine\n"


def path_of(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


@pytest_asyncio.fixture
async def front(tmp_path: Path) -> AsyncIterator[Front]:
    """A server with everything: a crosscoder, a worker, a queue."""
    version = write_crosscoder(tmp_path, "demo", 40).version_id
    write_rows(Path(version_folder(tmp_path, "demo", version)), np.ones((40, 128), np.float32))
    async with (
        run_cache(tmp_path / "queue.sock"),
        run_worker(tmp_path) as worker,
        run_front(home=tmp_path, workers=worker.target, queue_url=f"unix://{tmp_path}/queue.sock") as running,
    ):
        await running.prompts_serve()
        yield running


async def ask(
    front: Front, method: MethodDescriptor, *requests: bytes
) -> tuple[list[bytes], grpc.aio.AioRpcError | None]:
    """The replies of a call, the first three of one without end, and its error."""
    streams = (method.client_streaming, method.server_streaming)
    make: Any = {
        (False, False): front.channel.unary_unary,
        (False, True): front.channel.unary_stream,
        (True, False): front.channel.stream_unary,
        (True, True): front.channel.stream_stream,
    }[streams]
    call = make(path_of(method))(iter(requests) if method.client_streaming else requests[0], timeout=PATIENCE_S)
    replies: list[bytes] = []
    try:
        if not method.server_streaming:
            return [await call], None
        while (reply := await call.read()) is not grpc.aio.EOF and len(replies) < 3:
            replies.append(reply)
            if method.name in ("Watch", "WatchJob"):
                call.cancel()
                return replies, None
    except grpc.aio.AioRpcError as error:
        return replies, error
    return replies, None


async def test_bytes_that_are_no_message_are_refused_by_every_method(front: Front):
    tried = 0
    for method in METHODS:
        request = GetMessageClass(method.input_type)
        for data in GARBAGE:
            with contextlib.suppress(DecodeError):
                request.FromString(data)
                continue
            replies, error = await ask(front, method, data)
            assert error is not None, path_of(method)
            assert not replies
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, (path_of(method), error.details())
            assert "the request is not a valid message" in (error.details() or "")
            assert details_of(error)[1]
            tried += 1
    assert tried >= 3 * len(METHODS)


async def test_a_stream_answers_what_came_before_bytes_that_are_no_message(front: Front):
    [method] = [method for method in METHODS if method.name == "EncodeStream"]
    prompt = prompts_pb2.EncodeRequest(crosscoder="demo", prompt=types_pb2.Prompt(text="a"))
    good = prompts_pb2.EncodeStreamRequest(sequence=5, request=prompt).SerializeToString()
    replies, error = await ask(front, method, good, good, b"\xff", good)
    read = [prompts_pb2.EncodeStreamResponse.FromString(reply) for reply in replies]
    assert [(reply.sequence, reply.WhichOneof("outcome")) for reply in read] == [(5, "response")] * 2
    assert error is not None
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_error_fits_its_headers_whatever_language_it_quotes(front: Front):
    """gRPC allows 8 KiB of them, in which a byte that is not ASCII takes three."""
    submit = jobs_pb2_grpc.JobsStub(front.channel).SubmitJob
    for sign in ("x", "é", "字", "🦊"):
        recipe = f"{RECIPE}seed: {sign * 900}\n" + "".join(f"{sign * 90}{i}: 1\n" for i in range(12))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await submit(jobs_pb2.SubmitJobRequest(recipe_yaml=recipe))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        status, violations = details_of(caught.value)
        assert len(violations) == 10
        text = len(urllib.parse.quote(status.message, safe=string.printable))
        assert text + len(base64.b64encode(status.SerializeToString())) < 8192


async def test_a_long_value_in_an_errors_facts_fits_its_headers(front: Front):
    """The refusal of a stale note repeats the one that stands there now: it is cut, and the error is still Stale."""
    write = front.annotations.WriteNote
    of = annotations_pb2.WordsOf(crosscoder="demo")
    for sign in ("Ω", "🦊"):
        await write(annotations_pb2.WriteNoteRequest(of=of, latent=1, text=sign * 10_000, author=sign * 100))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await write(annotations_pb2.WriteNoteRequest(of=of, latent=1, text="mine", seen_revision=0))
        assert caught.value.code() is grpc.StatusCode.ABORTED
        info = error_details_pb2.ErrorInfo()
        assert details_of(caught.value)[0].details[0].Unpack(info)
        assert info.reason == "STALE"
        assert info.metadata["now"].startswith(sign)


async def test_a_message_that_breaks_a_million_rules_costs_no_more_than_one(front: Front):
    """Others are answered meanwhile: only the first broken rule of a long message is collected."""
    ids = types_pb2.TokenIds(ids=[1], roles=[types_pb2.TokenRole.TOKEN_ROLE_UNSPECIFIED] * 1_000_000)
    long = prompts_pb2.EncodeRequest(crosscoder="demo", prompt=types_pb2.Prompt(token_ids=ids))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await front.prompts.Encode(long, timeout=20)  # 30 s on two quiet cores where all were collected
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert [field for field, _ in details_of(caught.value)[1]] == ["prompt.token_ids.roles"]


async def test_health_says_what_there_is(front: Front):
    with pytest.raises(grpc.aio.AioRpcError, match=r"there is no such service; there are crosscope") as caught:
        await front.health.Check(health_pb2.HealthCheckRequest(service="crosscope.v1.Nothing"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert "crosscope.v1.Jobs" in (await front.health.List(health_pb2.HealthListRequest())).statuses
