"""Answers against transformers' own `generate`, and answers of rows that come, go and fail beside each other."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import PreTrainedModel

from crosscope_proto.roles import BASE, CHAT, LeftOut, TokenRole
from crosscope_worker.dictionary.keep import AboveThreshold
from crosscope_worker.effects.decoding import Decoder, end_ids
from crosscope_worker.effects.interventions import Action, Intervention, InterventionError, Reach
from crosscope_worker.effects.orders import (
    ArmOrder,
    DoesNotFit,
    EndReason,
    Event,
    Order,
    SamplingSettings,
    Started,
    Token,
)
from crosscope_worker.effects.subject import Subject
from crosscope_worker.effects.trial import bytes_per_token
from crosscope_worker.models.pair import Pair, decoder_layers
from crosscope_worker.models.places import PairError
from crosscope_worker.tokenizer.tokens import TextTokenizer, Turn
from tests.worker.effects.decoder_runs import (
    CACHE_BYTES,
    end_of,
    ids_of,
    prompt,
    random_crosscoder,
    run,
    subject,
    with_models,
)
from tests.worker.tiny_models import KINDS, deep_gemma, products_of_few_tokens_split, tiny_model

LONG = "tell me a short story about the red fox and the old river please, and then what the baker sells at the market"
SHORT = "what is two"
NUM_TOKENS = 14
GREEDY = ArmOrder(CHAT, (), SamplingSettings(max_new_tokens=NUM_TOKENS))
SHAPES = ("Llama", "GPTNeoX", "Gemma2", "Qwen2")
REFUSED = {"Mllama", "Lfm2", "NemotronH", "Bamba", "Mamba", "RecurrentGemma", "RWKV", "xLSTM", "Bert", "Roberta"}
"""Classes with a state that is no cache of keys and values, that read in both directions, or that need images."""


@pytest.fixture(scope="module")
def tokenizer(tiny_pair: Pair) -> TextTokenizer:
    return TextTokenizer(tiny_pair.tokenizer)


@pytest.fixture
def plain(tiny_pair: Pair) -> Decoder:
    return Decoder(Subject(tiny_pair), CACHE_BYTES, 64)


@pytest.fixture(scope="module")
def read(tiny_pair: Pair) -> Subject:
    return subject(tiny_pair, random_crosscoder(tiny_pair, AboveThreshold(0.5)))


def greedy(model: PreTrainedModel, order: Order) -> list[int]:
    """What transformers itself generates."""
    ends = sorted(end_ids(model, order.tokenizer))
    ids = torch.from_numpy(order.ids)[None]
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "eos_token_id": ends, "pad_token_id": 0}
    found = model.generate(**given, max_new_tokens=NUM_TOKENS, do_sample=False)  # pyright: ignore
    return found[0, len(order.ids) :].tolist()


def model_of(kind: str, vocab_size: int) -> PreTrainedModel:
    if kind == "Qwen2":
        torch.manual_seed(0)
        config = transformers.Qwen2Config(
            vocab_size=vocab_size,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=128,
            use_sliding_window=True,
            sliding_window=8,
            max_window_layers=1,
        )
        return transformers.Qwen2ForCausalLM(config).eval()
    return tiny_model(kind, vocab_size=vocab_size)


@pytest.mark.parametrize("kind", SHAPES)
def test_an_arm_without_changes_is_what_generate_gives_whatever_else_joins_and_leaves(
    kind: str, tiny_pair: Pair, tokenizer: TextTokenizer
) -> None:
    size = len(tiny_pair.tokenizer)
    base, chat = model_of(kind, size), model_of(kind, size)
    with torch.no_grad():
        for parameter in chat.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    pair = with_models(tiny_pair, base, chat)
    both = (GREEDY, replace(GREEDY, model=BASE))
    orders = [prompt(tokenizer, text, *both) for text in (SHORT, LONG, "hm")]
    brief = prompt(tokenizer, "the baker", ArmOrder(CHAT, (), SamplingSettings(max_new_tokens=3)))
    decoder = Decoder(Subject(pair), CACHE_BYTES, 16)
    later = {2: lambda: decoder.admit(orders[1]), 5: lambda: decoder.admit(brief), 9: lambda: decoder.admit(orders[2])}
    events = run(decoder, orders[0], later=later)
    for order in orders:
        for arm, model in ((0, chat), (1, base)):
            expected = greedy(model, order)
            assert ids_of(events, order, arm) == expected
            assert ids_of(run(Decoder(Subject(pair), CACHE_BYTES, 64), order), order, arm) == expected
    assert len(ids_of(events, brief)) <= 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_generates_as_by_itself_or_is_refused_with_its_name_and_the_reason(
    kind: str, tiny_pair: Pair, tokenizer: TextTokenizer
) -> None:
    model = tiny_model(kind)
    pair = with_models(tiny_pair, model, model)
    ids = np.array([3, 9, 14, 30, 8, 41, 5, 17, 22], np.int64)
    roles = np.full(len(ids), TokenRole.TEXT, np.uint8)
    orders = [Order(ids[some:], roles[some:], (replace(GREEDY, model=CHAT),), tokenizer) for some in (0, 4)]
    if kind in REFUSED:
        with pytest.raises(PairError, match=rf"the base model, {type(model).__name__}, cannot generate here: "):
            Decoder(Subject(pair), CACHE_BYTES, 4)
        return
    events = run(Decoder(Subject(pair), CACHE_BYTES, 4), *orders)
    for order in orders:
        assert ids_of(events, order) == greedy(model, order)


def test_a_deep_model_whose_rounding_depends_on_the_batch_is_not_refused(tiny_pair: Pair) -> None:
    """Its logits differ by 0.13 of their spread in bfloat16. The cache's bytes are those of bfloat16."""
    model = deep_gemma()
    ids = torch.arange(3, 15)[None]
    with products_of_few_tokens_split(), torch.inference_mode():
        long, short = (model(input_ids=each, use_cache=False).logits[0, :5].float() for each in (ids, ids[:, :5]))
        assert float((long - short).abs().max() / long.std()) > 0.05
        found = bytes_per_token(Subject(with_models(tiny_pair, model, model)), BASE)
    assert found == (26 * 2 * 2 * 16 * 2, 0)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("kind", ["Mamba", "RecurrentGemma", "RWKV", "Bert"])
