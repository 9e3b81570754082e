"""The inference process: a real server on a unix socket, with a tiny pair and a random crosscoder."""

import asyncio
import datetime
import json
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import psutil
import pytest
import pytest_asyncio
import torch
from fixtures_serve import LAYER, VERSION, random_crosscoder, write_version
from fixtures_waiting import PATIENCE_S
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from crosscope_proto.artefacts import MANIFEST, WEIGHTS
from crosscope_proto.roles import LeftOut, TokenRole
from crosscope_proto.v1 import types_pb2
from crosscope_proto.worker.v1 import inference_pb2, inference_pb2_grpc
from crosscope_worker.dictionary.keep import LargestOfToken
from crosscope_worker.disk import sha256
from crosscope_worker.models.activations import PairActivations
from crosscope_worker.models.pair import Pair
from crosscope_worker.serve.process import InferenceProcess, StartError
from crosscope_worker.serve.settings import ServeSettings
from crosscope_worker.tokenizer.tokens import TextTokenizer, Turn


@dataclass
class Served:
    process: InferenceProcess
    inference: Any
    health: Any
    home: Path


@pytest_asyncio.fixture
async def served(home: Path) -> AsyncIterator[Served]:
    address = f"unix:{home}/worker"
    process = InferenceProcess(ServeSettings(home=home, listen=address, max_prompt_tokens=200, max_queued_tokens=100))
    await process.start()
    async with grpc.aio.insecure_channel(address) as channel:
        yield Served(process, inference_pb2_grpc.InferenceStub(channel), health_pb2_grpc.HealthStub(channel), home)
        await process.stop()


def encode_request(text: str, crosscoder: str = "demo", version_id: str = VERSION) -> inference_pb2.EncodeRequest:
    prompt = types_pb2.Prompt(text=text)
    return inference_pb2.EncodeRequest(crosscoder=crosscoder, version_id=version_id, prompt=prompt)


async def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value.code(), error.value.details() or ""


def rows(code: types_pb2.SparseCode) -> list[dict[int, float]]:
    pairs = list(zip(code.latents, code.activations, strict=True))
    return [dict(pairs[start:end]) for start, end in pairwise(code.row_starts)]


