"""Compare, Attribute and Generate of the server, with a worker whose answers can be worked out by hand."""

import asyncio

import grpc
import grpc.aio
import numpy as np
import pytest
from fixtures_artefacts import write_crosscoder
from fixtures_server import CountingWorker, details_of, run_front, run_worker
from fixtures_waiting import PATIENCE_S, happening

from crosscope_proto.v1 import effects_pb2, types_pb2

pytestmark = pytest.mark.asyncio


def compare(text: str = "a b", **fields) -> effects_pb2.CompareRequest:
    named = fields if "pair" in fields else {"crosscoder": "demo"} | fields
    return effects_pb2.CompareRequest(prompt=types_pb2.Prompt(text=text), **named)


def attribute(text: str = "a b", **fields) -> effects_pb2.AttributeRequest:
    return effects_pb2.AttributeRequest(crosscoder="demo", prompt=types_pb2.Prompt(text=text), **fields)


def generate(text: str = "a b", **fields) -> effects_pb2.GenerateRequest:
    arms = [effects_pb2.Arm(sampling=effects_pb2.Sampling(max_new_tokens=3))]
    return effects_pb2.GenerateRequest(crosscoder="demo", prompt=types_pb2.Prompt(text=text), arms=arms, **fields)


async def failure(call) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (rest_of(call) if hasattr(call, "read") else call)
    return caught.value


async def rest_of(call) -> list[effects_pb2.GenerateResponse]:
    replies = []
    while (reply := await call.read()) is not grpc.aio.EOF:
        replies.append(reply)
    return replies


async def test_equal_questions_are_asked_once_and_remembered(planted_home, running_worker, cache_socket):
    settings = {"home": planted_home[0], "workers": running_worker.target, "cache_url": f"unix://{cache_socket}"}
    worker: CountingWorker = running_worker.worker
    async with run_front(**settings) as front:
        await front.prompts_serve()
        worker.may_answer.clear()
        calls = [asyncio.create_task(_of(front.prompts.Compare(compare()))) for _ in range(4)]
        other = asyncio.create_task(_of(front.prompts.Compare(compare("c a"))))
        await happening(lambda: worker.num_calls["Compare"] == 2)  # it came behind them, so they have joined by then
        worker.may_answer.set()
        first, *same = await asyncio.gather(*calls)
        assert all(each == first for each in same)
        assert (await other).tokens != first.tokens
        assert worker.num_calls["Compare"] == 2
        assert first.version_id == planted_home[1].version_id
        assert await _remembered(lambda: front.prompts.Compare(compare()), worker, "Compare") == first
        attributed = await _remembered(lambda: front.prompts.Attribute(attribute()), worker, "Attribute")
        assert attributed.value == 2
        before = worker.num_calls["Compare"]
        for other in (compare(top_n=3), compare("b a"), compare(pair="tiny"), compare(pair="tiny")):
            await front.prompts.Compare(other)
        assert worker.num_calls["Compare"] == before + 4, "a pair alone is asked each time"
        for _ in range(2):
            await rest_of(front.prompts.Generate(generate()))
        assert worker.num_calls["Generate"] == 2


async def _of(call):
    return await call