def test_another_state_is_refused_in_half_precision_too(kind: str, tiny_pair: Pair) -> None:
    model = tiny_model(kind).bfloat16()
    with pytest.raises(PairError, match=r"logits differ \(by \d.* of their spread, more than 0\.001\)"):
        bytes_per_token(Subject(with_models(tiny_pair, model, model)), BASE)


def test_equal_seeds_give_equal_texts_whatever_else_is_in_the_batch(
    plain: Decoder, tiny_pair: Pair, tokenizer: TextTokenizer
) -> None:
    settings = SamplingSettings(temperature=1.3, top_p=0.9, seed=2**63 + 7, max_new_tokens=16, num_samples=3)
    arm = ArmOrder(CHAT, (), settings)
    order = prompt(tokenizer, LONG, GREEDY, replace(arm, model=BASE), arm)
    alone = prompt(tokenizer, LONG, arm)
    other = prompt(tokenizer, SHORT, arm, ArmOrder(CHAT, (), replace(settings, seed=1)))
    events = run(plain, order, other)
    by_itself = run(Decoder(Subject(tiny_pair), CACHE_BYTES, 5), alone)
    texts = [end_of(events, order, 2, sample).text for sample in range(3)]
    assert texts == [end_of(by_itself, alone, 0, sample).text for sample in range(3)]
    assert len(set(texts)) == 3
    assert end_of(events, other, 0).text != end_of(events, other, 1).text


def test_an_order_that_is_dropped_frees_its_places_at_once_and_others_go_on(
    plain: Decoder, tiny_pair: Pair, tokenizer: TextTokenizer
) -> None:
    kept, gone = prompt(tokenizer, SHORT, GREEDY), prompt(tokenizer, LONG, GREEDY, replace(GREEDY, model=BASE))
    waiting = prompt(tokenizer, LONG, GREEDY)

    between: list[Event] = []

    def leave() -> None:
        assert plain.num_rows == 3
        planned = plain.planned_bytes
        plain.drop(gone)
        assert plain.num_rows == 1
        assert plain.planned_bytes < planned

    def come_and_go() -> None:
        plain.admit(waiting)
        between.extend(plain.step())
        plain.drop(waiting)
        assert plain.num_rows == 1

    events = run(plain, kept, gone, later={4: leave, 6: come_and_go})
    expected = greedy(tiny_pair.models[CHAT], kept)
    assert ids_of(events, kept) == expected[:6] + expected[7:]
    assert ids_of(between, kept) == expected[6:7]
    assert end_of(events, kept).reason is EndReason.LENGTH
    assert not [event for event in events if event.order is waiting]
    assert plain.is_idle