@pytest.mark.asyncio
async def test_many_prompts_at_once_get_the_codes_and_the_errors_that_each_gets_alone(served: Served) -> None:
    good = ["the baker", "the old river tells a story", "it"]
    bad = [encode_request("a long day " * 100), encode_request("it", "nobody")]
    requests = [*map(encode_request, good), *bad]
    calls = [inference_pb2.EncodeManyRequest.Call(request=request) for request in requests]
    reply = await served.inference.EncodeMany(inference_pb2.EncodeManyRequest(calls=calls))
    assert len(reply.outcomes) == len(calls)
    for request, outcome in zip(requests, reply.outcomes, strict=True):
        if request in bad:
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await served.inference.Encode(request)
            assert rpc_status.from_call(error.value) == status_pb2.Status.FromString(outcome.status)  # pyright: ignore[reportArgumentType]
        else:
            alone = await served.inference.Encode(request)
            assert outcome.response.tokens == alone.tokens
            assert outcome.response.code.latents == alone.code.latents
            np.testing.assert_allclose(outcome.response.code.activations, alone.code.activations, rtol=1e-5)
    too_many = inference_pb2.EncodeManyRequest(calls=calls * 13)
    assert (await refusal(served.inference.EncodeMany(too_many)))[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_codes_are_those_of_the_crosscoder(served: Served, tiny_pair: Pair) -> None:
    text = "the baker tells a story about the old river"
    reply = await served.inference.Encode(encode_request(text))
    tokens = TextTokenizer(tiny_pair.tokenizer).text(text)
    assert list(reply.tokens.ids) == tokens.ids.tolist()
    assert "".join(reply.tokens.pieces) == "<bos>" + text
    assert list(reply.tokens.roles) == tokens.roles.tolist()
    ids = torch.from_numpy(tokens.ids)[None]
    x = PairActivations(tiny_pair, LAYER)(ids, torch.tensor([ids.shape[1]]))[0]
    scaled = random_crosscoder().scaled(x)
    code = rows(reply.code)
    assert len(code) == len(tokens.ids)
    assert 0 < sum(map(len, code)) < scaled.numel() / 2
    for row, expected in zip(code, scaled, strict=True):
        assert row.keys() == set(expected.nonzero().flatten().tolist())
        np.testing.assert_allclose([float(expected[latent]) for latent in row], list(row.values()), rtol=1e-5)
        assert list(row.values()) == sorted(row.values(), reverse=True)
    assert reply.compute_ms > 0


@pytest.mark.asyncio
async def test_token_ids_give_the_code_of_their_text(served: Served) -> None:
    of_text = await served.inference.Encode(encode_request("the old river"))
    ids, roles = list(of_text.tokens.ids), list(of_text.tokens.roles)

    def request(ids: list[int], roles: list[Any]) -> inference_pb2.EncodeRequest:
        prompt = types_pb2.Prompt(token_ids=types_pb2.TokenIds(ids=ids, roles=roles))
        return inference_pb2.EncodeRequest(crosscoder="demo", version_id=VERSION, prompt=prompt)

    for given in (roles, []):
        of_ids = await served.inference.Encode(request(ids, given))
        assert (of_ids.tokens, of_ids.code) == (of_text.tokens, of_text.code)
    without_bos = await served.inference.Encode(request(ids[1:], []))
    assert list(without_bos.tokens.ids) == ids[1:]
    code, sentence = await refusal(served.inference.Encode(request([*ids, 99_999], [])))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert f"token {len(ids)} has id 99999, but the vocabulary has " in sentence


@pytest.mark.asyncio
async def test_a_batch_answers_as_one_by_one(served: Served) -> None:
    texts = [f"the {'old ' * index}river" for index in range(7)]
    alone = [await served.inference.Encode(encode_request(text)) for text in texts]
    together = await asyncio.gather(*(served.inference.Encode(encode_request(text)) for text in texts))
    for one, same in zip(alone, together, strict=True):
        assert same.tokens == one.tokens
        for row, expected in zip(rows(same.code), rows(one.code), strict=True):
            assert row == pytest.approx(expected, rel=1e-4)


@pytest.mark.asyncio
async def test_prompts_read_as_the_training_did(served: Served) -> None:
    """The template of a version gets the settings of its recipe, and the recorded day; a prompt's own settings come
    before both.
    """
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %} {{ strftime_now('%d %b %Y') }} {{ mood }}"
        "{% for t in tools or [] %}{{ t.name }}{% endfor %}"
    )
    for model in ("base", "chat"):
        (served.home / "pairs" / "tiny" / model / "chat_template.jinja").write_text(template)
    dated = {"recipe": {"chat_template_kwargs": {"mood": "calm"}}, "chat_template_date": "2026-03-05"}
    for version, more in (("v2", dated), ("v3", {"recipe": {"chat_template_date": "1999-12-31"}})):
        manifest_path = write_version(served.home, "demo", random_crosscoder(), version) / MANIFEST
        manifest_path.write_text(json.dumps(json.loads(manifest_path.read_text()) | more))

    async def printed(version: str, kwargs: str = "") -> str:
        conversation = types_pb2.Conversation(
            turns=[types_pb2.Turn(role="user", content="hi")], chat_template_kwargs_json=kwargs
        )
        request = inference_pb2.TokenizeRequest(
            crosscoder="demo", version_id=version, prompt=types_pb2.Prompt(conversation=conversation)
        )
        return "".join((await served.inference.Tokenize(request)).tokens.pieces)

    assert await printed("v2") == "user: hi 05 Mar 2026 calm"
    assert await printed("v2", '{"mood": "gay", "tools": [{"name": "x"}]}') == "user: hi 05 Mar 2026 gayx"
    today = datetime.datetime.now().strftime("%d %b %Y")
    assert await printed("v3") == f"user: hi {today} ", "a version of before has no day"
    code, sentence = await refusal(printed("v2", '{"padding": 1}'))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "'padding' cannot be given to a chat template" in sentence


