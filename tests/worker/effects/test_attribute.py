"""Attribution against plain hooks with a forward per latent, against derivatives, and where it is exact by hand."""

from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from crosscope_proto.roles import BASE, CHAT, TokenRole
from crosscope_proto.specs import TokenPolicy
from crosscope_worker.dictionary.crosscoder import Crosscoder
from crosscope_worker.dictionary.keep import AboveThreshold
from crosscope_worker.dictionary.streams import DIFFERENCE, STREAMS
from crosscope_worker.effects import contributions, figures, reruns
from crosscope_worker.effects.attribute import Attribution, Question, QuestionError, attribute
from crosscope_worker.effects.interventions import InterventionError
from crosscope_worker.effects.subject import Subject
from crosscope_worker.models.norms import NormBounds
from crosscope_worker.models.pair import Pair, decoder_layers
from crosscope_worker.models.places import PairError
from tests.worker.effects.subjects import (
    both_streams,
    decoupled,
    logits_of,
    make_crosscoder,
    make_pair,
    make_subject,
    prompt,
    roles_of,
)
from tests.worker.tiny_models import VOCAB

IDS = prompt(12)
EVERY = {"num_exact": 512, "limit": 512}
WRITERS = {
    "crosscoder": make_crosscoder,
    "scaled": lambda d_model: make_crosscoder(
        d_model, input_scale=(0.5, 2.0), input_mean=0.3 * torch.randn(32, generator=torch.Generator().manual_seed(2))
    ),
    "decoupled": decoupled,
    "difference": lambda d_model: make_crosscoder(d_model, DIFFERENCE, keep=AboveThreshold(0.5)),
}


@pytest.fixture(scope="module")
def pair() -> Pair:
    return make_pair()


@pytest.fixture(scope="module")
def subject(pair: Pair) -> Subject:
    return make_subject(pair)


def written(crosscoder: Crosscoder, x: Tensor, model: int, latent: int) -> Tensor:
    """[pos, d_model]: what one latent writes into a model's stream, from the dense code."""
    kept = crosscoder.sparsifier().kept_by_models(crosscoder.pre_activations(x).relu())[model]
    code = crosscoder.pre_activations(x).relu() * kept
    return code[:, latent, None] * crosscoder.decoder(model)[latent] / crosscoder.input_scale[model]


def taken_away(crosscoder: Crosscoder, x: Tensor, model: int, latent: int) -> Tensor:
    """[pos, d_model], BOS left alone: ablation in chat, the transplant of chat's row in base."""
    taken = written(crosscoder, x, model, latent)
    if model == BASE:
        taken = taken - written(crosscoder, x, CHAT, latent)
    taken[0] = 0
    return taken


def kl_after(pair: Pair, ids: np.ndarray, tokens: list[int], model: int, taken: Tensor) -> float:
    """KL(chat ‖ base) over some tokens by torch's own function, after `taken` is subtracted from a model's stream."""
    changed = logits_of(pair.models[model], ids, lambda x: x - taken).log_softmax(1)
    other = logits_of(pair.models[1 - model], ids).log_softmax(1)
    base, chat = (changed, other) if model == BASE else (other, changed)
    terms = nn.functional.kl_div(base.double(), chat.double(), reduction="none", log_target=True)
    return float(terms[tokens].sum())


@pytest.mark.parametrize("model", [BASE, CHAT])
@pytest.mark.parametrize("kind", WRITERS)
def test_exact_effects_equal_a_plain_hook_with_a_forward_per_latent(pair: Pair, kind: str, model: int):
    crosscoder = WRITERS[kind](pair.d_model)
    found = attribute(make_subject(pair, crosscoder), IDS, roles_of(IDS), Question(model, (5, 9), **EVERY))
    x = both_streams(pair, IDS)
    nothing = torch.zeros(len(IDS), 16)
    value = kl_after(pair, IDS, [5, 9], model, nothing)
    assert found.value == pytest.approx(value, rel=1e-5)
    assert len(found.entries) == found.num_latents > 10
    for entry in found.entries:
        effect = value - kl_after(pair, IDS, [5, 9], model, taken_away(crosscoder, x, model, entry.latent))
        assert entry.effect == pytest.approx(effect, abs=2e-6)
        assert entry.share == pytest.approx(effect / value, abs=1e-5)
    every = sum((taken_away(crosscoder, x, model, latent) for latent in range(crosscoder.num_latents)), nothing)
    assert found.effect_of_all == pytest.approx(value - kl_after(pair, IDS, [5, 9], model, every), abs=2e-6)
    own, other = (x[:, crosscoder.model_slice(each)] for each in (model, 1 - model))
    swapped = own - other
    swapped[0] = 0
    assert found.effect_of_stream == pytest.approx(value - kl_after(pair, IDS, [5, 9], model, swapped), abs=2e-6)
    sizes = [abs(entry.effect or 0.0) for entry in found.entries]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("model", [BASE, CHAT])
