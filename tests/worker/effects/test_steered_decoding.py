"""Answers with interventions against a plain hook on whole forwards, one token at a time and without any cache."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from crosscope_proto.roles import BASE, CHAT, LeftOut, TokenRole
from crosscope_proto.specs import TokenPolicy
from crosscope_worker.dictionary.crosscoder import Crosscoder
from crosscope_worker.dictionary.keep import AboveModelThresholds, AboveThreshold, Keep, LargestByModel, LargestOfToken
from crosscope_worker.dictionary.streams import BOTH, DIFFERENCE, Streams
from crosscope_worker.effects.decoding import Decoder
from crosscope_worker.effects.interventions import Action, DecoderRow, Intervention, Reach
from crosscope_worker.effects.orders import ArmOrder, Event, Order, SamplingSettings, Started, Token
from crosscope_worker.effects.subject import Reading, Subject
from crosscope_worker.models.norms import NormBounds
from crosscope_worker.models.pair import Pair, decoder_layers
from crosscope_worker.tokenizer.tokens import TextTokenizer
from tests.worker.effects.decoder_runs import (
    CACHE_BYTES,
    LATENTS,
    LAYER,
    ids_of,
    prompt,
    random_crosscoder,
    reading_of,
    run,
)

NUM_TOKENS = 6
TEXT = "the red fox and the old river"
SOME = (2, 5, 11)
DICTIONARIES: dict[str, tuple[Keep, str, Streams]] = {
    "a threshold": (AboveThreshold(0.5), "crosscoder", BOTH),
    "k of a token": (LargestOfToken(6), "sae", BOTH),
    "decoupled thresholds": (
        AboveModelThresholds(torch.linspace(0, 1, 2 * LATENTS).reshape(LATENTS, 2).T.contiguous()),
        "decoupled",
        BOTH,
    ),
    "decoupled k": (LargestByModel(6), "decoupled", BOTH),
    "of differences": (AboveThreshold(0.5), "crosscoder", DIFFERENCE),
}
ALL = (
    *(
        Intervention(SOME, action, amount, row)
        for action, amount in ((Action.ADD, 1.5), (Action.SCALE, 3.0), (Action.SET, 0.5), (Action.ABLATE, 0.0))
        for row in DecoderRow
    ),
    Intervention(SOME, Action.TRANSPLANT),
    Intervention((), Action.SWAP_STREAM),
    *(Intervention(SOME, Action.SET, 2.0, reach=reach) for reach in (Reach.PROMPT, Reach.GENERATED)),
    *(Intervention(SOME, Action.ADD, 3.0, reach=reach) for reach in (Reach.PROMPT, Reach.GENERATED)),
    Intervention(SOME, Action.SET, 2.0, include_left_out=True),
    Intervention(SOME, Action.SET, 2.0, roles=frozenset({TokenRole.BOS}), include_left_out=True),
    Intervention(SOME, Action.SET, 2.0, positions=frozenset({3, 9, 10})),
)


@pytest.fixture(scope="module")
def tokenizer(tiny_pair: Pair) -> TextTokenizer:
    return TextTokenizer(tiny_pair.tokenizer)


def streams(pair: Pair, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Both models' streams after the layer, [token, d_model], as nothing has changed them."""
    base, chat = (model(ids, output_hidden_states=True).hidden_states[LAYER + 1][0] for model in pair.models)
    return base, chat


def kept(crosscoder: Crosscoder, code: Tensor) -> tuple[Tensor, Tensor]:
    """A raw code as each model keeps it."""
    keep = crosscoder.keep
    norms = [crosscoder.decoder(model).norm(dim=1) for model in (BASE, CHAT)]
    if isinstance(keep, AboveModelThresholds):
        base, chat = (code * (code * norms[m] > keep.thresholds[m]) for m in (BASE, CHAT))
        return base, chat
    if isinstance(keep, AboveThreshold):
        one = code * (code * (norms[BASE] + norms[CHAT]) > keep.threshold)
        return one, one
    assert isinstance(keep, LargestOfToken)
    joint = (norms[BASE].square() + norms[CHAT].square()).sqrt()
    by = norms if isinstance(keep, LargestByModel) else [joint, joint]
    found: list[Tensor] = []
    for norm in by:
        cut = torch.zeros_like(code)
        for token, values in enumerate(code * norm):
            largest = [j for j in values.argsort(descending=True)[: keep.k].tolist() if values[j] > 0]
            cut[token, largest] = code[token, largest]
        found.append(cut)
    return found[0], found[1]


