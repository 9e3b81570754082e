"""Compare, attribute, explain and contrast: what is sent, what is read, and how it shows."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from crosscope import (
    AsyncClient,
    Client,
    Comparison,
    Estimate,
    InvalidInput,
    LatentEffect,
    NextToken,
    NotFound,
    ServerError,
    TokenRole,
    Tokens,
    VersionGone,
)
from crosscope._decode_effects import comparison as decoded
from crosscope._tables import UNDEFINED
from crosscope_proto.v1 import effects_pb2, prompts_pb2

from .conftest import Served
from .scripted_effects import NamedLatents, ScriptedEffects
from .test_html import HOSTILE, Seen, hostile_tokens

ALLOWED = {"style", "div", "small", "span", "table", "thead", "tbody", "tr", "th", "td"}


@pytest.fixture
def effects() -> ScriptedEffects:
    return ScriptedEffects()


@pytest.fixture
def client(serve: Callable[..., Served], effects: ScriptedEffects) -> Iterator[Client]:
    with Client(serve(NamedLatents(), effects).address, timeout_s=20) as client:
        yield client


def test_compare(client: Client) -> None:
    found = client.crosscoder("demo").compare("abcd", top_n=2)
    assert (found.source, found.version_id, len(found), found.compute_ms) == ("demo", "v1", 5, 3.0)
    assert found.kl_chat_base.tolist() == [0, 0.5, 1, 1.5, 2]
    assert found.kl_base_chat.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert found.chat.log_probabilities.tolist()[:4] == [0, -1, -2, -3]
    assert np.isnan(found.base.log_probabilities[-1])
    assert found.base.ranks.tolist() == [1, 2, 3, 4, 0]
    assert found.chat.top_ids.tolist() == [[100, 101]] * 5
    assert found.next_tokens(-1).base == (NextToken(100, "<0>", -0.5), NextToken(101, "<1>", -1.0))
    assert found.next_tokens(0).chat[0].probability == pytest.approx(np.exp(-1))
    assert (found.base.error_norms.tolist(), found.chat.error_norms.tolist()) == ([], [0.5] * 5)
    assert found.most_different(2) == [4, 3]
    frame = found.to_pandas()
    assert frame["kl_chat_base"].tolist() == found.kl_chat_base.tolist()
    assert frame["left_out"].tolist() == ["bos", *["kept"] * 4]
    assert np.isnan(frame["base_error_norm"]).all()
    assert found.rows([4]) == [("4", "d", "text", "2", "<0> 61%  <1> 37%", "<0> 37%  <1> 14%")]
    assert str(found).splitlines()[-1].split() == [
        "4",
        "d",
        "text",
        "2",
        "<0>",
        "61%",
        "<1>",
        "37%",
        "<0>",
        "37%",
        "<1>",
        "14%",
    ]
    with pytest.raises(IndexError, match="outside the 5 tokens"):
        found.next_tokens(5)


def test_compare_of_a_pair_and_without_next_tokens(client: Client, effects: ScriptedEffects) -> None:
    found = client.pair("demo").compare("ab", top_n=0)
    assert isinstance(effects.last, effects_pb2.CompareRequest)
    assert (effects.last.crosscoder, effects.last.pair, effects.last.top_n) == ("", "demo", 0)
    assert (found.source, found.version_id, found.next_tokens(0).base) == ("demo", "", ())
    assert "base next –; chat next –" in found._repr_html_()
    with pytest.raises(NotFound, match="no pair 'nowhere'"):
        client.pair("nowhere").compare("ab")
    with pytest.raises(InvalidInput, match="top_n"):
        client.pair("demo").compare("ab", top_n=-1)


def test_the_strip_is_coloured_by_kl_and_hostile_texts_stay_texts(client: Client) -> None:
    found = client.crosscoder("demo").compare("abcde", top_n=1)
    pieces = {100: '"><script>x</script>'}
    seen = Seen(replace(found, tokens=hostile_tokens(), pieces=pieces, source="<b>demo</b>")._repr_html_())
    assert {tag for tag, _ in seen.tags} <= ALLOWED
    spans = [attributes for tag, attributes in seen.tags if tag == "span"]
    assert spans[5]["title"] == (
        'token 5, text: KL(chat‖base) 2.5 nats; base next "><script>x</script> 61%; chat next "><script>x</script> 37%'
    )
    assert "0.450" in (spans[5]["style"] or "")
    assert "0.090" in (spans[1]["style"] or "")
    assert "rgba" not in (spans[0]["style"] or "")
    for piece in HOSTILE:
        assert piece.replace("\n", "↵\n") in seen.texts


def test_tokens_that_differ_most_without_the_template() -> None:
    roles = ["BOS", "HEADER", "HEADER", "USER", "TURN_END", "HEADER", "HEADER"]
    num = len(roles)
    tokens = Tokens(tuple(range(num)), ("x",) * num, tuple(TokenRole[role] for role in roles))
    empty = effects_pb2.ModelPredictions(log_probabilities=[0] * num, ranks=[0] * num, entropies=[0] * num)
    kl = [9, 8, 7, 1, 6, 5, 2]
    message = effects_pb2.CompareResponse(kl_chat_base=kl, kl_base_chat=[0] * num, base=empty, chat=empty)
    message.tokens.ids.extend(range(num))
    found = replace(decoded(message, "demo"), tokens=tokens)
    assert found.most_different(3) == [0, 1, 2]
    assert found.most_different(9, skip_template_tokens=True) == [6, 3], "the last header token is where chat decides"
    answered = replace(tokens, roles=(*tokens.roles[:-1], TokenRole.ASSISTANT))
    assert replace(found, tokens=answered).most_different(9, skip_template_tokens=True) == [5, 6, 3]
    nan = replace(found, kl_chat_base=np.array([1, np.nan, 3, 0, 0, 0, 0], dtype=np.float32))
    assert nan.most_different(2) == [2, 0]


def test_a_comparison_that_does_not_fit_its_tokens_is_an_error() -> None:
    message = effects_pb2.CompareResponse(kl_chat_base=[1.0])
    with pytest.raises(ServerError, match="do not fit its 0 tokens"):
        decoded(message, "demo")


def test_attribute(client: Client, effects: ScriptedEffects) -> None:
    found = client.crosscoder("demo").attribute("abcd", num_exact=2, limit=50)
    sent = effects.last
    assert isinstance(sent, effects_pb2.AttributeRequest)
    assert (sent.num_exact, sent.limit, sent.model, list(sent.tokens)) == (2, 50, effects_pb2.MODEL_CHAT, [])
    assert 20 < effects.deadline_s < 210
    assert (found.value, found.explained, found.num_latents, len(found)) == (2.0, (4,), 5, 3)
    assert [(e.latent, e.effect, e.share, e.estimate) for e in found] == [
        *((7, 1.5, 0.75, 1.25), (8, -0.5, -0.25, -0.25), (3, None, None, 0.25)),
    ]
    assert found.estimates(7).tolist() == [0, 1.25, 0, 0, 0]
    assert found.estimates(3).tolist() == [0.25, 0, 0, 0, 0]
    with pytest.raises(LookupError, match="latent 99 is not among the 3"):
        found.estimates(99)
    assert found.rows()[0] == ("7", "carries", "1.5", "75%", "1.25", "2", "4", "1 a")
    assert [row[1] for row in found.rows()] == ["carries", "works against", "~carries"]
    assert found.rows()[2][2:4] == (UNDEFINED, UNDEFINED)
    assert found.to_pandas()["peak_piece"].tolist() == ["a", "b", "<bos>"]
    text = str(found)
    assert text.splitlines()[0] == 'KL(chat‖base) at "d" (4) = 2 nats'
    for said in (
        "All 5 latents that fire, taken out of chat together, carry 60%.",
        "The whole streams of base at this layer, put into chat, carry 90%.",
        "The other 10% arise above the layer",
        "1 of 3 latents are estimated only (~)",
        "2 latents are not listed",
        "1 token was left alone",
    ):
        assert said in text
        assert said in found._repr_html_()
    assert {tag for tag, _ in Seen(found._repr_html_()).tags} <= ALLOWED


def test_attribute_at_tokens_and_between_continuations(client: Client, effects: ScriptedEffects) -> None:
    demo = client.crosscoder("demo")
    assert demo.attribute("abcd", tokens=2).explained == (2,)
    assert demo.attribute("abcd", tokens=[-1, 0]).explained == (4, 0)
    found = demo.attribute("abcd", first=" yes", second=" no", model="base")
    assert isinstance(effects.last, effects_pb2.AttributeRequest)
    assert (effects.last.continuations.first, effects.last.model) == (" yes", effects_pb2.MODEL_BASE)
    assert found.figure == "log p(' yes') - log p(' no') in base = 2 nats"
    refused: list[tuple[dict[str, Any], str]] = [
        ({"first": "a"}, "second: first and second go together"),
        ({"second": "a"}, "first: first and second go together"),
        ({"first": "a", "second": ""}, "second: is empty"),
        ({"first": "a", "second": "b", "tokens": 1}, "tokens: go with a KL"),
        ({"tokens": []}, "tokens: is empty"),
        ({"tokens": [-6]}, "token -6 is outside the 5 tokens"),
        ({"tokens": ["1"]}, "tokens: a whole number"),
        ({"model": "both"}, "model: must be one of 'base', 'chat'"),
        ({"limit": 0}, "limit: must be 1"),
    ]
    for asked, says in refused:
        with pytest.raises(InvalidInput, match=says):
            demo.attribute("abcd", **asked)


def test_what_works_against_a_difference_is_said(client: Client) -> None:
    found = client.crosscoder("demo").attribute("abcd", model="base")
    assert [row[:2] for row in found.rows()] == [
        *(("9", "carries"), ("8", "carries"), ("5", "works against"), ("7", "works against")),
    ]
    assert "All 5 latents that fire, put into base together, work against it, and it grows by 25%." in str(found)
    # A log-probability difference below 0: what makes it smaller in size carries it.
    below = replace(found, value=-2.0, effect_of_all=0.5)
    assert [row[1] for row in below.rows()] == ["works against", "works against", "carries", "carries"]
    assert "together, work against it, and it grows by 25%." in str(below)
    wide = replace(found, effect_of_stream=float("nan"))
    assert "have different widths" in str(wide)
    assert "nan" not in str(wide)
    assert "together, change it by −0.5 nats" in str(replace(found, value=0.0))


def test_attribute_both_merges_by_latent(client: Client, effects: ScriptedEffects) -> None:
    """Of each latent the larger share counts: .875, .75, .25, an estimated .125, and -.25, which carries nothing."""
    found = client.crosscoder("demo").attribute_both("abcd", tokens=[-1], num_exact=16)
    assert sorted(effects.models) == [effects_pb2.MODEL_BASE, effects_pb2.MODEL_CHAT]
    assert (effects.last.num_exact, effects.last.limit, list(effects.last.tokens)) == (16, 16, [4])
    shares = [
        (each.latent, each.transplant and each.transplant.share, each.ablation and each.ablation.share)
        for each in found
    ]
    assert shares == [(9, 0.875, None), (7, -0.125, 0.75), (8, 0.25, -0.25), (3, None, 0.125), (5, -0.25, None)]
    assert [each.latent for each in found.carrying] == [9, 7, 8, 3]
    assert (found[1].strongest, found[2].strongest) == (found[1].ablation, found[2].transplant)
    assert found[1].ablation == LatentEffect(effect=1.5, share=0.75, measured=True, peak_token=1)
    assert (found.ablation.model, found.transplant and found.transplant.model) == ("chat", "base")
    assert found.rows() == [
        *(("9", "88%", "–"), ("7", "−12%", "75%"), ("8", "25%", "−25%"), ("3", "–", "~12%"), ("5", "−25%", "–")),
    ]
    assert [each.words for each in found[:4]] == [
        "put into base it makes up 88% of the difference; taken out of chat it was not measured",
        "put into base it makes the difference 12% larger; without it in chat 75% of the difference goes",
        "put into base it makes up 25% of the difference; without it in chat the difference is 25% larger",
        "put into base it was not measured; without it in chat an estimated 12% of the difference goes",
    ]
    said = str(found)
    assert "put into base together, work against it, and it grows by 25%. The whole streams" in said
    assert "taken out of chat together, carry 60%." in said
    assert "3 of the 5 latents listed have no figure (–) in one of the models" in said
    frame = found.to_pandas()
    assert frame["transplant_effect"].tolist()[:2] == [1.75, -0.25]
    assert np.isnan(frame["ablation_share"].astype(float)).tolist() == [True, False, False, False, True]
    seen = Seen(found._repr_html_())
    assert {tag for tag, _ in seen.tags} <= ALLOWED
    assert "−12%" in seen.texts
    with pytest.raises(InvalidInput, match="num_exact: must be 1"):
        client.crosscoder("demo").attribute_both("abcd", tokens=1, num_exact=0)


def test_explain(client: Client, effects: ScriptedEffects) -> None:
    found = client.crosscoder("demo").explain("abcd", num_tokens=2, limit=3)
    assert isinstance(effects.last, effects_pb2.AttributeRequest)
    assert (effects.last.num_exact, effects.last.limit, list(effects.last.tokens)) == (32, 32, [3])
    assert len(effects.models) == 4, "both models at two tokens"
    assert [(e.token, e.piece, e.latent, e.strongest.share) for e in found] == [
        *((4, "d", 9, 0.875), (4, "d", 7, 0.75), (4, "d", 8, 0.25)),
        *((3, "c", 9, 0.875), (3, "c", 7, 0.75), (3, "c", 8, 0.25)),
    ]
    assert found.sentences[1] == (
        'At "d" (token 4, KL 2 nats) latent 7 (peaks: "▁cannot", "<i>7</i>"): put into base it makes the difference '
        "12% larger; without it in chat 75% of the difference goes."
    )
    assert found.sentences[0].endswith("it makes up 88% of the difference; taken out of chat it was not measured.")
    assert found.rows()[1] == ("4", "d", "2", "7", "−12%", "75%", "▁cannot <i>7</i>")
    assert "1 of 5 latents listed carry nothing in either model." in str(found), "with latent 5 they differ more"
    assert "Others that carry some of it: 1;" in str(found)
    assert found.passed_over == ()
    assert "do not add up" in str(found)
    for said in ("carry 90%. The other 10% arise above the layer", "carry 95%. The other 5% arise above the layer"):
        assert said in str(found), "the whole streams of both models"
    assert found.to_pandas()["sentence"].tolist() == found.sentences
    assert found.to_pandas()["ablation_share"].tolist()[1] == 0.75
    seen = Seen(found._repr_html_())
    assert {tag for tag, _ in seen.tags} <= ALLOWED
    assert "▁cannot <i>7</i>" in seen.texts
    least = client.explain("demo", "abcd", num_tokens=1, limit=1)
    assert [each.latent for each in least] == [9]
    with pytest.raises(InvalidInput, match="limit: is 513, but at most 512 latents"):
        client.explain("demo", "abcd", limit=513)


def test_where_base_cannot_take_chat_s_rows_ablation_stands_alone(client: Client) -> None:
    found = client.explain("demo", "alone", num_tokens=2)
    assert [each.transplant for each in found.attributions] == [None, None]
    assert [(each.latent, each.transplant) for each in found[:2]] == [(7, None), (3, None)]
    assert found.rows()[0][4:6] == ("–", "75%")
    said = "Nothing was put into base: this crosscoder reads chat alone"
    assert str(found).count(said) == 1, "once, not at every token"
    assert "have no figure (–)" not in str(found)
    assert said in str(found.attributions[0])


def test_what_an_explanation_passes_over_is_said(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def header_at_the_end(self: ScriptedEffects, prompt: Any) -> Any:
        tokens = self.tokens(prompt)
        tokens.roles[-2] = TokenRole.TURN_END.value
        tokens.left_out.extend([1, 0, 0, 3, 0][: len(tokens.ids)])
        return tokens

    monkeypatch.setattr(ScriptedEffects, "prompt_tokens", header_at_the_end)
    demo = client.crosscoder("demo")
    found = demo.explain("abcd", num_tokens=2)
    assert [each.ablation.explained for each in found.attributions] == [(4,), (2,)]
    assert found.passed_over == (3,)
    assert 'Passed over, though the models differ more there: "c" (token 3, 1.5 nats).' in str(found)
    everything = demo.explain("abcd", num_tokens=2, skip_template_tokens=False, include_left_out=True)
    assert [each.ablation.explained for each in everything.attributions] == [(4,), (3,)]
    assert "Passed over" not in str(everything)


def test_contrast(client: Client, effects: ScriptedEffects) -> None:
    messages = [{"role": "user", "content": "hi"}]
    first = ["a", messages, {"stored_text": 3}, "d", "e"]
    demo, second = client.crosscoder("demo"), ("v", "w", "x", "y", "z")
    found = demo.contrast(first, second, limit=7, seed=2, add_generation_prompt=True)
    sent = effects.last
    assert isinstance(sent, prompts_pb2.ContrastRequest)
    assert (sent.limit, sent.seed, sent.first[2].stored_text.sequence_id) == (7, 2, 3)
    assert sent.first[1].conversation.add_generation_prompt
    assert (found.num_first, found.num_second, [place.place for place in found]) == (5, 5, ["decision", "within"])
    (entry,) = found["decision"]
    assert (entry.latent, str(entry.auc), entry.p_value) == (7, str(Estimate(1.0, 0.01)), pytest.approx(0.05))
    assert found["decision"].heading == ("decision: held-out AUC 0.9 ± 0.05, by chance 0.5 (20 shuffles, 30 latents)")
    assert found["within"].heading.endswith("; 2 prompts have no token that is scored here")
    assert (found["within"].num_without_token, found.num_repeats) == (2, 1)
    assert "; 1 repeat is not counted" in str(found)
    assert "no latent" in str(found)
    assert found.to_pandas()[["place", "latent", "auc"]].values.tolist() == [["decision", 7, 1.0]]
    assert {tag for tag, _ in Seen(found._repr_html_()).tags} <= ALLOWED
    with pytest.raises(KeyError, match="there are decision, within"):
        found["middle"]
    with pytest.raises(InvalidInput, match=r"second\[1\]: text: is empty"):
        demo.contrast(["a"], ["b", ""])
    with pytest.raises(InvalidInput, match="first: a list is needed"):
        demo.contrast("abc", ["b"])


def test_another_version_than_the_handle_s_is_an_error(client: Client) -> None:
    demo = client.crosscoder("demo")
    pinned = type(demo)(demo._transport, replace(demo.info, version_id="v0"))
    for call in (
        lambda: pinned.compare("a"),
        lambda: pinned.attribute("a"),
        lambda: pinned.contrast(["a"], ["b"]),
        lambda: pinned.generate("a"),
    ):
        with pytest.raises(VersionGone, match="asked for version v0"):
            call()


async def test_both_clients_have_the_same_answers(client: Client) -> None:
    async with AsyncClient(client.address) as asking:
        here, there = client.crosscoder("demo"), await asking.crosscoder("demo")
        assert str(await there.compare("abcd")) == str(here.compare("abcd"))
        assert str(await there.attribute("abcd", tokens=-1)) == str(here.attribute("abcd", tokens=-1))
        assert str(await there.attribute_both("abcd", tokens=1)) == str(here.attribute_both("abcd", tokens=1))
        assert str(await asking.explain("demo", "abcd")) == str(client.explain("demo", "abcd"))
        assert str(await there.contrast(["a"], ["b"])) == str(here.contrast(["a"], ["b"]))
        assert isinstance(await (await asking.pair("demo")).compare("ab"), Comparison)