def test_the_estimate_is_the_derivative_of_the_effect(model: int):
    """Finite differences in float64: a small part of a latent is taken away, everywhere and at one token alone."""
    pair = make_pair("GPTNeoX")
    for each in pair.models:
        each.double()
    crosscoder = make_crosscoder(pair.d_model)
    found = attribute(make_subject(pair, crosscoder), IDS, roles_of(IDS), Question(model, (9,), **EVERY))
    x = both_streams(pair, IDS).float()
    step = 1e-4
    for entry in found.entries[:6]:
        taken = taken_away(crosscoder, x, model, entry.latent).double()
        away, towards = (kl_after(pair, IDS, [9], model, sign * step * taken) for sign in (1, -1))
        assert entry.estimate == pytest.approx((towards - away) / (2 * step), rel=1e-3, abs=1e-7)
        only = torch.zeros_like(taken)
        only[entry.peak_token] = taken[entry.peak_token]
        away, towards = (kl_after(pair, IDS, [9], model, sign * step * only) for sign in (1, -1))
        assert at_token(found, entry.peak_token, entry.latent) == pytest.approx(
            (towards - away) / (2 * step), rel=1e-3, abs=1e-7
        )


def at_token(found: Attribution, token: int, latent: int) -> float:
    """A latent's estimate at one token; 0 where it has none."""
    at = slice(found.row_starts[token], found.row_starts[token + 1])
    ids = [found.entries[index].latent for index in found.token_entries[at]]
    return dict(zip(ids, found.token_estimates[at].tolist(), strict=True)).get(latent, 0.0)


def test_estimates_of_tokens_add_up_to_those_of_latents(subject: Subject):
    found = attribute(subject, IDS, roles_of(IDS), Question(tokens=(9,), limit=512))
    assert len(found.row_starts) == len(IDS) + 1
    assert found.row_starts[10] == found.row_starts[-1] == len(found.token_entries), "later tokens cannot count"
    for index, entry in enumerate(found.entries):
        own = found.token_estimates[found.token_entries == index]
        assert own.sum() == pytest.approx(entry.estimate, rel=1e-6)
        assert entry.num_active == len(own)
        assert abs(at_token(found, entry.peak_token, entry.latent)) == np.abs(own).max()


def test_estimate_and_effect_agree_where_the_model_is_linear(pair: Pair):
    """The layers above and the norm are cut out, so the stream times the head's weights are the logits. The difference
    of two single-token continuations is then linear in the stream: `f_j (D_j (w_first - w_second))`.
    """
    linear = make_pair()
    for model in linear.models:
        for layer in decoder_layers(model)[2:]:
            layer.forward = lambda hidden_states, **_: hidden_states
        model.get_decoder().norm = nn.Identity()
    crosscoder = make_crosscoder(linear.d_model)
    question = Question(CHAT, continuations=(np.array([7]), np.array([8])), **EVERY)
    found = attribute(make_subject(linear, crosscoder), IDS, roles_of(IDS), question)
    head = linear.models[CHAT].get_output_embeddings().weight
    x = both_streams(linear, IDS)
    wanted = written(crosscoder, x, CHAT, found.entries[0].latent)[-1] @ (head[7] - head[8])
    assert abs(float(wanted)) > 0.01
    assert found.entries[0].effect == pytest.approx(float(wanted), abs=1e-5)
    for entry in found.entries:
        expected = float(written(crosscoder, x, CHAT, entry.latent)[-1] @ (head[7] - head[8]))
        assert entry.estimate == pytest.approx(expected, abs=1e-5)
        assert entry.effect == pytest.approx(expected, abs=2e-5)
    assert found.value == pytest.approx(float(x[-1, 16:] @ (head[7] - head[8])), abs=1e-5)
    assert found.explained.tolist() == [len(IDS) - 1]


