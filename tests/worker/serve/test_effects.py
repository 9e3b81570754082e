"""Compare, Generate and Attribute from the public service to the real worker, with a tiny pair and a crosscoder."""

import asyncio
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
import pytest_asyncio
import torch
from fixtures_serve import LATENTS, LAYER, VERSION, random_crosscoder, write_version
from fixtures_waiting import PATIENCE_S

from crosscope import AsyncClient, AsyncCrosscoder, InvalidInput
from crosscope._decode import crosscoder_info
from crosscope_proto.v1 import effects_pb2, latents_pb2, prompts_pb2, types_pb2
from crosscope_worker.dictionary.streams import STREAMS
from crosscope_worker.models.activations import PairActivations
from crosscope_worker.models.pair import Pair, decoder_layers
from crosscope_worker.serve.loading import storage_bytes
from crosscope_worker.tokenizer.tokens import TextTokenizer
from tests.worker.serve.online import (
    ABLATE,
    ADD,
    SWAP,
    TEXT,
    Online,
    arm,
    change,
    collected,
    generation,
    prompt,
    refused,
    run_online,
    texts,
)

pytestmark = pytest.mark.asyncio
INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest_asyncio.fixture
async def online(home: Path) -> AsyncIterator[Online]:
    async with run_online(home, max_prompt_tokens=200, prefill_tokens=32) as running:
        yield running