@pytest.mark.asyncio
async def test_conversations(served: Served, tiny_pair: Pair) -> None:
    said = "hi \N{FOX FACE} <end_of_turn>"
    turns = [types_pb2.Turn(role="user", content=said), types_pb2.Turn(role="assistant", content="sorry")]
    conversation = types_pb2.Conversation(turns=turns, add_generation_prompt=True)
    prompt = types_pb2.Prompt(conversation=conversation)
    request = inference_pb2.TokenizeRequest(crosscoder="demo", version_id=VERSION, prompt=prompt)
    reply = await served.inference.Tokenize(request)
    expected = TextTokenizer(tiny_pair.tokenizer).conversation(
        [Turn("user", said), Turn("assistant", "sorry")], add_generation_prompt=True
    )
    assert list(reply.tokens.ids) == expected.ids.tolist()
    assert reply.tokens.roles[-1] == TokenRole.HEADER
    assert said in "".join(reply.tokens.pieces)
    encoded = await served.inference.Encode(
        inference_pb2.EncodeRequest(crosscoder="demo", version_id=VERSION, prompt=prompt)
    )
    assert list(encoded.tokens.left_out) == [LeftOut.KEPT] * len(reply.tokens.ids), "its recipe says nothing"
    encoded.tokens.ClearField("left_out")
    assert encoded.tokens == reply.tokens


@pytest.mark.asyncio
async def test_tokens_that_training_left_out_are_marked_with_the_reason(served: Served, tiny_pair: Pair) -> None:
    """BOS by its role, the second token of the text by its place, one by its norm, the fifth by its position."""
    text = "the baker tells a story about the old river"
    ids = torch.from_numpy(TextTokenizer(tiny_pair.tokenizer).text(text).ids)[None]
    x = PairActivations(tiny_pair, LAYER)(ids, torch.tensor([ids.shape[1]]))[0]
    base, chat = x[:, :32].norm(dim=1), x[:, 32:].norm(dim=1)
    limit = float(base[2:].topk(2).values.mean())  # between the largest norm and the one below
    largest = 2 + int(base[2:].argmax())
    sink = 4 if largest != 4 else 5
    limits, tokens = (limit, 2 * float(chat.max())), {"skip_bos": True, "skip_first": 2, "of_another_time": 1}
    fields = {"norm_limits": limits, "norm_positions": (sink,), "recipe": {"tokens": tokens}}
    write_version(served.home, "marked", random_crosscoder(), **fields)
    write_version(served.home, "old", random_crosscoder(), recipe={"tokens": {"skip_bos": True}})
    expected = [LeftOut.BOS, LeftOut.FIRST] + [LeftOut.KEPT] * (len(x) - 2)
    expected[largest] = expected[sink] = LeftOut.NORM
    reply, other = await asyncio.gather(
        served.inference.Encode(encode_request(text, "marked")),
        served.inference.Encode(encode_request("river", "marked")),
    )
    assert list(reply.tokens.left_out) == expected
    assert list(other.tokens.left_out)[:2] == [LeftOut.BOS, LeftOut.FIRST]
    reply = await served.inference.Encode(encode_request(text, "old"))
    assert list(reply.tokens.left_out) == [LeftOut.BOS] + [LeftOut.KEPT] * (len(x) - 1)


@pytest.mark.asyncio
async def test_a_recipe_whose_token_policy_cannot_be_read_is_named(served: Served) -> None:
    write_version(served.home, "odd", random_crosscoder(), recipe={"tokens": {"skip_first": "two"}})
    code, sentence = await refusal(served.inference.Encode(encode_request("a", "odd")))
    assert code == grpc.StatusCode.DATA_LOSS
    assert "the recipe of crosscoder 'odd' holds tokens.skip_first: Input should be a valid integer" in sentence


@pytest.mark.asyncio
async def test_conversations_of_a_mebibyte_are_refused_beside_others(served: Served) -> None:
    """They cost as much as their limit: memory stays, and prompts beside them are answered."""
    await served.inference.Encode(encode_request("warm"))
    before = psutil.Process().memory_info().rss
    turns = [types_pb2.Turn(role=role, content="the old river " * 18_000) for role in ("user", "assistant") * 2]
    prompt = types_pb2.Prompt(conversation=types_pb2.Conversation(turns=turns))
    ask = {"crosscoder": "demo", "version_id": VERSION, "prompt": prompt}
    hostile = [served.inference.Tokenize(inference_pb2.TokenizeRequest(**ask)) for _ in range(4)]
    hostile += [served.inference.Encode(inference_pb2.EncodeRequest(**ask)) for _ in range(4)]
    for number in range(20):
        assert len((await served.inference.Encode(encode_request(f"the river {number}"))).tokens.ids) > 3
    refused = [await refusal(call) for call in hostile]
    assert {code for code, _ in refused} == {grpc.StatusCode.INVALID_ARGUMENT}
    assert {sentence for _, sentence in refused} == {
        "the text has at least 801 tokens, but may have 800; shorten it",
        "the prompt has at least 201 tokens, but this worker's limit is 200; shorten it",
    }
    assert psutil.Process().memory_info().rss - before < 200 << 20


