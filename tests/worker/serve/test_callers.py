"""What callers of Generate do to each other and to the worker: from the public service to the real worker."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
import torch
from fixtures_serve import random_crosscoder, write_version
from fixtures_server import details_of
from fixtures_waiting import PATIENCE_S

from crosscope import Arm, Client
from crosscope.app.answering import Answering
from crosscope_proto.v1 import effects_pb2
from crosscope_worker.effects.decoding import Decoder
from crosscope_worker.models.pair import decoder_layers
from tests.worker.serve.online import Online, arm, change, collected, generation, run_online, texts

pytestmark = pytest.mark.asyncio
BASE = effects_pb2.MODEL_BASE
LENGTH, LOST = effects_pb2.END_REASON_LENGTH, effects_pb2.END_REASON_OUT_OF_MEMORY
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
NUM_TOKENS = 24
TEXTS = "the river", "tell me a short story"
"""What the chat model continues for long."""


@pytest_asyncio.fixture
async def online(home: Path) -> AsyncIterator[Online]:
    async with run_online(home) as running:
        yield running


async def until_it_ends(call: Any) -> tuple[list[effects_pb2.GenerateResponse], grpc.aio.AioRpcError]:
    """What is still to come of a stream, and the error with which it ends."""
    replies: list[effects_pb2.GenerateResponse] = []
    try:
        while (reply := await call.read()) is not grpc.aio.EOF:
            replies.append(reply)
    except grpc.aio.AioRpcError as error:
        return replies, error
    raise AssertionError("the stream ended well")


async def memory_that_ends(
    online: Online, monkeypatch: pytest.MonkeyPatch, ends: Callable[[tuple[int, ...]], bool]
) -> list[tuple[int, ...]]:
    """Lets the chat model run out of memory in its third layer where `ends([row, column])` of a step says so.

    Returns the shapes of all steps from now on.
    """
    async with online.process.models.using_pair("tiny") as loaded:
        layer = decoder_layers(loaded.subject.pair.models[1])[2]
    own, shapes = layer.forward, list[tuple[int, ...]]()

    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        shapes.append(tuple(x.shape[:2]))
        if ends(shapes[-1]):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return own(x, *args, **kwargs)

    monkeypatch.setattr(layer, "forward", forward)
    return shapes


async def test_where_memory_runs_out_in_a_step_the_newest_caller_is_told_and_others_go_on(
    online: Online, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [generation(arm(max_new_tokens=NUM_TOKENS), text=text, pair="tiny") for text in TEXTS]
    newest = generation(arm(max_new_tokens=NUM_TOKENS, num_samples=3), pair="tiny")
    alone = [texts(await collected(online.prompts.Generate(each))) for each in (*others, newest)]
    num_wide, all_are_there = 0, threading.Event()

    def ends(shape: tuple[int, ...]) -> bool:
        nonlocal num_wide
        assert shape != (2, 1) or all_are_there.wait(PATIENCE_S)
        num_wide += shape == (5, 1)
        return shape == (5, 1) and num_wide == 6

    shapes = await memory_that_ends(online, monkeypatch, ends)
    calls = [online.prompts.Generate(each) for each in others]
    for call in calls:
        await call.read()
    stream = asyncio.create_task(until_it_ends(online.prompts.Generate(newest)))
    while online.process.generations.num_running < 3:
        await asyncio.sleep(0.001)
    all_are_there.set()
    replies, error = await stream
    assert error.code() is EXHAUSTED
    assert "the device's memory ran out in the middle of 3 answers to a prompt of" in (error.details() or "")
    status, _ = details_of(error)
    assert "google.rpc.RetryInfo" in [detail.TypeName() for detail in status.details]
    for place, text in texts(replies).items():
        assert 0 < len(text) < len(alone[2][place])
        assert alone[2][place].startswith(text)
    assert [reply.end.reason for reply in replies[-3:]] == [LOST] * 3
    for call, own in zip(calls, alone, strict=False):
        rest = await collected(call)
        assert texts(rest) == own
        assert rest[-1].end.reason == LENGTH
    assert shapes[shapes.index((5, 1)) :].count((5, 1)) == 6, "the step in which it ran out was taken again, narrower"
    assert texts(await collected(online.prompts.Generate(newest))) == alone[2]


async def test_an_arm_that_finds_no_memory_for_its_prompt_ends_behind_the_start(
    online: Online, monkeypatch: pytest.MonkeyPatch
) -> None:
    await collected(online.prompts.Generate(generation(arm(), pair="tiny")))  # so that the models were tried
    await memory_that_ends(online, monkeypatch, lambda shape: shape[1] > 1)
    start, *rest = await collected(online.prompts.Generate(generation(arm(), arm(model=BASE), pair="tiny")))
    assert start.HasField("start")
    assert {(each.end.arm, each.end.reason) for each in rest if each.HasField("end")} == {(0, LOST), (1, LENGTH)}
    for request in (generation(arm(), pair="tiny"), generation(arm(change(1)))):
        replies, error = await until_it_ends(online.prompts.Generate(request))
        assert replies == [], "so that the server may ask another worker"
        assert error.code() is EXHAUSTED
        assert "the device's memory ran out" in (error.details() or "")


async def test_who_never_reads_is_cut_off_before_memory_fills(home: Path) -> None:
    # Codes so long that gRPC's own buffers, about 6 MB between two processes, are soon full.
    write_version(home, "dense", random_crosscoder(num_latents=4096, threshold=0.0))
    limit, num_samples, num_tokens = 1 << 21, 8, 240
    async with run_online(home, max_unread_bytes=limit) as online:
        generations, most = online.process.generations, 0
        arms = [arm(max_new_tokens=num_tokens, temperature=5.0, num_samples=num_samples)]
        silent = online.prompts.Generate(generation(*arms, crosscoder="dense", with_code=True))
        assert (await silent.read()).HasField("start")
        async with asyncio.timeout(PATIENCE_S):
            while generations.num_running:
                most = max(most, generations.unread_bytes)
                await asyncio.sleep(0.001)
        assert limit / 2 < most <= limit
        assert generations.unread_bytes == 0, "what he left is forgotten"
        other = await collected(online.prompts.Generate(generation(arm())))
        assert other[-1].HasField("end")
        replies, error = await until_it_ends(silent)
        assert error.code() is EXHAUSTED
        assert f"who together may leave {limit} bytes unread; read faster, or ask for fewer" in (error.details() or "")
        num_read = sum(len(reply.step.tokens) for reply in replies)
        assert 0 < num_read < num_samples * num_tokens


async def test_subjects_share_a_full_cache_in_the_order_of_their_callers(
    home: Path,
) -> None:
    # A token of a row takes 1 KiB. A small order has 2 rows of up to 16 tokens, so three have room and three wait. The
    # large one has 5 rows of 20 tokens, so it needs all of it.
    small = [generation(arm(max_new_tokens=num), text="the river", pair="tiny") for num in range(7, 13)]
    large = generation(arm(max_new_tokens=16, num_samples=4), text="the river")
    async with run_online(home, max_cache_bytes=100 * 1024) as online:
        ended: list[str] = []

        async def ask(name: str, request: effects_pb2.GenerateRequest) -> None:
            replies = await collected(online.prompts.Generate(request))
            assert replies[-1].HasField("end"), replies
            ended.append(name)

        async def forever(request: effects_pb2.GenerateRequest) -> None:
            while True:
                await ask("small", request)

        crowd = [asyncio.create_task(forever(each)) for each in small]
        while len(ended) < len(small):
            await asyncio.sleep(0.001)
        before = len(ended)
        async with asyncio.timeout(PATIENCE_S):
            await ask("large", large)
            assert len(ended) - before < 3 * len(small), "those who came later do not overtake it"
            while ended[-len(small) :].count("small") < len(small):
                await asyncio.sleep(0.001)
        for task in crowd:
            task.cancel()
        await asyncio.gather(*crowd, return_exceptions=True)


async def test_a_generation_that_no_page_looks_at_frees_its_place(
    online: Online, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Decoder.step

    def step(decoder: Decoder, *args: Any) -> Any:
        time.sleep(0.02)
        return own(decoder, *args)

    monkeypatch.setattr(Decoder, "step", step)
    generations = online.process.generations
    with Client(online.front.address) as client:
        ask = partial(client.pair("tiny").generate, TEXTS[0], max_new_tokens=240)
        answering = Answering(ask, [Arm()], 1, unseen_s=1.0)
        async with asyncio.timeout(PATIENCE_S):
            while len(answering.tokens(0, 0)) < 60:  # a page that looks, for longer than the limit
                await asyncio.sleep(0.02)
            assert generations.num_running == 1
            await online.process.idle()
        assert generations.num_running == 0
        assert await asyncio.to_thread(answering.wait, PATIENCE_S)
        (answer,) = answering.answers
        assert answer.reason == "cancelled"
        assert 60 <= len(answer.tokens) < 200