def delta(reading: Reading, model: int, each: Intervention, x: tuple[Tensor, Tensor], reached: Tensor) -> Tensor:
    """What an intervention adds, [token, d_model], written out token by token."""
    crosscoder = reading.crosscoder
    scale = crosscoder.input_scale
    scaled = torch.cat([x[BASE] * scale[BASE], x[CHAT] * scale[CHAT]], dim=1)
    f = kept(crosscoder, torch.relu(scaled @ crosscoder.W_enc + crosscoder.b_enc))
    rows = [crosscoder.decoder(m) / scale[m] for m in (BASE, CHAT)]
    most = reading.maxima / crosscoder.code_norms()
    other, sign = 1 - model, 1.0 if model == CHAT else -1.0
    found = torch.zeros_like(x[model])
    for token in torch.nonzero(reached).flatten().tolist():
        if each.action is Action.SWAP_STREAM:
            found[token] = x[other][token] - x[model][token]
        for j in each.latents:
            if each.action is Action.TRANSPLANT:
                found[token] += f[other][token, j] * rows[other][j] - f[model][token, j] * rows[model][j]
                continue
            own, others = (
                {
                    Action.ADD: each.amount * most[j],
                    Action.SCALE: (each.amount - 1) * f[m][token, j],
                    Action.SET: each.amount * most[j] - f[m][token, j],
                    Action.ABLATE: -f[m][token, j],
                }[each.action]
                for m in (model, other)
            )
            if each.row is DecoderRow.OWN:
                found[token] += own * rows[model][j]
            elif each.row is DecoderRow.OTHER:
                found[token] += others * rows[other][j]
            else:
                found[token] += sign * (own * rows[model][j] - others * rows[other][j])
    return found


@torch.inference_mode()
def hooked(subject: Subject, order: Order, arm: ArmOrder) -> tuple[list[int], list[float]]:
    """Greedy tokens and their log-probabilities: each from a whole forward with a hook on the layer."""
    reading = subject.reading
    assert reading is not None
    ids, num_prompt = order.ids.tolist(), len(order.ids)
    log_probabilities: list[float] = []
    for _ in range(NUM_TOKENS):
        tensor = torch.tensor([ids])
        x = streams(subject.pair, tensor)
        added = torch.zeros_like(x[arm.model])
        for each in arm.interventions:
            reached = torch.zeros(len(ids), dtype=torch.bool)
            for token in range(len(ids)):
                role = int(order.roles[token]) if token < num_prompt else TokenRole.TEXT
                reach = Reach.GENERATED if token >= num_prompt else Reach.PROMPT
                left_out = role == TokenRole.BOS or any(
                    float(x[m][token].norm()) > limit
                    for m, limit in enumerate(reading.bounds.limits if reading.bounds else ())
                    if m == arm.model or each.action is not Action.ADD
                )
                reached[token] = (
                    each.reach in (Reach.ALL, reach)
                    and (not each.roles or role in each.roles)
                    and (not each.positions or token in each.positions)
                    and (each.include_left_out or not left_out)
                )
            added += delta(reading, arm.model, each, x, reached)
        model = subject.pair.models[arm.model]
        hook = decoder_layers(model)[LAYER].register_forward_hook(lambda _m, _i, output, added=added: output + added)
        logits = model(tensor).logits[0, -1].double()
        hook.remove()
        ids.append(int(logits.argmax()))
        log_probabilities.append(float(logits.log_softmax(0)[ids[-1]]))
    return ids[num_prompt:], log_probabilities


def log_probabilities_of(events: Sequence[Event], arm: int) -> list[float]:
    return [event.log_probability for event in events if isinstance(event, Token) and event.arm == arm]


def has_rows(subject: Subject, arm: ArmOrder) -> bool:
    """Whether the dictionary has the rows: one of differences has none of base's own."""
    assert subject.reading is not None
    crosses = (Action.TRANSPLANT, Action.SWAP_STREAM)
    own = any(each.action not in crosses and each.row is DecoderRow.OWN for each in arm.interventions)
    return not (subject.reading.crosscoder.streams.is_difference and arm.model == BASE and own)


def check(subject: Subject, tokenizer: TextTokenizer, interventions: Sequence[tuple[Intervention, ...]]) -> None:
    """Runs all of them in both models at once and compares each with the plain hook."""
    settings = SamplingSettings(max_new_tokens=NUM_TOKENS)
    arms = tuple(ArmOrder(model, each, settings) for model in (BASE, CHAT) for each in interventions)
    arms = tuple(arm for arm in arms if has_rows(subject, arm))
    order = prompt(tokenizer, TEXT, *arms)
    events = run(Decoder(subject, CACHE_BYTES, 50), order)
    plain: set[tuple[float, ...]] = set()
    for index, arm in enumerate(arms):
        ids, log_probabilities = hooked(subject, order, arm)
        assert ids_of(events, order, index) == ids
        np.testing.assert_allclose(log_probabilities_of(events, index), log_probabilities, atol=2e-4, err_msg=str(arm))
        plain.add(tuple(round(each, 4) for each in log_probabilities))
    assert len(plain) > len(arms) / 2  # the changes do change something


@pytest.mark.parametrize("name", DICTIONARIES)
def test_a_changed_answer_is_that_of_a_plain_hook(name: str, tiny_pair: Pair, tokenizer: TextTokenizer) -> None:
    keep, normalisation, reads = DICTIONARIES[name]
    crosscoder = random_crosscoder(tiny_pair, keep, normalisation, reads)
    few = ALL if name == "a threshold" else (ALL[3], ALL[8], ALL[11], ALL[12])
    check(Subject(tiny_pair, reading_of(crosscoder)), tokenizer, [(each,) for each in few])