@pytest.mark.parametrize("model", [BASE, CHAT])
def test_continuations_are_explained_over_all_their_tokens(pair: Pair, subject: Subject, model: int):
    first, second = np.array([7, 20, 33]), np.array([8])
    assert subject.reading is not None
    question = Question(model, continuations=(first, second), **EVERY)
    found = attribute(subject, IDS, roles_of(IDS), question)
    crosscoder, x = subject.reading.crosscoder, both_streams(pair, IDS)
    value = preference(pair, IDS, (first, second), model, torch.zeros(len(IDS), 16))
    assert found.value == pytest.approx(value, abs=1e-5)
    for entry in found.entries[:8]:
        taken = taken_away(crosscoder, x, model, entry.latent)
        effect = value - preference(pair, IDS, (first, second), model, taken)
        assert entry.effect == pytest.approx(effect, abs=1e-5)


@pytest.mark.parametrize("kind", ["Llama", "Gemma2", "GPTNeoX", "Lfm2"])
def test_reruns_begin_with_the_first_changed_token_and_equal_whole_ones(kind: str, monkeypatch: pytest.MonkeyPatch):
    """Three latents fire at a token. Lfm2's convolution above the layer keeps no keys, so it needs whole reruns."""
    monkeypatch.setattr(reruns, "GROUP_TOKENS", 4)
    pair, ids = make_pair(kind), prompt(34)
    x, crosscoder = both_streams(pair, ids), make_crosscoder(pair.d_model)
    crosscoder.keep = AboveThreshold(float(crosscoder.scaled(x).flatten().topk(3 * len(ids)).values[-1]))
    subject = make_subject(pair, crosscoder)
    continuations = np.array([7, 20, 33]), np.array([8])
    found = attribute(subject, ids, roles_of(ids), Question(tokens=(9, 31), **EVERY))
    value = kl_after(pair, ids, [9, 31], CHAT, torch.zeros(34, 16))
    firsts: list[int] = []
    for entry in found.entries:
        taken = taken_away(crosscoder, x, CHAT, entry.latent)
        firsts.append(int(taken.any(dim=1).nonzero()[0]))
        assert entry.effect == pytest.approx(value - kl_after(pair, ids, [9, 31], CHAT, taken), abs=1e-5)
    assert min(firsts) <= 9 < max(firsts), "some fire early, some late"
    ran: list[int] = []
    decoder_layers(pair.models[CHAT])[2].register_forward_pre_hook(
        lambda _module, inputs, named: ran.append((inputs[0] if inputs else named["hidden_states"]).shape[:2].numel()),
        with_kwargs=True,
    )
    attribute(subject, ids, roles_of(ids), Question(tokens=(31,), **EVERY))
    whole = (found.num_latents + 4) * 32
    assert (subject.uppers[CHAT].text_cache() is None) == (kind == "Lfm2")
    assert (sum(ran) < whole) == (kind != "Lfm2"), (sum(ran), whole)
    preferred = attribute(subject, ids, roles_of(ids), Question(continuations=continuations, **EVERY))
    for entry in preferred.entries[:6]:
        taken = taken_away(crosscoder, x, CHAT, entry.latent)
        both = (preference(pair, ids, continuations, CHAT, each) for each in (0 * taken, taken))
        assert entry.effect == pytest.approx(next(both) - next(both), abs=2e-5)


