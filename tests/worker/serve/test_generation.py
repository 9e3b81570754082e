"""Callers of the generation beside each other and beside prompts that are encoded, with a real decoder."""

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import pytest_asyncio
from fixtures_waiting import PATIENCE_S, happening

from crosscope_proto.roles import CHAT
from crosscope_worker.dictionary.keep import AboveThreshold
from crosscope_worker.effects.decoding import Decoder
from crosscope_worker.effects.interventions import Action, Intervention, InterventionError
from crosscope_worker.effects.orders import ArmOrder, DoesNotFit, Ended, Event, Order, SamplingSettings, Token
from crosscope_worker.effects.subject import Subject
from crosscope_worker.models.pair import Pair
from crosscope_worker.models.places import PairError
from crosscope_worker.serve.batching import Batcher
from crosscope_worker.serve.errors import Overloaded, TooLate
from crosscope_worker.serve.generation import Generations
from crosscope_worker.tokenizer.tokens import TextTokenizer
from tests.worker.effects.decoder_runs import CACHE_BYTES, prompt, random_crosscoder, subject, with_models
from tests.worker.tiny_models import tiny_model

UNREAD_BYTES = 1 << 24
TEXTS = ("what is two", "tell me a short story about the red fox", "the baker", "hm")


@pytest.fixture(scope="module")
def tokenizer(tiny_pair: Pair) -> TextTokenizer:
    return TextTokenizer(tiny_pair.tokenizer)


@pytest.fixture(scope="module")
def read(tiny_pair: Pair) -> Subject:
    return subject(tiny_pair, random_crosscoder(tiny_pair, AboveThreshold(0.5)))


