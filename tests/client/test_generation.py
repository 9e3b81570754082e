"""Generations as they come: order, codes, leaving early, errors, both kinds of client."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import aclosing

import numpy as np
import pytest
from fixtures_waiting import PATIENCE_S

from crosscope import (
    Arm,
    AsyncClient,
    Client,
    DeadlineExceeded,
    InvalidInput,
    LeftOut,
    NewToken,
    NotFound,
    ServerError,
    Steer,
    TokenRole,
)
from crosscope._html import MAX_ALPHA
from crosscope_proto.v1 import effects_pb2

from .conftest import Served
from .scripted_effects import NamedLatents, ScriptedEffects
from .test_html import HOSTILE, Seen

HI = [{"role": "user", "content": "hi"}]
BOTH = [Arm(model="base"), Arm(steer=Steer(latent=7, add=4))]


@pytest.fixture
def effects() -> ScriptedEffects:
    return ScriptedEffects()


@pytest.fixture
def client(serve: Callable[..., Served], effects: ScriptedEffects) -> Iterator[Client]:
    with Client(serve(NamedLatents(), effects).address, timeout_s=20) as client:
        yield client


def test_tokens_come_one_by_one_and_the_answer_is_whole(client: Client) -> None:
    generation = client.crosscoder("demo").generate("abc")
    assert generation.prompt.pieces == ("<bos>", "a", "b", "c")
    assert repr(generation) == "Generation(chat: 0 tokens, under way)"
    tokens = iter(generation)
    assert next(tokens) == NewToken(0, 0, ord("n"), "n", -0.5, TokenRole.ASSISTANT)
    assert [answer.reason for answer in generation.received] == ["under_way"]
    assert [token.piece for token in tokens] == ["o"]
    assert [token.piece for token in generation] == ["n", "o"], "a second time, those that have come"
    (answer,) = generation.answers
    assert (answer.text, answer.reason, answer.sample, answer.code) == ("no", "turn_end", 0, None)
    assert (answer.tokens.ids, answer.tokens.roles) == ((ord("n"), ord("o")), (TokenRole.ASSISTANT,) * 2)
    assert answer.log_probabilities.tolist() == [-0.5, -1.0]
    assert generation.text == str(generation) == "no"
    assert repr(generation) == "Generation(chat: 2 tokens, ended)"


def test_arms_and_samples_keep_apart(client: Client, effects: ScriptedEffects) -> None:
    generation = client.crosscoder("demo").generate("abc", arms=BOTH, num_samples=2, seed=5)
    assert [(t.arm, t.sample, t.piece) for t in generation][:5] == [
        *((0, 0, "y"), (0, 1, "y"), (1, 0, "n"), (1, 1, "n"), (0, 0, "e")),
    ]
    found = [
        (each.arm_index, each.sample, each.text, each.num_changed, each.num_left_out) for each in generation.answers
    ]
    assert found == [(0, 0, "yes", 0, 0), (0, 1, "yes", 0, 0), (1, 0, "no", 4, 1), (1, 1, "no", 4, 1)]
    assert generation.ended == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert [arm.sampling.seed for arm in effects.last.arms] == [5, 5]
    with pytest.raises(InvalidInput, match="has 4 answers; read"):
        _ = generation.text
    text = str(generation)
    assert text.startswith("prompt: <bos>abc\n\n── base ──\nyes\n(3 tokens; the model ended its turn.)")
    assert "── chat, 7 add 4, sample 1 ──\nno" in text
    assert "Changed at 4 tokens. Left alone at 1 that training left out" in text


def test_the_same_arm_twice_is_two_answers(client: Client) -> None:
    arm = Arm(model="base")
    generation = client.crosscoder("demo").generate("abc", arms=[arm, arm])
    assert [(each.arm_index, each.text) for each in generation.answers] == [(0, "yes"), (1, "yes")]
    assert generation._repr_html_().count('<td style="vertical-align:top"><div') == 2


def test_printing_reads_to_the_end(client: Client) -> None:
    assert str(client.crosscoder("demo").generate("abc", model="base")) == "yes"
    assert "yes" in "".join(Seen(client.crosscoder("demo").generate("abc", model="base")._repr_html_()).texts)


def test_what_is_sent(client: Client, effects: ScriptedEffects) -> None:
    demo = client.crosscoder("demo")
    demo.generate(messages=HI, with_code=True, top_k=3, max_new_tokens=7).close()
    sent = effects.last
    assert isinstance(sent, effects_pb2.GenerateRequest)
    assert (sent.crosscoder, sent.pair, sent.with_code, sent.top_k) == ("demo", "", True, 3)
    assert sent.prompt.conversation.add_generation_prompt, "an answer is what is wanted"
    assert sent.arms[0] == effects_pb2.Arm(
        model=effects_pb2.MODEL_CHAT, sampling=effects_pb2.Sampling(max_new_tokens=7, num_samples=1)
    )
    demo.generate(messages=HI, add_generation_prompt=False).close()
    assert not effects.last.prompt.conversation.add_generation_prompt
    demo.generate(token_ids=[2, 17]).close()
    assert list(effects.last.prompt.token_ids.ids) == [2, 17]
    client.pair("demo").generate("abc").close()
    assert (effects.last.crosscoder, effects.last.pair) == ("", "demo")
    with pytest.raises(InvalidInput, match="top_k: goes with with_code"):
        demo.generate("abc", top_k=3)


def test_generate_then_highlight(client: Client) -> None:
    answer = client.crosscoder("demo").generate("abc", model="base", with_code=True).answers[0]
    code = answer.code
    assert code is not None
    assert code.tokens.pieces == ("<bos>", "a", "b", "c", "y", "e", "s")
    assert [code.top(t) for t in range(7)] == [
        *([(3, 0.5)], [(1, 1), (3, 0.5)], [(2, 2), (3, 0.5)], [(3, 3)]),
        *([(9, 1.5), (3, 0.5)], [(9, 41.5), (3, 0.5)], []),
    ]
    assert code.tokens.role_name(0) == "bos, left out: bos"
    assert np.isnan(code.compute_ms)
    assert code.latent_values(9).tolist() == [0, 0, 0, 0, 1.5, 41.5, 0]
    spans = [a for tag, a in Seen(answer._repr_html_()).tags if tag == "span"]
    assert spans[0]["title"] == "token 0, assistant: log p −0.5; latent 9: 1.5, latent 3: 0.5"
    assert spans[2]["title"] == "token 2, assistant: log p −1.5; no latent"


def test_new_tokens_that_training_left_out_are_marked(client: Client) -> None:
    demo = client.crosscoder("demo")
    generation = demo.generate("abc", model="base", with_code=True)
    assert [token.left_out for token in generation] == [LeftOut.KEPT, LeftOut.NORM, None]
    (answer,) = generation.answers
    assert answer.code is not None
    assert answer.tokens.left_out == (LeftOut.KEPT, LeftOut.NORM, LeftOut.KEPT)
    assert answer.code.tokens.left_out == (LeftOut.BOS, *[LeftOut.KEPT] * 4, LeftOut.NORM, LeftOut.KEPT)
    assert answer.code.to_pandas()["left_out"].tolist()[-3:] == ["kept", "norm", "norm"]
    first, second, _ = (a for tag, a in Seen(answer._repr_html_()).tags if tag == "span")
    assert second["title"].startswith("token 1, assistant, left out: norm: log p −1")
    assert (second["class"], "class" in first) == ("left-out", False)
    assert f"{MAX_ALPHA:.3f}" in first["style"], "a token that was left out sets no scale"
    plain = demo.generate("abc", model="base")
    assert [token.left_out for token in plain] == [None] * 3
    assert plain.answers[0].tokens.left_out == ()


def test_side_by_side_in_a_notebook(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    from . import scripted_effects

    monkeypatch.setitem(scripted_effects.ANSWERS, effects_pb2.MODEL_BASE, HOSTILE[1:4])
    arms = [Arm(model="base", name="<b>base</b>"), Arm()]
    seen = Seen(client.crosscoder("demo").generate("</div><b>", arms=arms)._repr_html_())
    allowed = {"style", "div", "small", "span", "table", "thead", "tbody", "tr", "th", "td"}
    assert {tag for tag, _ in seen.tags} <= allowed
    assert [tag for tag, _ in seen.tags].count("th") == 2
    for text in ("<b>base</b>", "<script>alert(1)</script>", '" onmouseover="x', "a↵\nb"):
        assert text in seen.texts


@pytest.mark.parametrize("leave", ["break", "close", "with", "drop"])
def test_leaving_early_cancels_the_call(client: Client, effects: ScriptedEffects, leave: str) -> None:
    generation = client.crosscoder("demo").generate("wait")
    if leave == "with":
        with generation:
            pass
    elif leave == "close":
        generation.close()
        generation.close()
    elif leave == "drop":
        del generation
        assert effects.left.wait(PATIENCE_S)
        return
    else:
        for _ in generation:
            break
    assert effects.left.wait(PATIENCE_S)
    (answer,) = generation.answers
    assert (answer.text, answer.reason) == ("n" if leave == "break" else "", "cancelled")
    assert "the caller left" in answer.remarks[0]


def test_errors_are_raised_where_tokens_are_read(client: Client) -> None:
    generation = client.crosscoder("demo").generate("fail")
    tokens = iter(generation)
    assert next(tokens).piece == "n"
    with pytest.raises(ServerError, match="the worker died"):
        next(tokens)
    with pytest.raises(ServerError, match="the worker died"):
        _ = generation.answers
    assert [answer.text for answer in generation.received] == ["n"]
    with pytest.raises(ServerError, match="ended before 2 of 2 answers of demo did"):
        client.crosscoder("demo").generate("cut", num_samples=2).answers  # noqa: B018
    with pytest.raises(NotFound, match="nosuch"):
        client.crosscoder("nosuch")


def test_a_generation_may_take_ten_times_as_long(serve: Callable[..., Served], effects: ScriptedEffects) -> None:
    with Client(serve(NamedLatents(), effects).address, timeout_s=0.05) as client:
        with pytest.raises(DeadlineExceeded, match=r"within 0\.5 s"):
            _ = client.pair("demo").generate("wait").text
        assert 0.05 < effects.deadline_s <= 0.5
        client.pair("demo").compare("ab")


async def test_asynchronously(client: Client, effects: ScriptedEffects) -> None:
    async with AsyncClient(client.address) as asking:
        demo = await asking.crosscoder("demo")
        generation = await demo.generate("abc", arms=BOTH)
        assert [token.piece async for token in generation] == ["y", "n", "e", "o", "s"]
        assert [answer.text for answer in await generation.answers] == ["yes", "no"]
        waiting = await demo.generate("wait")
        assert str(waiting) == "", "what is printed in an event loop does not wait"
        assert "more is to come" in waiting._repr_html_()
        async with aclosing(aiter(waiting)) as tokens:  # pyright: ignore[reportArgumentType]
            assert (await anext(tokens)).piece == "n"
        assert await asyncio.to_thread(effects.left.wait, 5)
        assert [answer.reason for answer in await waiting.answers] == ["cancelled"]
        many = await asyncio.gather(*(demo.generate("abc", model="base") for _ in range(5)))
        assert await asyncio.gather(*(each.text for each in many)) == ["yes"] * 5
        task = asyncio.create_task((await demo.generate("wait")).answers)  # pyright: ignore[reportArgumentType]
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(effects.left.wait, 5)