@pytest.mark.asyncio
async def test_tokens_of_a_prompt_that_is_too_long_are_told(served: Served) -> None:
    request = inference_pb2.TokenizeRequest(
        crosscoder="demo", version_id=VERSION, prompt=types_pb2.Prompt(text="a " * 300)
    )
    reply = await served.inference.Tokenize(request)
    assert len(reply.tokens.ids) > reply.max_prompt_tokens == 200


@pytest.mark.asyncio
async def test_prompts_that_are_refused(served: Served) -> None:
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    code, sentence = await refusal(served.inference.Encode(encode_request("river " * 300)))
    assert code == invalid
    assert "tokens, but this worker's limit is 200; shorten it" in sentence
    turns = [types_pb2.Turn(role="system", content="a"), types_pb2.Turn(role="user", content="b")]
    prompt = types_pb2.Prompt(conversation=types_pb2.Conversation(turns=turns))
    request = inference_pb2.EncodeRequest(crosscoder="demo", version_id=VERSION, prompt=prompt)
    code, sentence = await refusal(served.inference.Encode(request))
    assert code == invalid
    assert "first user turn" in sentence
    code, sentence = await refusal(
        served.inference.Encode(inference_pb2.EncodeRequest(crosscoder="demo", version_id=VERSION))
    )
    assert code == invalid
    assert "neither text, conversation nor token ids" in sentence
    assert (await served.inference.Encode(encode_request("fine"))).code.row_starts


@pytest.mark.asyncio
async def test_unknown_and_broken_crosscoders(served: Served) -> None:
    for name, version_id in (("gone", VERSION), ("../demo", VERSION), ("demo", "v9"), ("demo", "../v1"), ("demo", "")):
        code, sentence = await refusal(served.inference.Encode(encode_request("a", name, version_id)))
        assert code == grpc.StatusCode.NOT_FOUND
        assert repr(name if name != "demo" else version_id) in sentence
    weights = write_version(served.home, "cut", random_crosscoder()) / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-50])
    code, sentence = await refusal(served.inference.Encode(encode_request("a", "cut")))
    assert code == grpc.StatusCode.DATA_LOSS
    assert WEIGHTS in sentence
    folder = write_version(served.home, "flipped", random_crosscoder())
    weights, manifest = folder / WEIGHTS, folder / MANIFEST
    document = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(document | {"hashes": document["hashes"] | {WEIGHTS: sha256(weights)}}))
    damaged = bytearray(weights.read_bytes())
    damaged[-5] ^= 0x40
    weights.write_bytes(damaged)
    code, sentence = await refusal(served.inference.Encode(encode_request("a", "flipped")))
    assert code == grpc.StatusCode.DATA_LOSS
    assert f"{WEIGHTS} is damaged or was changed: its SHA-256 is" in sentence
    layer = write_version(served.home, "layer", random_crosscoder()) / MANIFEST
    layer.write_text(json.dumps(json.loads(layer.read_text()) | {"layer": 17}))
    code, sentence = await refusal(served.inference.Encode(encode_request("a", "layer")))
    assert code == grpc.StatusCode.FAILED_PRECONDITION
    assert "layer 17: the base model has 4 layers" in sentence


@pytest.mark.asyncio
async def test_the_k_largest_of_each_token(served: Served, tiny_pair: Pair) -> None:
    crosscoder = replace(random_crosscoder(), keep=LargestOfToken(7))
    write_version(served.home, "topk", crosscoder)
    text = "the baker tells a story about the old river"
    reply = await served.inference.Encode(encode_request(text, "topk"))
    ids = torch.from_numpy(TextTokenizer(tiny_pair.tokenizer).text(text).ids)[None]
    scaled = crosscoder.scaled(PairActivations(tiny_pair, LAYER)(ids, torch.tensor([ids.shape[1]]))[0])
    for row, expected in zip(rows(reply.code), scaled, strict=True):
        assert len(row) == 7
        assert row.keys() == set(expected.nonzero().flatten().tolist())


@pytest.mark.asyncio
async def test_models_that_changed_after_training(served: Served) -> None:
    config = served.home / "pairs" / "tiny" / "chat" / "config.json"
    config.write_text(config.read_text() + "\n")
    code, sentence = await refusal(served.inference.Encode(encode_request("a")))
    assert code == grpc.StatusCode.FAILED_PRECONDITION
    assert "the chat of crosscoder 'demo'" in sentence
    assert "has changed since it was trained" in sentence


