"""The asynchronous client: it answers as the blocking one does, and stands what only asyncio does to it."""

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from functools import partial
from typing import Any

import grpc
import numpy as np
import pytest
from fixtures_waiting import PATIENCE_S

from crosscope import (
    AsyncClient,
    Client,
    DeadlineExceeded,
    Encoding,
    InvalidInput,
    JobFailed,
    JobState,
    NotFound,
    Unavailable,
    _aio,
    _blocking,
)
from crosscope.cli.output import to_plain
from crosscope_proto.v1 import jobs_pb2, latents_pb2, latents_pb2_grpc

from .test_errors import Failing
from .test_jobs import ScriptedJobs

MESSAGES = [{"role": "user", "content": "hi"}]
RECIPE = "kind: demo-pair\nname: demo\n"


async def got(call: Any) -> Any:
    """What either kind of client answers."""
    return await call if inspect.isawaitable(call) else call


async def all_of(items: Any) -> list[Any]:
    """Everything that either kind of client gives to iterate over."""
    return list(items) if isinstance(items, Iterable) else [item async for item in items]


async def script(client: Any) -> dict[str, Any]:
    """Every call, with one client; its answers by name, as plain data."""
    crosscoder = await got(client.crosscoder("demo"))
    latents = await got(crosscoder.latents(where="num_active > 5", order_by="-rel_norm", limit=None))
    columns = crosscoder.columns("rel_norm", "role_share_user")
    latent = latents[3] if isinstance(client, Client) else await latents[3]
    answers = {
        "health": await got(client.health()),
        "crosscoders": [each.info for each in await got(client.crosscoders())],
        "current": (await got(crosscoder.current())).info,
        "latents": await all_of(latents),
        "counts": (len(latents), latents.num_matching, latents.num_undefined, latents.notes, str(latents)),
        "some": await got(latents[600:603]),
        "last": await got(latents[-1]),
        "frame": (await got(latents.to_pandas())).fillna(-1).to_dict("list"),
        "latent": await got(crosscoder.latent(7)),
        "examples": await got(latent.examples(limit=3, context=4)),
        "examples of all": await got(crosscoder.examples(7, limit=101)),
        "columns": await got(columns.read()),
        "column": await got(columns["rel_norm"].values),
        "atlas": await got(crosscoder.atlas(["max"])),
        "curves": await got(crosscoder.training_curves()),
        "detectors": await got(crosscoder.detectors()),
        "tokens": await got(crosscoder.tokenize("ab")),
        "encoding": (await got(crosscoder.encode(messages=MESSAGES, top_k=3))).activations,
        "top": (await got(crosscoder.top_latents("abc", tokens=slice(-2, None)))).entries,
        "many": [each.tokens.text for each in await all_of(crosscoder.encode_many(["a", MESSAGES, "bc"], in_flight=2))],
    }
    assert (latent.source.version_id, (await got(latents[:0]))) == (crosscoder.version_id, [])
    return {name: to_plain(answer) for name, answer in answers.items()}


async def test_the_same_script_of_calls_has_the_same_answers(online: Client) -> None:
    blocking = await script(online)
    async with AsyncClient(online.address) as client:
        asynchronous = await script(client)
    assert blocking["counts"][0] > 600, "more than a page"
    for name, answer in blocking.items():
        assert asynchronous[name] == answer, name


async def jobs_script(client: Any, scripted: ScriptedJobs) -> list[Any]:
    """Every call about jobs."""
    jobs = client.jobs
    job = await got(jobs.submit(RECIPE, after=["j0"]))
    answers = [
        job.warnings,
        await got(jobs.plan(RECIPE)),
        await got(jobs.log("j1")),
        await got(job.log(3)),
        [each.id for each in await got(jobs.list(limit=5))],
        await got(jobs.schema()),
        (await got(job.refresh())).state,
        [event.id for event in await all_of(job.watch())],
        (await got(job.wait())).state,
        [len(update.events) for update in await all_of((await got(jobs.get("j1"))).updates("2"))],
        (await got(job.retry())).state,
        (await got(job.cancel())).state,
        (await got(jobs.retry("j1"))).state,
        (await got(jobs.cancel("j1"))).state,
        str(job),
    ]
    scripted.state = jobs_pb2.JOB_STATE_FAILED
    with pytest.raises(JobFailed, match="the disk is full"):
        await got((await got(jobs.get("j1"))).wait())
    return answers


async def test_jobs_have_the_same_answers(serve) -> None:
    found = []
    for kind in (Client, AsyncClient):
        scripted = ScriptedJobs(3)
        scripted.release()
        client = kind(serve(scripted).address)
        found.append(await jobs_script(client, scripted))
        await got(client.close())
    assert found[0] == found[1]
    assert found[1][7:10] == [["1", "2", "3"], JobState.SUCCEEDED, [0, 1]]