def test_changes_add_up_and_outlying_tokens_are_left_alone(tiny_pair: Pair, tokenizer: TextTokenizer) -> None:
    ids = torch.from_numpy(prompt(tokenizer, TEXT).ids)[None]
    norms = [float(x.norm(dim=1).median()) for x in streams(tiny_pair, ids)]
    bounds = NormBounds((1.05 * norms[BASE], 1.05 * norms[CHAT]))
    subject = Subject(tiny_pair, reading_of(random_crosscoder(tiny_pair, AboveThreshold(0.5)), bounds))
    ablate, add = Intervention((2, 5), Action.ABLATE), Intervention((7,), Action.ADD, 2.0)
    several = [(ablate, replace(ablate, latents=(11,), action=Action.TRANSPLANT)), (add,), (ablate,)]
    late = len(prompt(tokenizer, TEXT).ids) + 2
    several += [
        (replace(add, positions=frozenset({late})), replace(add, latents=(2,), include_left_out=True)),
        (replace(add, reach=Reach.GENERATED, roles=frozenset({TokenRole.TEXT})),),
    ]
    check(subject, tokenizer, several)


def test_codes_of_prompt_and_answer_are_those_of_the_unchanged_streams(
    tiny_pair: Pair, tokenizer: TextTokenizer
) -> None:
    crosscoder = random_crosscoder(tiny_pair, AboveThreshold(0.5))
    subject = Subject(tiny_pair, reading_of(crosscoder))
    settings = SamplingSettings(max_new_tokens=NUM_TOKENS)
    arms = (ArmOrder(BASE, (), settings), ArmOrder(CHAT, (Intervention(SOME, Action.ADD, 3.0),), settings))
    order = prompt(tokenizer, TEXT, *arms, with_code=True)
    events = run(Decoder(subject, CACHE_BYTES, 7), order)
    started = events[0]
    assert isinstance(started, Started)
    for arm in range(2):
        tokens = [event for event in events if isinstance(event, Token) and event.arm == arm]
        assert [token.code is None for token in tokens] == [False] * (NUM_TOKENS - 1) + [True]
        ids = torch.tensor([*order.ids, *(token.id for token in tokens)])[None]
        with torch.inference_mode():
            expected = crosscoder.scaled(torch.cat(streams(tiny_pair, ids), dim=1)).numpy()
        codes = [started.code, *(token.code for token in tokens[:-1])]
        found = np.zeros_like(expected)
        token = 0
        for code in codes:
            assert code is not None
            for start, end in zip(code.row_starts, code.row_starts[1:], strict=False):
                activations = code.activations[start:end]
                assert list(activations) == sorted(activations, reverse=True)
                found[token, code.latents[start:end]] = activations
                token += 1
        assert token == len(expected) - 1
        np.testing.assert_allclose(found[:-1], expected[:-1], atol=1e-4)


def test_new_tokens_with_a_code_say_whether_training_left_such_tokens_out(
    tiny_pair: Pair, tokenizer: TextTokenizer
) -> None:
    settings = SamplingSettings(max_new_tokens=2 * NUM_TOKENS, temperature=2.0, seed=1)
    arms = (ArmOrder(CHAT, (), settings), ArmOrder(BASE, (Intervention(SOME, Action.ADD, 3.0),), settings))
    crosscoder = random_crosscoder(tiny_pair, AboveThreshold(0.5))
    order = prompt(tokenizer, TEXT, *arms, with_code=True)
    num_prompt, limits = len(order.ids), (1e9, 1e9)
    for _ in range(2):  # the texts first, which say where a limit is that divides them
        reading = reading_of(crosscoder, NormBounds(limits), policy=TokenPolicy(skip_first=num_prompt + 2))
        events = run(Decoder(Subject(tiny_pair, reading), CACHE_BYTES, 7), order)
        tokens = [[event for event in events if isinstance(event, Token) and event.arm == arm] for arm in (0, 1)]
        texts = [torch.tensor([*order.ids, *(token.id for token in new)])[None] for new in tokens]
        with torch.inference_mode():
            norms = [torch.stack([x.norm(dim=1) for x in streams(tiny_pair, ids)], dim=1) for ids in texts]
        high = torch.cat([norm[num_prompt + 2 : -1] for norm in norms]).quantile(0.6, dim=0)
        limits = float(high[BASE]), float(high[CHAT])
    reasons: list[LeftOut | None] = []
    for new, norm in zip(tokens, norms, strict=True):
        outlying = (norm > torch.tensor(reading.bounds.limits if reading.bounds else ())).any(dim=1)[num_prompt:]
        expected = [LeftOut.FIRST] * 2 + [LeftOut.NORM if each else LeftOut.KEPT for each in outlying[2:-1]] + [None]
        assert [token.left_out for token in new] == expected
        reasons += expected
    assert {LeftOut.NORM, LeftOut.KEPT} < set(reasons)
    without = prompt(tokenizer, TEXT, *arms)
    events = run(Decoder(Subject(tiny_pair, reading), CACHE_BYTES, 7), without)
    assert {event.left_out for event in events if isinstance(event, Token)} == {None}