def preference(pair: Pair, ids: np.ndarray, continuations: Sequence[np.ndarray], model: int, taken: Tensor) -> float:
    """`log p(first) - log p(second)` in a model, after `taken` is subtracted from its stream at the prompt's tokens."""
    total = 0.0
    for sign, continuation in zip((1, -1), continuations, strict=True):
        padded = torch.cat([taken, torch.zeros(len(continuation), 16)])
        text = np.concatenate([ids, continuation])
        log = logits_of(pair.models[model], text, lambda stream, padded=padded: stream - padded).log_softmax(1)
        total += sign * sum(float(log[len(ids) - 1 + i, token]) for i, token in enumerate(continuation))
    return total


def test_without_tokens_the_largest_divergence_is_explained(pair: Pair, subject: Subject):
    log = [logits_of(model, IDS).log_softmax(1) for model in pair.models]
    kl = nn.functional.kl_div(log[BASE], log[CHAT], reduction="none", log_target=True).sum(1)
    found = attribute(subject, IDS, roles_of(IDS), Question())
    assert found.explained.tolist() == [1 + int(kl[1:].argmax())], "BOS is left out"
    assert found.value == pytest.approx(float(kl[1:].max()), rel=1e-5)
    with_bos = attribute(subject, IDS, roles_of(IDS), Question(include_left_out=True))
    assert with_bos.explained.tolist() == [int(kl.argmax())]


def test_tokens_that_training_left_out_are_left_alone_and_counted(pair: Pair):
    norm = both_streams(pair, IDS)[:, :16].norm(dim=1)
    limit = float(norm[1:9].sort().values[-2:].mean())
    outlying = int(((norm > limit) & (torch.arange(12) > 0))[:10].sum())
    subject = make_subject(pair, bounds=NormBounds((limit, 1e9)))
    found = attribute(subject, IDS, roles_of(IDS), Question(tokens=(9,), **EVERY))
    assert outlying >= 1
    assert found.num_left_out == outlying + 1, "and BOS"
    everywhere = attribute(subject, IDS, roles_of(IDS), Question(tokens=(9,), include_left_out=True, **EVERY))
    assert everywhere.num_left_out == 0
    assert everywhere.row_starts[1] > 0 == found.row_starts[1]
    assert sum(e.num_active for e in everywhere.entries) > sum(e.num_active for e in found.entries)


def test_pieces_and_batches_do_not_change_the_answer(subject: Subject, monkeypatch: pytest.MonkeyPatch):
    question = Question(tokens=(3, 5, 9, 11), num_exact=9)
    first, again = (attribute(subject, IDS, roles_of(IDS), question) for _ in range(2))
    assert first.entries == again.entries
    assert all(np.array_equal(getattr(first, field.name), getattr(again, field.name)) for field in fields(first))
    monkeypatch.setattr(reruns, "BATCH_TOKENS", 3 * len(IDS))
    monkeypatch.setattr(figures, "LOGIT_BYTES", 3 * 4 * VOCAB)
    monkeypatch.setattr(contributions, "CODE_BYTES", 5 * 4 * 40)
    pieces = attribute(subject, IDS, roles_of(IDS), question)
    assert [entry.latent for entry in pieces.entries] == [entry.latent for entry in first.entries]
    for one, other in zip(pieces.entries, first.entries, strict=True):
        assert one[1:3] == pytest.approx(other[1:3], abs=2e-6)
    assert sum(entry.effect is not None for entry in first.entries) == 9
    assert first.num_latents == len(first.entries) > 9


def test_a_limit_cuts_entries_and_their_estimates_per_token(subject: Subject):
    question = Question(tokens=(9,), num_exact=3)
    every, few = (attribute(subject, IDS, roles_of(IDS), replace(question, limit=limit)) for limit in (100, 5))
    assert few.entries == every.entries[:5]
    assert few.num_latents == every.num_latents
    assert set(few.token_entries) == set(range(5))
    assert attribute(subject, IDS, roles_of(IDS), replace(question, num_exact=0)).entries[0].effect is None


def test_a_caller_in_inference_mode_and_half_precision(pair: Pair):
    wide = attribute(make_subject(pair), IDS, roles_of(IDS), Question(tokens=(9,)))
    halves = make_pair()
    for model in halves.models:
        model.bfloat16()
    with torch.inference_mode():
        found = attribute(make_subject(halves), IDS, roles_of(IDS), Question(tokens=(9,)))
    assert found.value == pytest.approx(wide.value, rel=0.2)
    assert np.isfinite([entry.estimate for entry in found.entries]).all()