async def test_calls_of_one_client_run_at_once(scripted: Client) -> None:
    async with AsyncClient(scripted.address) as client:
        demo = await client.crosscoder("demo")
        found = await asyncio.gather(*(demo.encode("a" * (i + 1)) for i in range(40)))
    assert [len(encoding) for encoding in found] == [i + 2 for i in range(40)]


async def test_many_prompts_from_an_asynchronous_source(scripted: Client, prompts) -> None:
    drawn = 0

    async def endless() -> AsyncIterator[str]:
        nonlocal drawn
        while True:
            drawn += 1
            yield "wrong" if drawn == 3 else "abc"

    async with AsyncClient(scripted.address) as client:
        demo = await client.crosscoder("demo")
        async with aclosing(demo.encode_many(endless(), in_flight=4, return_errors=True)) as stream:
            found = [await anext(stream) for _ in range(6)]
            assert drawn == 9
    assert [type(each) for each in found] == [Encoding, Encoding, InvalidInput, Encoding, Encoding, Encoding]
    assert prompts.requests_read <= drawn


async def test_errors_are_the_same_kinds(serve) -> None:
    failing = Failing(grpc.StatusCode.UNAVAILABLE, "upstream: connection reset")
    async with AsyncClient(serve(failing).address) as client:
        with pytest.raises(Unavailable, match=r"crosscope up.*connection reset"):
            await client.crosscoders()
    assert failing.calls > 1, "the connection is asked again"
    async with AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(Unavailable, match="no server answers at"):
            [event async for event in (await client.crosscoder("demo")).encode_many(["a"])]
    with pytest.raises(InvalidInput, match="address"):
        AsyncClient("nowhere")


async def test_tokens_and_deadlines(serve) -> None:
    release = asyncio.Event()

    class Slow(latents_pb2_grpc.LatentsServicer):
        def GetCrosscoder(self, request, context):
            context.abort(grpc.StatusCode.NOT_FOUND, str(dict(context.invocation_metadata())["authorization"]))

        def ListCrosscoders(self, request, context):
            for _ in range(100):
                if not context.is_active() or release.is_set():
                    break
                threading_wait(0.02)
            return latents_pb2.ListCrosscodersResponse()

    async with AsyncClient(serve(Slow()).address, token="abc", timeout_s=0.3) as client:
        with pytest.raises(NotFound, match="Bearer abc"):
            await client.crosscoder("demo")
        with pytest.raises(DeadlineExceeded, match=r"within 0\.3 s"):
            await client.crosscoders()
        task = asyncio.create_task(client.crosscoders())
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    release.set()


def threading_wait(seconds: float) -> None:
    import threading

    threading.Event().wait(seconds)


async def test_closing_during_use_is_an_error_of_the_tree(serve, scripted: Client) -> None:
    waits = ScriptedJobs(3)
    client = AsyncClient(serve(waits).address)
    job = await client.jobs.get("j1")
    watching = asyncio.create_task(all_of(job.updates(timeout_s=20)))
    await asyncio.sleep(0.1)
    await client.close()
    with pytest.raises((InvalidInput, Unavailable)):
        await watching
    await client.close()
    with pytest.raises(InvalidInput, match="closed"):
        await client.crosscoders()
    waits.release()


async def test_values_of_columns_are_read_once(online: Client) -> None:
    async with AsyncClient(online.address) as client:
        columns = (await client.crosscoder("demo")).columns("max", "frequency")
        first, again = await columns["max"].values, await columns["max"].values
        assert first is again
        assert first.dtype == np.float32


async def test_calls_that_are_under_way_at_once_answer_in_their_order() -> None:
    meet = asyncio.Barrier(2)

    async def call(answer: int) -> int:
        await asyncio.wait_for(meet.wait(), PATIENCE_S)
        return answer

    assert await _aio.together(partial(call, 1), partial(call, 2)) == [1, 2]
    threads = threading.Barrier(2, timeout=PATIENCE_S)

    def blocking_call(answer: int) -> int:
        threads.wait()
        return answer

    assert _blocking.together(partial(blocking_call, 1), partial(blocking_call, 2)) == [1, 2]
    assert (await _aio.together(), _blocking.together()) == ([], [])


async def test_the_first_error_ends_calls_that_are_under_way() -> None:
    ended = asyncio.Event()

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def fail() -> None:
        await asyncio.sleep(0)
        raise NotFound("gone")

    with pytest.raises(NotFound):
        await _aio.together(wait, fail)
    await asyncio.wait_for(ended.wait(), PATIENCE_S)
    released = threading.Event()

    def blocking_fail() -> None:
        raise NotFound("gone")

    with pytest.raises(NotFound):
        _blocking.together(blocking_fail, lambda: released.wait(PATIENCE_S))
    released.set()