@pytest.mark.asyncio
async def test_a_home_that_was_moved(home: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    moved = tmp_path_factory.mktemp("moved") / "home"
    home.rename(moved)
    address = f"unix:{moved}/worker"
    process = InferenceProcess(ServeSettings(home=moved, listen=address))
    await process.start()
    async with grpc.aio.insecure_channel(address) as channel:
        reply = await inference_pb2_grpc.InferenceStub(channel).Encode(encode_request("one two"))
        await process.stop()
    assert len(reply.tokens.ids) > 1


@pytest.mark.asyncio
async def test_a_busy_device_delays_no_tokens_and_refuses_a_flood(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served.process.models.using("demo", VERSION) as loaded:
        pass
    entered, leave = threading.Event(), threading.Event()
    encode = loaded.encoder.__class__.__call__

    def slow(self: Any, prompts: Any) -> Any:
        entered.set()
        assert leave.wait(PATIENCE_S)
        return encode(self, prompts)

    monkeypatch.setattr(loaded.encoder.__class__, "__call__", slow)
    busy = asyncio.create_task(_await(served.inference.Encode(encode_request("a"))))
    await asyncio.to_thread(entered.wait, PATIENCE_S)
    prompt = types_pb2.Prompt(text="hi")
    request = inference_pb2.TokenizeRequest(crosscoder="demo", version_id=VERSION, prompt=prompt)
    assert (await served.inference.Tokenize(request, timeout=PATIENCE_S)).tokens.ids
    late = await refusal(served.inference.Encode(encode_request("b"), timeout=0.1))
    assert late[0] == grpc.StatusCode.DEADLINE_EXCEEDED
    asked = time.perf_counter()
    waiting = asyncio.create_task(_await(served.inference.Encode(encode_request("river " * 15))))
    while served.process.batcher.queued_tokens < 15:
        await asyncio.sleep(0)
    queued = time.perf_counter()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await served.inference.Encode(encode_request("the baker " * 60))
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "try again later" in (refused.value.details() or "")
    status = rpc_status.from_call(refused.value)  # pyright: ignore[reportArgumentType]
    retry = error_details_pb2.RetryInfo()
    assert status is not None
    assert status.details[0].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() > 0
    refused_ms = (time.perf_counter() - queued) * 1000
    leave.set()
    _, reply = await asyncio.gather(busy, waiting)
    assert refused_ms < reply.queue_ms < (time.perf_counter() - asked) * 1000


async def _await(call: Any) -> Any:
    return await call


@pytest.mark.asyncio
async def test_health_says_serving_until_it_stops(home: Path) -> None:
    address = f"unix:{home}/other"
    process = InferenceProcess(ServeSettings(home=home, listen=address))
    await process.start()
    async with grpc.aio.insecure_channel(address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        await process.stop()
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.mark.asyncio
async def test_the_process_serves_and_ends_on_sigterm(home: Path) -> None:
    address = f"unix:{home}/process"
    environment = os.environ | {"CROSSCOPE_HOME": str(home), "CROSSCOPE_WORKER_LISTEN": address}
    command = (sys.executable, "-m", "crosscope_worker", "serve")
    process = await asyncio.create_subprocess_exec(*command, env=environment, stderr=asyncio.subprocess.PIPE)
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            stub = inference_pb2_grpc.InferenceStub(channel)
            reply = await stub.Encode(encode_request("secret"), wait_for_ready=True, timeout=PATIENCE_S)
            assert reply.code.row_starts
            process.send_signal(signal.SIGTERM)
            _, stderr = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
    assert b"secret" not in stderr
    events = [json.loads(line)["event"] for line in stderr.splitlines() if line.startswith(b"{")]
    assert events == ["serving", "loaded a crosscoder", "stopping"]


def test_an_address_in_use_is_reported_in_one_sentence(home: Path) -> None:
    async def twice() -> None:
        first = InferenceProcess(ServeSettings(home=home, listen="127.0.0.1:0", allow_anyone=True))
        port = await first.start()
        second = InferenceProcess(ServeSettings(home=home, listen=f"127.0.0.1:{port}", allow_anyone=True))
        try:
            await second.start()
        finally:
            await first.stop()
            await second.stop()

    with pytest.raises(StartError, match=r"cannot listen at 127\.0\.0\.1"):
        asyncio.run(twice())