@pytest.mark.parametrize("depth", [0, 3])
def test_where_memory_runs_out_the_newest_arm_ends_and_the_others_go_on(
    depth: int, read: Subject, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    steered = ArmOrder(CHAT, (Intervention((1, 5), Action.ABLATE),), SamplingSettings(max_new_tokens=NUM_TOKENS))
    first, second = prompt(tokenizer, LONG, GREEDY, steered), prompt(tokenizer, SHORT, steered, steered)
    decoder = Decoder(read, CACHE_BYTES, 64)
    undisturbed = run(decoder, first, second)

    def fail() -> None:
        layer = decoder_layers(read.pair.models[CHAT])[depth]
        own = layer.forward

        def forward(*_args: Any, **_kwargs: Any) -> Any:
            layer.forward = own
            raise torch.OutOfMemoryError("no room")

        monkeypatch.setattr(layer, "forward", forward)

    events = run(decoder, first, second, later={6: fail})
    assert end_of(events, second, 1).reason is EndReason.OUT_OF_MEMORY
    assert 0 < len(ids_of(events, second, 1)) < NUM_TOKENS
    for order, arm in ((first, 0), (first, 1), (second, 0)):
        assert end_of(events, order, arm).text == end_of(undisturbed, order, arm).text
        assert end_of(events, order, arm).reason is EndReason.LENGTH


def test_where_memory_runs_out_over_a_prompt_its_newest_arm_ends(
    plain: Decoder, tiny_pair: Pair, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = prompt(tokenizer, SHORT, GREEDY), prompt(tokenizer, LONG, GREEDY, GREEDY)
    forwards = 0
    own = decoder_layers(tiny_pair.models[CHAT])[2].forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal forwards
        forwards += 1
        if forwards == 4:
            raise torch.OutOfMemoryError("no room")
        return own(*args, **kwargs)

    monkeypatch.setattr(decoder_layers(tiny_pair.models[CHAT])[2], "forward", forward)
    events = run(plain, first, later={2: lambda: plain.admit(second)})
    assert forwards > 4
    assert end_of(events, second, 1).reason is EndReason.OUT_OF_MEMORY
    assert end_of(events, second, 1).text == ""
    monkeypatch.undo()
    for order in (first, second):
        assert ids_of(events, order) == greedy(tiny_pair.models[CHAT], order)


def test_any_other_error_of_a_step_passes(
    plain: Decoder, tiny_pair: Pair, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(*_args: Any, **_kwargs: Any) -> Any:
        raise ArithmeticError("a bug")

    monkeypatch.setattr(decoder_layers(tiny_pair.models[CHAT])[2], "forward", forward)
    with pytest.raises(ArithmeticError, match="a bug"):
        run(plain, prompt(tokenizer, SHORT, GREEDY))


def test_a_text_ends_where_the_models_can_read_no_more(tiny_pair: Pair, tokenizer: TextTokenizer) -> None:
    order = prompt(tokenizer, SHORT, GREEDY)
    decoder = Decoder(Subject(tiny_pair), CACHE_BYTES, 64, max_tokens=len(order.ids) + 4)
    events = run(decoder, order)
    # The last of five tokens is one that no model reads any more.
    assert ids_of(events, order) == greedy(tiny_pair.models[CHAT], order)[:5]
    assert end_of(events, order).reason is EndReason.CONTEXT
    with pytest.raises(DoesNotFit, match=r"the prompt has \d+ tokens, but a text may have \d+ here; shorten it"):
        decoder.admit(prompt(tokenizer, LONG, GREEDY))


def test_orders_wait_for_room_and_one_that_never_has_room_is_refused(tiny_pair: Pair, tokenizer: TextTokenizer) -> None:
    order, other = prompt(tokenizer, SHORT, GREEDY), prompt(tokenizer, SHORT, GREEDY)
    # Four layers of 2 heads of 8 numbers, keys and values, float32; the prompt's reading counts as a row.
    needed = 2 * (len(order.ids) + NUM_TOKENS) * 4 * 2 * 8 * 2 * 4
    decoder = Decoder(Subject(tiny_pair), needed, 64)
    starts = [event.order for event in run(decoder, order, other) if isinstance(event, Started | Token)]
    assert starts.index(other) == 1 + NUM_TOKENS
    assert set(starts[1 + NUM_TOKENS :]) == {other}
    with pytest.raises(DoesNotFit, match=rf"need {needed} bytes of keys and values, but this worker has {needed - 1}"):
        Decoder(Subject(tiny_pair), needed - 1, 64).admit(order)


@pytest.mark.parametrize("num_tokens", [1, 7, 1000])
def test_prompts_are_read_in_pieces_and_the_text_stays_the_same(
    num_tokens: int, read: Subject, tokenizer: TextTokenizer
) -> None:
    steered = ArmOrder(CHAT, (Intervention((1, 5), Action.ABLATE, reach=Reach.PROMPT),), GREEDY.sampling)
    orders = [prompt(tokenizer, text, GREEDY, steered, with_code=True) for text in (LONG, SHORT)]
    decoder = Decoder(read, CACHE_BYTES, num_tokens)
    for order in orders:
        decoder.admit(order)
    num_steps = 0
    events = decoder.step()
    while not any(isinstance(event, Started) for event in events):
        num_steps += 1
        events = decoder.step()
    longest = len(orders[0].ids)
    # Both readings of the long prompt are read beside each other where they fit one piece; else one after the other.
    assert num_steps == {1: longest - 1, 7: -(-longest // 7) - 1, 1000: 0}[num_tokens]
    events += run(decoder)
    whole = run(Decoder(read, CACHE_BYTES, 64), *orders)
    for order in orders:
        assert [end_of(events, order, arm).text for arm in (0, 1)] == [end_of(whole, order, arm).text for arm in (0, 1)]
        codes = [next(e for e in some if isinstance(e, Started) and e.order is order).code for some in (events, whole)]
        assert codes[0] is not None
        assert codes[1] is not None
        np.testing.assert_array_equal(codes[0].row_starts, codes[1].row_starts)
        np.testing.assert_array_equal(codes[0].latents, codes[1].latents)
        np.testing.assert_allclose(codes[0].activations, codes[1].activations, rtol=1e-4, atol=1e-5)


def test_an_answer_decodes_beside_prompts_that_are_read(plain: Decoder, tokenizer: TextTokenizer) -> None:
    first = prompt(tokenizer, SHORT, GREEDY)
    decoder = Decoder(plain._subject, CACHE_BYTES, 2)  # pyright: ignore[reportPrivateUsage]
    decoder.admit(first)
    while not decoder.num_rows:
        decoder.step()
    decoder.admit(prompt(tokenizer, LONG, GREEDY))
    for _ in range(5):
        assert [type(event) for event in decoder.step()] == [Token]


def test_arms_that_change_the_prompt_alike_share_one_reading_of_it(
    read: Subject, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = Intervention((3,), Action.ADD, 1.0, reach=Reach.GENERATED)
    now = Intervention((3,), Action.ADD, 1.0)
    sampled = SamplingSettings(temperature=1.0, num_samples=4, max_new_tokens=2)
    arms = (
        ArmOrder(CHAT, (), sampled),
        ArmOrder(CHAT, (later,), sampled),
        ArmOrder(CHAT, (now,), sampled),
        ArmOrder(CHAT, (now, later), sampled),
        ArmOrder(BASE, (), sampled),
    )
    shapes: list[tuple[int, ...]] = []
    for model in read.pair.models:

        def counted(*args: Any, own: Callable[..., Any] = model.forward, **kwargs: Any) -> Any:
            shapes.append(tuple(kwargs["input_ids"].shape))
            return own(*args, **kwargs)

        counted.__signature__ = __import__("inspect").signature(model.forward)  # pyright: ignore[reportFunctionMemberAccess]
        monkeypatch.setattr(model, "forward", counted)
    order = prompt(tokenizer, SHORT, *arms)
    run(Decoder(read, CACHE_BYTES, 1000, token_bytes=((1, 1), (1, 1))), order)
    width = len(order.ids)
    # Chat reads the prompt as it is and with the change; 16 answers in chat and 4 in base go on from there.
    assert sorted(shapes) == sorted([(2, width), (1, width), (16, 1), (4, 1)])


def test_new_tokens_are_the_assistants_and_a_turns_end_ends_the_answer(
    tiny_pair: Pair, tokenizer: TextTokenizer
) -> None:
    text = tokenizer.conversation([Turn("user", "hm")], add_generation_prompt=True)
    order = Order(text.ids, text.roles, (GREEDY,), tokenizer)
    end = tokenizer.turn_end_ids[0]
    assert tiny_pair.tokenizer.convert_ids_to_tokens(end) == "<end_of_turn>"
    events = run(Decoder(Subject(tiny_pair), CACHE_BYTES, 64), order)
    assert {event.role for event in events if isinstance(event, Token)} == {TokenRole.ASSISTANT}
    third = ids_of(events, order)[2]
    model = tiny_pair.models[CHAT]
    before = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = [third]
    try:
        events = run(Decoder(Subject(tiny_pair), CACHE_BYTES, 64), order)
    finally:
        model.generation_config.eos_token_id = before
    tokens = [event for event in events if isinstance(event, Token)]
    ended = end_of(events, order)
    assert ended.reason is EndReason.TURN_END
    assert [token.id for token in tokens].index(third) == len(tokens) - 1
    assert tokens[-1].role == TokenRole.TURN_END
    assert ended.text == "".join(token.piece for token in tokens[:-1])
    assert ended.num_tokens == len(tokens)


def test_a_stop_string_that_spans_tokens_ends_the_answer(tiny_pair: Pair, tokenizer: TextTokenizer) -> None:
    free = prompt(tokenizer, LONG, GREEDY)
    text = end_of(run(Decoder(Subject(tiny_pair), CACHE_BYTES, 64), free), free).text
    stop = text[3:9]
    order = prompt(
        tokenizer, LONG, ArmOrder(CHAT, (), SamplingSettings(max_new_tokens=NUM_TOKENS, stop=("never", stop)))
    )
    events = run(Decoder(Subject(tiny_pair), CACHE_BYTES, 64), order)
    assert end_of(events, order).reason is EndReason.STOP
    assert end_of(events, order).text == text[: text.index(stop)]
    said = "".join(event.piece for event in events if isinstance(event, Token))
    assert stop in said
    assert text.startswith(said)


def test_events_say_what_was_left_out_and_what_was_changed(read: Subject, tokenizer: TextTokenizer) -> None:
    added = Intervention((3,), Action.ADD, 0.5, positions=frozenset({0, 2, 3, 9999}))
    order = prompt(tokenizer, SHORT, ArmOrder(CHAT, (added,), SamplingSettings(max_new_tokens=4)))
    events = run(Decoder(read, CACHE_BYTES, 64), order)
    started = events[0]
    assert isinstance(started, Started)
    assert started.left_out is not None
    assert started.left_out.tolist() == [LeftOut.BOS] + [LeftOut.KEPT] * (len(order.ids) - 1)
    ended = end_of(events, order)
    assert (ended.num_changed, ended.num_left_out) == (2, 1)
    everywhere = replace(added, positions=frozenset(), include_left_out=True)
    order = prompt(tokenizer, SHORT, ArmOrder(CHAT, (everywhere,), SamplingSettings(max_new_tokens=4)))
    ended = end_of(run(Decoder(read, CACHE_BYTES, 64), order), order)
    # The last of four tokens is never read.
    assert (ended.num_changed, ended.num_left_out) == (len(order.ids) + 3, 0)


def test_what_cannot_be_done_is_refused_and_nothing_stays(read: Subject, tokenizer: TextTokenizer) -> None:
    decoder = Decoder(Subject(read.pair), CACHE_BYTES, 64)
    with pytest.raises(InterventionError, match="needs a crosscoder"):
        decoder.admit(prompt(tokenizer, SHORT, ArmOrder(CHAT, (Intervention((1,), Action.ABLATE),))))
    with pytest.raises(InterventionError, match="needs a crosscoder"):
        decoder.admit(prompt(tokenizer, SHORT, GREEDY, with_code=True))
    steering = Decoder(read, CACHE_BYTES, 64)
    with pytest.raises(InterventionError, match="no latent 99; this crosscoder has 24"):
        steering.admit(prompt(tokenizer, SHORT, ArmOrder(CHAT, (Intervention((99,), Action.ABLATE),))))
    assert decoder.is_idle
    assert steering.is_idle