async def test_compare_with_a_crosscoder_and_with_a_pair_alone(online: Online, tiny_pair: Pair) -> None:
    reply, alone = await asyncio.gather(
        online.prompts.Compare(effects_pb2.CompareRequest(crosscoder="demo", prompt=prompt(), top_n=3)),
        online.prompts.Compare(effects_pb2.CompareRequest(pair="tiny", prompt=prompt())),
    )
    ids = torch.from_numpy(TextTokenizer(tiny_pair.tokenizer).text(TEXT).ids)[None]
    with torch.inference_mode():
        base, chat = (model(ids).logits[0].log_softmax(-1) for model in tiny_pair.models)
    expected = (chat.exp() * (chat - base)).sum(-1).numpy()
    np.testing.assert_allclose(reply.kl_chat_base, expected, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(alone.kl_chat_base, expected, rtol=1e-3, atol=1e-6)
    x = PairActivations(tiny_pair, LAYER)(ids, torch.tensor([ids.shape[1]]))[0]
    np.testing.assert_allclose(reply.difference_norms, (x[:, 32:] - x[:, :32]).norm(dim=1).numpy(), rtol=1e-4)
    assert (reply.top_n, alone.top_n, len(reply.chat.top_ids)) == (3, 5, 3 * ids.shape[1])
    assert list(reply.chat.top_ids[:3]) == chat[0].topk(3).indices.tolist()
    assert set(reply.pieces) == {*reply.base.top_ids, *reply.chat.top_ids}
    assert list(reply.tokens.left_out) == [0] * ids.shape[1]
    assert (reply.version_id, alone.version_id) == (VERSION, "")
    assert not alone.difference_norms
    assert not alone.tokens.left_out
    assert math.isnan(reply.base.log_probabilities[-1])


async def test_layers_above_are_loaded_for_the_calls_that_need_them(home: Path, tiny_pair: Pair) -> None:
    """The crosscoder reads the third of four layers. A worker with no memory for the fourth encodes all the same."""
    encode = prompts_pb2.EncodeRequest(crosscoder="demo", prompt=prompt())
    compare = effects_pb2.CompareRequest(crosscoder="demo", prompt=prompt())
    top = storage_bytes(p for model in tiny_pair.models for p in decoder_layers(model)[LAYER + 1 :].parameters())
    async with run_online(home) as online:
        before = await online.prompts.Encode(encode)
        await online.prompts.Tokenize(prompts_pb2.TokenizeRequest(crosscoder="demo", prompt=prompt("the fox")))
        lower_bytes = online.process.models.used_bytes
        expected = await online.prompts.Compare(compare)
        assert online.process.models.used_bytes == lower_bytes + top
        await collected(online.prompts.Generate(generation()))
        again = await online.prompts.Encode(prompts_pb2.EncodeRequest(crosscoder="demo", prompt=prompt(f"{TEXT} ")))
    ids = torch.from_numpy(TextTokenizer(tiny_pair.tokenizer).text(TEXT).ids)[None]
    with torch.inference_mode():
        base, chat = (model(ids).logits[0].log_softmax(-1) for model in tiny_pair.models)
    np.testing.assert_allclose(expected.kl_chat_base, (chat.exp() * (chat - base)).sum(-1), rtol=1e-3, atol=1e-6)
    shared = before.code.row_starts[-1]
    assert again.code.latents[:shared] == before.code.latents
    async with run_online(home, max_model_bytes=lower_bytes + top // 2) as online:
        assert (await online.prompts.Encode(encode)).code == before.code
        for call in (online.prompts.Compare(compare), online.prompts.Generate(generation())):
            code, sentence, _ = await refused(call)
            assert code == grpc.StatusCode.FAILED_PRECONDITION
            assert "crosscoder 'demo' with its whole pair takes 0.4 MB, but models may take 0.4 MB" in sentence
            assert "CROSSCOPE_WORKER_MAX_MODEL_BYTES" in sentence
        assert online.process.models.used_bytes == lower_bytes


async def test_norms_mark_what_training_left_out_in_every_call(online: Online, tiny_pair: Pair) -> None:
    ids = torch.from_numpy(TextTokenizer(tiny_pair.tokenizer).text(TEXT).ids)[None]
    x = PairActivations(tiny_pair, LAYER)(ids, torch.tensor([ids.shape[1]]))[0]
    limits = float(x[:, :32].norm(dim=1).topk(2).values.mean()), 1e9
    fields = {"norm_limits": limits, "norm_positions": (2,), "recipe": {"tokens": {"skip_bos": True}}}
    write_version(online.home, "marked", random_crosscoder(), **fields)
    encoded, compared, attributed, generated = await asyncio.gather(
        online.prompts.Encode(prompts_pb2.EncodeRequest(crosscoder="marked", prompt=prompt())),
        online.prompts.Compare(effects_pb2.CompareRequest(crosscoder="marked", prompt=prompt())),
        online.prompts.Attribute(effects_pb2.AttributeRequest(crosscoder="marked", prompt=prompt(), num_exact=1)),
        collected(online.prompts.Generate(generation(arm(change(1)), with_code=True))),
    )
    marks = list(encoded.tokens.left_out)
    assert marks.count(3) >= 2
    assert list(compared.tokens.left_out) == list(attributed.tokens.left_out) == marks
    assert generated[0].start.tokens.ids == encoded.tokens.ids
    new = [token for reply in generated for token in reply.step.tokens]
    assert [token.HasField("left_out") for token in new] == [True] * 5 + [False]
    told = types_pb2.TokenIds(ids=[*encoded.tokens.ids, *(token.id for token in new)])
    whole = await online.prompts.Encode(
        prompts_pb2.EncodeRequest(crosscoder="marked", prompt=types_pb2.Prompt(token_ids=told))
    )
    assert [token.left_out for token in new[:-1]] == list(whole.tokens.left_out)[len(marks) : -1]
    plain = await collected(online.prompts.Generate(generation(arm(), crosscoder="marked")))
    assert not any(token.HasField("left_out") for reply in plain for token in reply.step.tokens)


async def test_attribute(online: Online) -> None:
    request = effects_pb2.AttributeRequest(crosscoder="demo", prompt=prompt(), num_exact=4, limit=6)
    reply = await online.prompts.Attribute(request)
    assert (reply.version_id, len(reply.entries), len(reply.explained)) == (VERSION, 6, 1)
    compared = await online.prompts.Compare(effects_pb2.CompareRequest(crosscoder="demo", prompt=prompt()))
    assert reply.explained[0] == int(np.argmax(compared.kl_chat_base))
    assert reply.value == pytest.approx(max(compared.kl_chat_base), rel=1e-3)
    assert [entry.HasField("effect") for entry in reply.entries] == [True] * 4 + [False] * 2
    assert len(reply.row_starts) == len(reply.tokens.ids) + 1
    assert reply.row_starts[-1] == len(reply.token_entries) == len(reply.token_estimates)
    between = effects_pb2.Continuations(first=" sorry", second=" please")
    other = await online.prompts.Attribute(
        effects_pb2.AttributeRequest(crosscoder="demo", prompt=prompt(), continuations=between, num_exact=0)
    )
    assert list(other.explained) == [len(other.tokens.ids) - 1]
    assert not any(entry.HasField("effect") for entry in other.entries)


def handle(client: AsyncClient, name: str) -> AsyncCrosscoder:
    """A handle of a version without tables, which has no card."""
    card = crosscoder_info(latents_pb2.Crosscoder(name=name, version_id=VERSION))
    return AsyncCrosscoder(client._transport, card)


async def test_both_models_are_asked_and_merged_by_latent(online: Online) -> None:
    async with AsyncClient(online.front.address) as client:
        demo = handle(client, "demo")
        both = await demo.attribute_both(TEXT, tokens=-1, num_exact=8)
        for name, model in (("transplant", "base"), ("ablation", "chat")):
            alone = await demo.attribute(TEXT, tokens=-1, model=model, num_exact=8, limit=8)
            merged = {each.latent: side.effect for each in both if (side := getattr(each, name)) is not None}
            assert merged == {entry.latent: entry.effect for entry in alone}
            assert getattr(both, name).effect_of_all == alone.effect_of_all
        with pytest.raises(InvalidInput, match="no token 99 to explain"):
            await demo.attribute_both(TEXT, tokens=99)
        write_version(online.home, "alone", random_crosscoder(streams=STREAMS["chat"]))
        alone = await handle(client, "alone").attribute_both(TEXT, tokens=4)
    assert 8 < len(both) <= 16
    largest = [max(side.share for side in (each.transplant, each.ablation) if side) for each in both]
    assert largest == sorted(largest, reverse=True)
    assert both.num_in_one == 2 * (len(both) - 8)
    assert alone.transplant is None, "it has no rows that base could take"
    assert alone.refusal.startswith("this crosscoder reads chat alone, so it has no rows of two models")
    assert f"Nothing was put into base: {alone.refusal}" in str(alone)
    assert all(each.transplant is None and each.ablation and each.ablation.measured for each in alone)


async def test_a_generation_starts_streams_and_ends(online: Online) -> None:
    arms = [arm(num_samples=2, temperature=1.0, seed=3), arm(model=effects_pb2.MODEL_BASE), arm(change(1, 2, 3))]
    replies = await collected(online.prompts.Generate(generation(*arms, with_code=True, top_k=2)))
    start, places = replies[0].start, {(0, 0), (0, 1), (1, 0), (2, 0)}
    assert (start.version_id, "".join(start.tokens.pieces)) == (VERSION, f"<bos>{TEXT}")
    assert max(np.diff(start.code.row_starts)) == 2
    encoded = await online.prompts.Encode(prompts_pb2.EncodeRequest(crosscoder="demo", prompt=prompt(), top_k=2))
    assert start.code.latents == encoded.code.latents
    ends = {(each.end.arm, each.end.sample): each.end for each in replies if each.HasField("end")}
    assert ends.keys() == places == texts(replies).keys()
    assert {place: end.text for place, end in ends.items() if end.reason == effects_pb2.END_REASON_LENGTH} == {
        place: text for place, text in texts(replies).items() if ends[place].reason == effects_pb2.END_REASON_LENGTH
    }
    assert [end.num_changed > 0 for _, end in sorted(ends.items())] == [False, False, False, True]
    tokens = [token for reply in replies for token in reply.step.tokens]
    assert {len(token.latents) for token in tokens} == {0, 2}
    assert sum(not token.latents for token in tokens) == 4, "the last of each was read by no model"
    for reply in replies:
        assert len({(token.arm, token.sample) for token in reply.step.tokens}) == len(reply.step.tokens)
    again = await collected(online.prompts.Generate(generation(*arms)))
    assert texts(again) == texts(replies)


async def test_a_pair_alone_generates(online: Online) -> None:
    replies = await collected(online.prompts.Generate(generation(arm(), pair="tiny")))
    assert replies[0].start.version_id == ""
    assert texts(replies) == texts(await collected(online.prompts.Generate(generation(arm()))))


async def test_an_answer_ends_where_the_models_can_read_no_more(online: Online) -> None:
    arms = [arm(max_new_tokens=5000, temperature=3.0, num_samples=8)]
    replies = await collected(online.prompts.Generate(generation(*arms, text="river " * 95)))
    num_tokens = len(replies[0].start.tokens.ids)
    cut = [reply.end for reply in replies if reply.end.reason == effects_pb2.END_REASON_CONTEXT]
    assert cut
    assert {num_tokens + end.num_tokens for end in cut} == {257}, "256 are read, and the last predicts one more"


REFUSED = [
    (generation(arm(change(LATENTS))), "arms[0].interventions[0]", "no latent 48; this crosscoder has 48"),
    (generation(arm(), arm(change(1), change(1))), "arms[1].interventions", "two interventions change"),
    (generation(arm(change(0, action=ADD, amount=math.nan))), "amount", "finite"),
    (generation(arm(change(0, action=ADD, amount=1e9))), "amount", "less than or equal to 1000"),
    (
        generation(arm(change(0, action=ADD, amount=2.0))),
        "interventions[0]",
        "latent 0 never fired in the analysis",
    ),
    (generation(arm(*[change(0)] * 200)), "arms[0].interventions", "no more than 64 item(s), but is 200 items"),
    (generation(arm(change(1, positions=[500]))), "positions", "there is no token 500 to change: the prompt has"),
    (
        generation(arm(change(1, positions=[0], reach=effects_pb2.REACH_GENERATED))),
        "interventions[0].positions",
        "there is no token 0 to change",
    ),
    (generation(arm(change(action=ABLATE))), "interventions[0]", "every other action takes at least one"),
    (generation(arm(change(1, action=SWAP))), "interventions[0]", "swap_stream takes no latents"),
    (generation(arm(max_new_tokens=10**6)), "max_new_tokens", "less than or equal to 8192"),
    (generation(*[arm(num_samples=32)] * 3), "arms", "96 samples together, but may for at most 64"),
    (generation(*[arm()] * 9), "arms", "no more than 8 item(s)"),
    (generation(arm(stop=["x"] * 9)), "stop", "no more than 8 item(s)"),
    (generation(text=""), "prompt.text", "must be at least 1 bytes"),
    (generation(text="river " * 300), "prompt", "tokens, but this worker's limit is 200; shorten it"),
    (generation(arm(), pair="tiny", with_code=True), "with_code", "needs a crosscoder"),
    (generation(arm(change(1)), pair="tiny"), "arms[0].interventions", "change latents of a crosscoder"),
    (generation(arm(), pair="tiny", version_id="v1"), "version_id", "a pair has no versions"),
    (generation(arm(), pair="tiny", crosscoder="demo"), "", "one of the two"),
]
"""Requests, a part of the field that is named, and a part of what is said about it."""


async def test_what_a_generation_may_not_ask(online: Online) -> None:
    for request, field, says in REFUSED:
        code, sentence, violations = await refused(online.prompts.Generate(request))
        assert code is INVALID
        assert says in sentence
        assert any(field in name and says in described for name, described in violations), violations


async def test_what_compare_and_attribute_may_not_be_asked(online: Online) -> None:
    demo = {"crosscoder": "demo", "prompt": prompt()}
    both = effects_pb2.Continuations(first="a", second="b")
    for request, field, says in (
        (effects_pb2.AttributeRequest(**demo, tokens=[1, 99]), "tokens", "no token 99 to explain; the prompt has"),
        (
            effects_pb2.AttributeRequest(**demo, tokens=[1], continuations=both),
            "tokens",
            "1 tokens beside continuations",
        ),
        (effects_pb2.AttributeRequest(**demo, num_exact=10**6), "num_exact", "less than or equal to 512"),
        (
            effects_pb2.AttributeRequest(
                **demo, continuations=effects_pb2.Continuations(first="river " * 250, second="b")
            ),
            "prompt",
            "the prompt with a continuation has",
        ),
    ):
        code, sentence, violations = await refused(online.prompts.Attribute(request))
        assert (code, says in sentence) == (INVALID, True), sentence
        assert violations[0][0] == field
    stored = types_pb2.Prompt(stored_text=types_pb2.StoredText(sequence_id=1))
    for request, field in (
        (effects_pb2.CompareRequest(prompt=prompt()), ""),
        (effects_pb2.CompareRequest(**demo, top_n=51), "top_n"),
        (effects_pb2.CompareRequest(crosscoder="demo", prompt=types_pb2.Prompt()), "prompt.content"),
        (effects_pb2.CompareRequest(pair="tiny", prompt=stored), "prompt.stored_text"),
    ):
        code, _, violations = await refused(online.prompts.Compare(request))
        assert (code, violations[0][0]) == (INVALID, field)


async def test_what_does_not_exist(online: Online) -> None:
    code, sentence, _ = await refused(online.prompts.Compare(effects_pb2.CompareRequest(pair="no", prompt=prompt())))
    assert code is grpc.StatusCode.NOT_FOUND
    assert "there: tiny" in sentence
    for call in (
        online.prompts.Compare(effects_pb2.CompareRequest(crosscoder="demo", version_id="old", prompt=prompt())),
        online.prompts.Generate(generation(version_id="old")),
        online.prompts.Attribute(effects_pb2.AttributeRequest(crosscoder="demo", version_id="old", prompt=prompt())),
    ):
        code, sentence, _ = await refused(call)
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "version 'old' of demo is gone or never existed" in sentence


async def test_models_that_cannot_be_run_in_pieces_are_refused_with_their_class(
    online: Online, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with online.process.models.using("demo", VERSION, whole=True) as loaded:
        model = loaded.pair.pair.models[0]
    own = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not kwargs["input_ids"].any():  # zeros: the head alone is run
            raise TypeError("it needs its own hidden states")
        return own(*args, **kwargs)

    monkeypatch.setattr(model, "forward", forward)
    code, sentence, _ = await refused(
        online.prompts.Attribute(effects_pb2.AttributeRequest(crosscoder="demo", prompt=prompt()))
    )
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert f"Gemma2ForCausalLM cannot be run from the output of layer {LAYER} on" in sentence
    assert "it needs its own hidden states" in sentence
    assert (await online.prompts.Encode(prompts_pb2.EncodeRequest(crosscoder="demo", prompt=prompt()))).tokens.ids


async def test_a_caller_who_vanishes_frees_his_place_and_others_go_on(online: Online) -> None:
    alone = texts(await collected(online.prompts.Generate(generation(arm(max_new_tokens=40), text="the old river"))))
    endless = online.prompts.Generate(generation(arm(max_new_tokens=200, temperature=5.0, num_samples=8)))
    await endless.read()
    await endless.read()
    other = asyncio.create_task(
        collected(online.prompts.Generate(generation(arm(max_new_tokens=40), text="the old river")))
    )
    endless.cancel()
    assert texts(await other) == alone
    async with asyncio.timeout(PATIENCE_S):
        await online.process.idle()
    assert online.process.generations.num_running == 0


async def test_a_slow_reader_delays_nobody(online: Online) -> None:
    slow = online.prompts.Generate(generation(arm(max_new_tokens=100, temperature=5.0, num_samples=16)))
    await slow.read()
    replies, encoded = await asyncio.gather(
        collected(online.prompts.Generate(generation(arm(max_new_tokens=30)))),
        online.prompts.Encode(prompts_pb2.EncodeRequest(crosscoder="demo", prompt=prompt())),
    )
    assert replies[-1].HasField("end")
    assert encoded.tokens.ids
    rest = await collected(slow)
    assert sum(reply.HasField("end") for reply in rest) == 16


async def test_a_stream_beside_encode_traffic(online: Online) -> None:
    alone = texts(await collected(online.prompts.Generate(generation(arm(max_new_tokens=24)))))
    stream = asyncio.create_task(collected(online.prompts.Generate(generation(arm(max_new_tokens=24)))))
    ask = [prompts_pb2.EncodeRequest(crosscoder="demo", prompt=prompt(f"{'old ' * n}river")) for n in range(12)]
    encoded = await asyncio.gather(*(online.prompts.Encode(each) for each in ask))
    assert [len(each.tokens.left_out) for each in encoded] == [len(each.tokens.ids) for each in encoded]
    assert texts(await stream) == alone


async def test_a_worker_that_stops_lets_a_stream_end(online: Online) -> None:
    stream = online.prompts.Generate(generation(arm(max_new_tokens=20)))
    await stream.read()
    _, rest = await asyncio.gather(online.process.stop(), collected(stream))
    assert rest[-1].HasField("end")