async def _remembered(ask, worker: CountingWorker, method: str):
    """The first answer for which the worker was not asked: a slow cache is passed over."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            before = worker.num_calls[method]
            reply = await ask()
            if worker.num_calls[method] == before:
                return reply
            await asyncio.sleep(0.02)


async def test_a_new_version_is_asked_anew(tmp_path, running_worker, cache_socket):
    old = write_crosscoder(tmp_path, "demo", 20).version_id
    worker, settings = running_worker.worker, {"workers": running_worker.target, "cache_url": f"unix://{cache_socket}"}
    async with run_front(home=tmp_path, **settings) as front:
        await front.prompts_serve()
        reply = await _remembered(lambda: front.prompts.Compare(compare()), worker, "Compare")
        assert reply.version_id == old
        new = write_crosscoder(tmp_path, "demo", 20, created_at=1_800_000_000.0).version_id
        assert (await front.prompts.Compare(compare())).version_id == new != old
        error = await failure(front.prompts.Generate(generate(version_id="gone")))
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_stored_text_reaches_the_worker_as_its_tokens(online, running_worker):
    stored = types_pb2.Prompt(stored_text=types_pb2.StoredText(sequence_id=0))
    await online.prompts.Compare(effects_pb2.CompareRequest(crosscoder="demo", prompt=stored))
    asked = running_worker.worker.requests[-1].prompt
    assert asked.WhichOneof("content") == "token_ids"
    assert len(asked.token_ids.ids) == len(asked.token_ids.roles) > 0


async def test_codes_of_a_stream_are_cut_to_top_k(online):
    whole = await rest_of(online.prompts.Generate(generate(with_code=True)))
    cut = await rest_of(online.prompts.Generate(generate(with_code=True, top_k=1)))
    assert [max(np.diff(each[0].start.code.row_starts)) for each in (whole, cut)] == [2, 1]
    assert list(whole[1].step.tokens[0].latents) == [5, 6]
    assert list(cut[1].step.tokens[0].latents) == [5]
    assert list(cut[1].step.tokens[0].activations) == [2]


async def test_another_worker_is_asked_before_the_first_message_only(planted_home, tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    async with (
        run_worker(tmp_path / "1") as one,
        run_worker(tmp_path / "2") as two,
        run_front(home=planted_home[0], workers=f"{one.target},{two.target}") as front,
    ):
        await front.prompts_serve()
        async with asyncio.timeout(PATIENCE_S):  # The server may see one worker a little later than the other.
            while not (one.worker.num_calls["Generate"] and two.worker.num_calls["Generate"]):
                await rest_of(front.prompts.Generate(generate()))
        one.worker.num_calls.clear()
        busy = grpc.StatusCode.RESOURCE_EXHAUSTED, "busy"
        one.worker.fails_with = busy
        for _ in range(6):
            assert len(await rest_of(front.prompts.Generate(generate()))) == 5
        assert 1 <= one.worker.num_calls["Generate"] < 6, "each was asked first at times"
        two.worker.fails_with = busy
        error = await failure(front.prompts.Generate(generate()))
        assert (error.code(), error.details()) == busy
        one.worker.fails_with = two.worker.fails_with = None
        one.worker.dies_after = two.worker.dies_after = 2
        stream = front.prompts.Generate(generate())
        error = await failure(stream)
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert "ended in the middle of the answer, after 2 messages; ask again" in error.details()
        assert details_of(error)[0].details


async def test_a_caller_who_goes_cancels_the_workers_call(online, running_worker, caplog):
    caplog.set_level("INFO")
    worker: CountingWorker = running_worker.worker
    worker.may_answer.clear()
    stream = online.prompts.Generate(generate())
    assert (await stream.read()).HasField("start")
    stream.cancel()
    async with asyncio.timeout(PATIENCE_S):
        await worker.gone.wait()
    assert worker.cancelled == 1

    def ended() -> list[str]:
        return [record.status for record in caplog.records if getattr(record, "method", "").endswith("/Generate")]

    await happening(ended)
    assert ended() == ["CANCELLED"]
    worker.may_answer.set()
    await rest_of(online.prompts.Generate(generate()))
    await happening(lambda: ended()[1:])
    assert ended() == ["CANCELLED", "OK"]


async def test_streams_without_a_worker_are_unavailable(front):
    for call in (front.prompts.Generate(generate()), front.prompts.Compare(compare())):
        error = await failure(call)
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert "no inference worker" in error.details()


async def test_a_worker_that_refused_a_call_and_still_serves_is_asked_again(planted_home, running_worker):
    worker: CountingWorker = running_worker.worker
    async with run_front(home=planted_home[0], workers=running_worker.target) as front:
        await front.prompts_serve()
        worker.fails_with = grpc.StatusCode.UNAVAILABLE, "not now"
        error = await failure(front.prompts.Generate(generate()))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        worker.fails_with = None
        await front.prompts_serve()
        replies = await rest_of(front.prompts.Generate(generate()))
        assert replies[-1].end.text == "xxx"
