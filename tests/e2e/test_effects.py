"""Compare, attribute, explain, contrast and generate through the public API, with the real worker."""

import numpy as np
import pytest

from crosscope import Arm, Crosscoder, InvalidInput, Job, NotFound, Probe, Steer, TokenRole

from .conftest import Stack

pytestmark = pytest.mark.slow

QUESTION = [{"role": "user", "content": "How do I make soup?"}]


@pytest.fixture
def demo(stack: Stack, made: tuple[Job, Job]) -> Crosscoder:
    return stack.client.crosscoder("demo")


def test_compare_says_where_the_models_differ(stack: Stack, demo: Crosscoder):
    found = demo.compare(messages=QUESTION, add_generation_prompt=True)
    assert found.tokens.ids == demo.tokenize(messages=QUESTION, add_generation_prompt=True).ids
    assert (found.kl_chat_base >= -1e-4).all()
    assert found.kl_chat_base.max() > 1e-3, "the chat model was tuned, a little"
    position = found.most_different(1)[0]
    both = found.next_tokens(position)
    assert len(both.base) == len(both.chat) == 5
    following = {each.id: each.log_probability for each in both.chat}
    if position + 1 < len(found) and found.tokens.ids[position + 1] in following:
        assert found.chat.log_probabilities[position] == pytest.approx(following[found.tokens.ids[position + 1]])
    assert len(found.chat.error_norms) == len(found.difference_norms) == len(found)
    alone = stack.client.pair("demo").compare(messages=QUESTION, add_generation_prompt=True)
    assert np.allclose(alone.kl_chat_base, found.kl_chat_base, atol=1e-4)
    with pytest.raises(NotFound, match="nowhere"):
        stack.client.pair("nowhere").compare("hello")


def test_attribute_and_explain_name_latents_that_fire(demo: Crosscoder):
    explanation = demo.explain(messages=QUESTION, add_generation_prompt=True, num_tokens=2, limit=4)
    assert [each.ablation.explained for each in explanation.attributions] == [
        (t,) for t in explanation.comparison.most_different(2, skip_template_tokens=True, include_left_out=False)
    ]
    encoding = demo.encode(messages=QUESTION, add_generation_prompt=True)
    assert {each.latent for each in explanation} <= set(encoding.latents.tolist())
    assert all(each.strongest.measured and each.strongest.effect > 0 for each in explanation)
    assert all(each.peaks for each in explanation)
    assert len(explanation.sentences) == len(explanation) > 0
    for both in explanation.attributions:
        assert both.transplant is not None
        # Each model's run sees the same difference; both are shown.
        value = explanation.comparison.kl_chat_base[both.ablation.explained[0]]
        assert both.ablation.value == pytest.approx(value, abs=1e-3)
        assert both.transplant.value == pytest.approx(value, abs=1e-3)
        assert set(both.totals) < set(explanation.remarks)
    between = demo.attribute(messages=QUESTION, add_generation_prompt=True, first="Sure", second="the", num_exact=3)
    assert between.continuations == ("Sure", "the")
    assert sum(entry.effect is not None for entry in between) == min(3, len(between))
    with pytest.raises(InvalidInput, match="99"):
        demo.attribute("hello", tokens=99)


def test_contrast_finds_what_tells_two_sets_apart(demo: Crosscoder):
    things = ("soup", "bread", "tea", "a hat", "rain")
    questions = [[{"role": "user", "content": f"How do I make {what}?"}] for what in things]
    texts = ["The fox sleeps.", "It is late.", "We are at home.", "The river is wide.", "Snow fell."]
    found = demo.contrast(questions, texts, limit=3)
    assert [place.place for place in found] == ["decision", "within"]
    assert (found.num_first, found.num_second, len(found["within"])) == (5, 5, 3)
    assert found["within"].entries[0].auc.value in (pytest.approx(1.0), pytest.approx(0.0))


def test_generate_streams_tokens_that_compare_calls_the_most_probable(demo: Crosscoder):
    generation = demo.generate(messages=QUESTION, arms=[Arm(), Arm(model="base")], max_new_tokens=8, with_code=True)
    assert len(list(generation)) > 2
    for answer, model in zip(generation.answers, ("chat", "base"), strict=True):
        whole = demo.compare(token_ids=[*generation.prompt.ids, *answer.tokens.ids], top_n=1)
        first = len(generation.prompt) - 1
        predicted = getattr(whole, model).top_ids[first : first + len(answer.tokens), 0].tolist()
        assert predicted == list(answer.tokens.ids), "greedy"
        given = getattr(whole, model).log_probabilities[first : first + len(answer.tokens)]
        assert np.allclose(given, answer.log_probabilities, atol=1e-3)
        assert answer.code is not None
        again = demo.encode(token_ids=answer.code.tokens)
        assert [answer.code.top(t) for t in range(len(again) - 1)][-1] == [
            (latent, pytest.approx(value, rel=1e-2)) for latent, value in again.top(len(again) - 2)
        ]
    assert TokenRole.ASSISTANT in generation.answers[0].tokens.roles


def test_a_change_changes_what_is_said_and_whoever_leaves_is_told_so(demo: Crosscoder):
    firing = demo.latents(where=["num_active > 50"], order_by="-rel_norm", limit=1)[0].id
    arms = [Arm(), Arm(steer=Steer(latent=firing, add=50.0)), Arm(steer=Steer(latent=firing, scale=1.0))]
    plain, steered, same = demo.generate(messages=QUESTION, arms=arms, max_new_tokens=8).answers
    assert same.text == plain.text
    assert (plain.num_changed, steered.num_changed > 0) == (0, True)
    assert not np.allclose(plain.log_probabilities[:1], steered.log_probabilities[:1], atol=1e-3)
    with pytest.raises(InvalidInput, match="999999"):
        demo.generate("a", steer=Steer(latent=999999, ablate=True)).answers  # noqa: B018
    with demo.generate(messages=QUESTION, max_new_tokens=200) as generation:
        next(iter(generation))
    assert generation.answers[0].reason == "cancelled"


def test_the_demos_probes_are_scored_with_and_without_the_latents_that_carry_them(stack: Stack, demo: Crosscoder):
    probes = Probe.read(stack.home / "pairs" / "demo" / "data" / "probes.jsonl")
    assert len({probe.behaviour for probe in probes}) == 9
    some = [probe for probe in probes if probe.behaviour == "numbered_steps"][:4]
    found = demo.behaviour_effects(some, num_latents=2, max_new_tokens=4)
    assert len(found.arms) == 6
    assert {rate.num for rate in found.rates["numbered_steps"].values()} == {2}
    chosen = found.chosen["numbered_steps"]
    assert len(chosen.latents) == len(chosen.control) == 2
    assert not set(chosen.latents) & set(chosen.control)
