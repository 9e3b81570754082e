"""Prompts that a worker is asked for at one moment, against a worker behind real gRPC."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from fixtures_server import CountingWorker, code_of, run_worker, tokens_of
from fixtures_waiting import PATIENCE_S

from crosscope_proto import request_ids
from crosscope_proto.rich_status import bad_request, rich_status
from crosscope_proto.v1 import types_pb2
from crosscope_proto.worker.v1 import inference_pb2, inference_pb2_grpc
from crosscope_server.together import MAX_CALLS, Together
from crosscope_server.worker_channel import WithMetadata
from crosscope_server.worker_errors import caller_error

pytestmark = pytest.mark.asyncio


class OldWorker(CountingWorker):
    """Notes ids of calls."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []

    async def Encode(self, request: Any, context: Any) -> inference_pb2.EncodeResponse:
        self.ids.append(dict(context.invocation_metadata())[request_ids.METADATA])
        return await super().Encode(request, context)


class NewWorker(OldWorker):
    """Answers many at once, and finds fault with the prompt "bad"."""

    def __init__(self) -> None:
        super().__init__()
        self.many: list[inference_pb2.EncodeManyRequest] = []

    async def EncodeMany(
        self, request: inference_pb2.EncodeManyRequest, context: Any
    ) -> inference_pb2.EncodeManyResponse:
        self.many.append(request)
        self.called.set()
        try:
            await self.may_answer.wait()
        except asyncio.CancelledError:
            self.gone.set()
            raise
        return inference_pb2.EncodeManyResponse(outcomes=map(self._outcome, request.calls))

    def _outcome(self, call: inference_pb2.EncodeManyRequest.Call) -> inference_pb2.EncodeManyResponse.Outcome:
        text = call.request.prompt.text
        if text == "bad":
            status = rich_status(grpc.StatusCode.INVALID_ARGUMENT, "prompt: bad", [bad_request([("prompt", "bad")])])
            return inference_pb2.EncodeManyResponse.Outcome(status=status.SerializeToString())
        response = inference_pb2.EncodeResponse(tokens=tokens_of(text), code=code_of(text))
        return inference_pb2.EncodeManyResponse.Outcome(response=response)


@contextlib.asynccontextmanager
async def together(folder: Path, worker: CountingWorker) -> AsyncGenerator[Together]:
    async with run_worker(folder, worker) as running, grpc.aio.insecure_channel(running.target) as channel:
        stands_for: Any = WithMetadata(channel, None)
        yield Together(inference_pb2_grpc.InferenceStub(stands_for))


async def ask(asking: Together, text: str, version_id: str = "one", **given: Any) -> str:
    """The second piece of the answer, or the code of the error; the id of the call is its text."""
    request_ids.set_current(text)
    request = inference_pb2.EncodeRequest(crosscoder="demo", version_id=version_id, prompt=types_pb2.Prompt(text=text))
    try:
        reply = await asking.encode(request, given.pop("cost", 16.0), given.pop("timeout_s", 30.0))
    except grpc.aio.AioRpcError as error:
        return f"{error.code().name}: {caller_error(error)}"
    assert reply.code == code_of(text)
    return reply.tokens.pieces[1]


def asked(worker: NewWorker) -> list[list[str]]:
    return [[call.request.prompt.text for call in request.calls] for request in worker.many]


async def test_what_is_asked_at_one_moment_goes_in_one_message_and_each_has_its_own_answer(tmp_path: Path) -> None:
    worker = NewWorker()
    async with together(tmp_path, worker) as asking:
        found = await asyncio.gather(*(ask(asking, text) for text in ("a", "bad", "c")), ask(asking, "d", "two"))
        assert await ask(asking, "alone") == "alone"
    assert [found[0], *found[2:]] == ["a", "c", "d"]
    assert found[1].startswith("INVALID_ARGUMENT: ")
    assert "prompt: bad" in found[1]
    assert asked(worker) == [["a", "bad", "c"]]
    assert [call.request_id for call in worker.many[0].calls] == ["a", "bad", "c"]
    assert sorted(worker.ids) == ["alone", "d"]  # another version, and one that came later


async def test_a_message_holds_so_many_prompts_and_so_many_tokens(tmp_path: Path) -> None:
    worker = NewWorker()
    async with together(tmp_path, worker) as asking:
        texts = [str(number) for number in range(MAX_CALLS + 2)]
        assert await asyncio.gather(*(ask(asking, text) for text in texts)) == texts
        await asyncio.gather(*(ask(asking, text, cost=1024.0) for text in "xyz"))
    assert sorted(map(len, asked(worker))) == [2, 2, MAX_CALLS]
    assert worker.ids == ["z"]


async def test_one_whose_deadline_passes_leaves_the_others(tmp_path: Path) -> None:
    worker = NewWorker()
    worker.may_answer.clear()
    async with together(tmp_path, worker) as asking:
        others = [asyncio.create_task(ask(asking, text)) for text in "ab"]
        late = await ask(asking, "late", timeout_s=0.05)
        assert late.startswith("DEADLINE_EXCEEDED: ")
        others[0].cancel()
        await asyncio.sleep(0)
        worker.may_answer.set()
        assert await others[1] == "b"
    assert asked(worker) == [["late", "a", "b"]]
    assert [round(call.timeout_s, 2) for call in worker.many[0].calls] == [0.05, 30, 30]


async def test_a_call_that_nobody_waits_for_any_more_is_cut_off(tmp_path: Path) -> None:
    worker = NewWorker()
    worker.may_answer.clear()
    async with together(tmp_path, worker) as asking:
        tasks = [asyncio.create_task(ask(asking, text)) for text in "ab"]
        await worker.called.wait()
        for task in tasks:
            task.cancel()
        async with asyncio.timeout(PATIENCE_S):
            await worker.gone.wait()


async def test_a_worker_that_ends_ends_all_its_calls(tmp_path: Path) -> None:
    worker = NewWorker()
    worker.may_answer.clear()
    async with run_worker(tmp_path, worker) as running, grpc.aio.insecure_channel(running.target) as channel:
        asking = Together(inference_pb2_grpc.InferenceStub(channel))
        tasks = [asyncio.create_task(ask(asking, text)) for text in "ab"]
        await worker.called.wait()
        await running.server.stop(None)
        found = await asyncio.gather(*tasks)
    assert all(each.startswith(("UNAVAILABLE: ", "CANCELLED: ")) for each in found), found


async def test_a_worker_that_knows_one_at_a_time_only_gets_one_at_a_time(tmp_path: Path) -> None:
    worker = OldWorker()
    async with together(tmp_path, worker) as asking:
        for texts in ("abc", "def"):
            assert await asyncio.gather(*(ask(asking, text) for text in texts)) == list(texts)
    assert sorted(worker.ids) == list("abcdef")