def test_nothing_fires_nothing_is_carried(pair: Pair):
    crosscoder = make_crosscoder(pair.d_model)
    crosscoder.b_enc -= 100.0
    found = attribute(make_subject(pair, crosscoder), IDS, roles_of(IDS), Question(tokens=(9,)))
    assert found.entries == ()
    assert found.num_latents == 0
    assert found.effect_of_all == pytest.approx(0, abs=1e-6)
    assert found.effect_of_stream > 0


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (Question(tokens=(12,)), "no token 12 to explain; the prompt has 12"),
        (Question(tokens=(3, 3)), "twice"),
        (Question(tokens=(3,), continuations=(IDS, IDS)), "not both"),
        (Question(continuations=(IDS, IDS[:0])), "no tokens"),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused(subject: Subject, question: Question, message: str):
    with pytest.raises(QuestionError, match=message):
        attribute(subject, IDS, roles_of(IDS), question)


def test_a_dictionary_of_one_model_answers_for_that_model_alone(pair: Pair):
    chat = make_subject(pair, make_crosscoder(pair.d_model, STREAMS["chat"]))
    assert attribute(chat, IDS, roles_of(IDS), Question(tokens=(9,))).entries[0].effect
    with pytest.raises(InterventionError, match="reads chat alone, so it has no rows of two models"):
        attribute(chat, IDS, roles_of(IDS), Question(BASE, (9,)))
    base = make_subject(pair, make_crosscoder(pair.d_model, STREAMS["base"]))
    with pytest.raises(InterventionError, match="reads base alone, so its rows of the chat model are zero"):
        attribute(base, IDS, roles_of(IDS), Question(tokens=(9,)))


def test_a_model_whose_upper_half_needs_more_is_refused_by_class_and_reason():
    pair = make_pair()
    layers, notes = decoder_layers(pair.models[CHAT]), list[Tensor]()
    run = layers[1].forward

    def leave(hidden_states: Tensor, **kwargs: object) -> Tensor:
        notes.append(hidden_states)
        return run(hidden_states, **kwargs)

    layers[1].forward = leave
    layers[2].register_forward_hook(lambda _module, _inputs, output: output + 3 * notes.pop())
    with pytest.raises(
        PairError, match="LlamaForCausalLM cannot be run from the output of layer 1 on: its logits differ"
    ):
        attribute(make_subject(pair), IDS, roles_of(IDS), Question(tokens=(9,)))


@pytest.mark.parametrize("kind", ["Phi3, LongRoPE", "Llama, dynamic RoPE", "Gemma2", "GPTNeoX", "Qwen3"])
def test_gradients_pass_through_other_classes(kind: str):
    pair = make_pair(kind)
    ids = prompt(34)
    found = attribute(make_subject(pair), ids, roles_of(ids), Question(tokens=(20,), num_exact=4))
    crosscoder = make_crosscoder(pair.d_model)
    value = kl_after(pair, ids, [20], CHAT, torch.zeros(34, 16))
    assert found.value == pytest.approx(value, rel=1e-4)
    taken = taken_away(crosscoder, both_streams(pair, ids), CHAT, found.entries[0].latent)
    assert found.entries[0].effect == pytest.approx(value - kl_after(pair, ids, [20], CHAT, taken), abs=1e-5)
    away, towards = (kl_after(pair, ids, [20], CHAT, sign * 0.02 * taken) for sign in (1, -1))
    assert found.entries[0].estimate == pytest.approx((towards - away) / 0.04, rel=0.01)


def test_a_reading_leaves_out_what_the_policy_says(pair: Pair):
    reading = make_subject(pair).reading
    assert reading is not None
    roles = np.array([TokenRole.BOS, TokenRole.TEXT, TokenRole.TEXT], np.uint8)
    x = torch.zeros(3, 32)
    assert reading.left_out(x, roles).tolist() == [True, False, False]
    first = replace(reading, policy=TokenPolicy(skip_bos=False, skip_first=2, max_norm_ratio=None))
    assert first.left_out(x, roles).tolist() == [True, True, False]