class Steps:
    """Counts the steps of all decoders, and holds them back while it is closed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.open = threading.Event()
        self.open.set()
        own = Decoder.step

        def step(decoder: Decoder, *args: Any) -> list[Event]:
            assert self.open.wait(PATIENCE_S)
            self.count += 1
            return own(decoder, *args)

        monkeypatch.setattr(Decoder, "step", step)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    return Steps(monkeypatch)


@pytest_asyncio.fixture
async def device(steps: Steps) -> AsyncIterator[ThreadPoolExecutor]:
    executor = ThreadPoolExecutor(1)
    yield executor
    steps.open.set()
    executor.shutdown()


@pytest.fixture
def generations(device: ThreadPoolExecutor) -> Generations:
    return Generations(
        device, CACHE_BYTES, prefill_tokens=64, max_waiting=3, max_unread_bytes=UNREAD_BYTES, num_threads=1
    )


def greedy(tokenizer: TextTokenizer, text: str, num_tokens: int = 12, model: int = CHAT) -> Order:
    return prompt(tokenizer, text, ArmOrder(model, (), SamplingSettings(max_new_tokens=num_tokens)))


async def collected(events: AsyncIterator[list[Event]]) -> list[Event]:
    return [event async for some in events for event in some]


async def test_callers_share_steps_and_each_gets_its_own(
    generations: Generations, steps: Steps, read: Subject, tokenizer: TextTokenizer
) -> None:
    orders = [greedy(tokenizer, text) for text in TEXTS[:3]]
    alone = [await collected(generations.generate("a", read, order)) for order in orders]
    apart = steps.count
    together = await asyncio.gather(*(collected(generations.generate("a", read, order)) for order in orders))
    assert steps.count - apart <= apart / 3 + 2
    for order, own, found in zip(orders, alone, together, strict=True):
        assert {event.order for event in found} == {order}
        ids = [[event.id for event in events if isinstance(event, Token)] for events in (own, found)]
        assert ids[0] == ids[1]
        assert isinstance(found[-1], Ended)
    assert generations.num_waiting == 0


async def test_two_subjects_take_turns(
    generations: Generations, read: Subject, tiny_pair: Pair, tokenizer: TextTokenizer
) -> None:
    bare = Subject(tiny_pair)
    ends: list[str] = []

    async def ask(key: str, subject: Subject) -> list[Event]:
        found = await collected(generations.generate(key, subject, greedy(tokenizer, TEXTS[0])))
        ends.append(key)
        return found

    first, second = await asyncio.gather(ask("a", read), ask("b", bare))
    assert [event.id for event in first if isinstance(event, Token)] == [
        event.id for event in second if isinstance(event, Token)
    ]


async def test_a_caller_who_goes_away_frees_his_place_before_the_next_step(
    generations: Generations, steps: Steps, read: Subject, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    counted = Decoder.step

    def step(decoder: Decoder, *args: Any) -> list[Event]:
        rows.append(decoder.num_rows)
        return counted(decoder, *args)

    monkeypatch.setattr(Decoder, "step", step)
    kept = asyncio.create_task(collected(generations.generate("a", read, greedy(tokenizer, TEXTS[0], 40))))
    for leave in ("close", "cancel"):
        gone = generations.generate("a", read, greedy(tokenizer, TEXTS[1], 200))
        if leave == "close":
            await anext(gone)
            await anext(gone)
            steps.open.clear()
            await gone.aclose()  # pyright: ignore[reportAttributeAccessIssue]
        else:
            task = asyncio.create_task(collected(gone))
            await happening(lambda: rows[-1] == 2)
            steps.open.clear()
            task.cancel()
            await asyncio.wait([task])
        before = len(rows)
        steps.open.set()
        await happening(lambda before=before: len(rows) >= before + 2)
        assert rows[before + 1] == 1
    assert len([event for event in await kept if isinstance(event, Token)]) == 40


async def test_an_encode_waits_for_one_step_at_most(
    generations: Generations, steps: Steps, device: ThreadPoolExecutor, read: Subject, tokenizer: TextTokenizer
) -> None:
    batches: list[int] = []

    def encode(_key: str, items: Sequence[int]) -> Sequence[int]:
        batches.append(steps.count)
        return items

    batcher = Batcher(encode, device, 100, 1000)
    orders = [greedy(tokenizer, text, 60) for text in TEXTS[:3]]
    running = [asyncio.create_task(collected(generations.generate("a", read, order))) for order in orders]
    await happening(lambda: steps.count > 2)
    for number in range(20):
        asked = steps.count
        await batcher.submit("x", number, 1)
        # The step that runs is counted when it begins; at most one more begins before the event loop hears of us.
        assert batches[-1] - asked <= 2
    for task in running:
        assert isinstance((await task)[-1], Ended)


async def test_a_slow_reader_holds_up_nobody_and_loses_nothing(
    generations: Generations, read: Subject, tokenizer: TextTokenizer
) -> None:
    slow = generations.generate("a", read, greedy(tokenizer, TEXTS[0], 30))
    first = await anext(slow)
    quick = await collected(generations.generate("a", read, greedy(tokenizer, TEXTS[0], 30)))
    rest = await collected(slow)
    assert [event.id for event in [*first, *rest] if isinstance(event, Token)] == [
        event.id for event in quick if isinstance(event, Token)
    ]


async def test_too_many_that_wait_are_refused_with_a_hint(
    generations: Generations, steps: Steps, read: Subject, tokenizer: TextTokenizer
) -> None:
    steps.open.clear()
    running = [asyncio.create_task(collected(generations.generate("a", read, greedy(tokenizer, "hm")))) for _ in "abc"]
    await happening(lambda: generations.num_waiting == 3)
    with pytest.raises(Overloaded, match="3 prompts wait to be continued, and the limit is 3") as refused:
        await collected(generations.generate("a", read, greedy(tokenizer, "hm")))
    assert refused.value.retry_after_s
    steps.open.set()
    await asyncio.gather(*running)
    assert len(await collected(generations.generate("a", read, greedy(tokenizer, "hm")))) > 1


async def test_a_deadline_ends_the_wait_and_frees_the_place(
    generations: Generations, steps: Steps, read: Subject, tokenizer: TextTokenizer
) -> None:
    steps.open.clear()
    with pytest.raises(TooLate, match="the deadline passed before the answers ended"):
        await collected(generations.generate("a", read, greedy(tokenizer, "hm", 200), timeout_s=0.05))
    steps.open.set()
    before = steps.count
    await collected(generations.generate("a", read, greedy(tokenizer, "hm", 3)))
    assert steps.count - before < 20


async def test_what_cannot_be_done_is_the_answer_to_its_caller_alone(
    generations: Generations, read: Subject, tiny_pair: Pair, tokenizer: TextTokenizer
) -> None:
    running = asyncio.create_task(collected(generations.generate("a", read, greedy(tokenizer, TEXTS[0], 30))))
    wrong = prompt(tokenizer, "hm", ArmOrder(CHAT, (Intervention((99,), Action.ABLATE),)))
    with pytest.raises(InterventionError, match="no latent 99"):
        await collected(generations.generate("a", read, wrong))
    large = ArmOrder(CHAT, (), SamplingSettings(num_samples=32, max_new_tokens=8000))
    # 256 positions can be read, so 32 answers and the prompt need 33 × 256 × 1 KiB.
    small = Generations(generations._executor, 1 << 20, 64, 3, UNREAD_BYTES)  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(DoesNotFit, match=r"32 answers of up to 256 tokens, .* need \d+ bytes .* has 1048576"):
        await collected(small.generate("a", read, prompt(tokenizer, "hm", large)))
    mamba = tiny_model("Mamba")
    with pytest.raises(PairError, match="MambaForCausalLM, cannot generate here"):
        await collected(generations.generate("m", Subject(with_models(tiny_pair, mamba, mamba)), wrong))
    assert len([event for event in await running if isinstance(event, Token)]) == 30


async def test_a_bug_in_a_step_is_the_answer_to_everyone_in_it_and_the_next_call_works(
    generations: Generations, read: Subject, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        def fail(*_args: object) -> list[Event]:
            raise ArithmeticError("a bug")

        patch.setattr(Decoder, "step", fail)
        callers = (collected(generations.generate("a", read, greedy(tokenizer, text))) for text in TEXTS[:2])
        errors = await asyncio.gather(*callers, return_exceptions=True)
        assert [str(error) for error in errors] == ["a bug", "a bug"]
    assert isinstance((await collected(generations.generate("a", read, greedy(tokenizer, "hm"))))[-1], Ended)


async def test_a_subject_is_tried_once_and_not_kept(
    generations: Generations, tiny_pair: Pair, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []
    own = Decoder.__init__

    def init(decoder: Decoder, *args: Any) -> None:
        own(decoder, *args)
        tried.append(args[4] is None)

    monkeypatch.setattr(Decoder, "__init__", init)
    bare = Subject(tiny_pair)
    for _ in range(2):
        await collected(generations.generate("p", bare, greedy(tokenizer, "hm", 3)))
    assert tried == [True, False]
    seen = weakref.ref(bare)
    del bare

    def is_gone() -> bool:
        gc.collect()
        return seen() is None

    await happening(is_gone)
