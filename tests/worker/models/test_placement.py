"""Models on several devices answer as on one, bit for bit: devices that are not there, with values on the CPU."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from crosscope_proto.roles import BASE, CHAT
from crosscope_proto.specs import TokenPolicy
from crosscope_worker.dictionary.keep import LargestOfToken
from crosscope_worker.effects.attribute import Question, attribute
from crosscope_worker.effects.compare import compare
from crosscope_worker.effects.decoding import Decoder
from crosscope_worker.effects.interventions import Action, Intervention, Reach
from crosscope_worker.effects.orders import ArmOrder, Ended, SamplingSettings, Started, Token
from crosscope_worker.effects.subject import Reading, Subject
from crosscope_worker.models.activations import PairActivations
from crosscope_worker.models.norms import NormBounds
from crosscope_worker.models.pair import Pair, decoder_layers, expected_bytes, load_pair
from crosscope_worker.models.placement import Placement, PlacementError, division
from crosscope_worker.serve.encoding import Encoder
from crosscope_worker.serve.settings import ServeSettings
from crosscope_worker.tokenizer.tokens import TextTokenizer
from tests.worker.effects.decoder_runs import CACHE_BYTES, prompt, random_crosscoder, run
from tests.worker.elsewhere import HERE, THERE, elsewhere

IDS = np.array([2, 7, 8, 9, 300, 41, 20, 6, 17, 33, 5, 90])
APART, SPREAD, CROSSED = f"{HERE},{THERE}", f"{HERE}+{THERE}", f"{HERE}+{THERE},{THERE}+{HERE}"
ARMS = (
    ArmOrder(CHAT, (), SamplingSettings(temperature=1.0, num_samples=2, max_new_tokens=2)),
    ArmOrder(CHAT, (Intervention((2, 5), Action.ADD, 1.5),), SamplingSettings(max_new_tokens=2)),
    ArmOrder(CHAT, (Intervention((2, 5, 11), Action.ABLATE),), SamplingSettings(max_new_tokens=2)),
    ArmOrder(BASE, (Intervention((2, 5), Action.TRANSPLANT),), SamplingSettings(max_new_tokens=2)),
    ArmOrder(BASE, (Intervention((), Action.SWAP_STREAM, reach=Reach.PROMPT),), SamplingSettings(max_new_tokens=2)),
)


def test_words_name_the_devices_of_each_model() -> None:
    cpu, here, there = torch.device("cpu"), torch.device(HERE), torch.device(THERE)
    assert Placement.of("cpu") == Placement((cpu,), (cpu,))
    assert Placement.of("cpu,cpu") == Placement.of(cpu) == Placement.of("cpu")
    assert Placement.of(f" {HERE} , cpu ") == Placement((here,), (cpu,))
    crossed = Placement.of(CROSSED)
    assert crossed == Placement((here, there), (there, here))
    assert (crossed.home, crossed.devices, str(crossed)) == (there, (here, there), CROSSED)
    assert crossed.together == Placement((there, here), (there, here))
    assert Placement.of(str(crossed)) == crossed
    assert (str(Placement.of(SPREAD)), Placement.of("cpu").devices) == (SPREAD, (cpu,))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("cuda:7", "there is no device 'cuda:7'; there are: cpu, cuda:0, cuda:1"),
        ("cpu,cuda:2", "there is no device 'cuda:2'; there are: cpu, cuda:0, cuda:1"),
        ("gpu", "'gpu' is no device; there are: cpu, cuda:0, cuda:1"),
        ("", "'' is no device; there are: cpu, cuda:0, cuda:1"),
        ("meta", "there is no device 'meta'; there are: cpu, cuda:0, cuda:1"),
        ("cuda:0,cpu,cuda:1", "names devices for 3 models, but a pair has two"),
        ("cuda:0+cuda:0", "names a device twice for one model; name each once"),
    ],
)
def test_devices_that_are_not_there_are_refused_with_those_that_are(
    words: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(PlacementError) as refused:
        Placement.of(words)
    assert sentence in str(refused.value)


def test_inference_does_not_start_on_a_device_that_is_not_there() -> None:
    given: dict[str, Any] = {"home": "/home", "listen": "unix:/run/worker"}
    assert ServeSettings(**given, device="cpu, cpu").device == "cpu"
    with pytest.raises(ValidationError, match="there is no device 'cuda:7'; there are: cpu"):
        ServeSettings(**given, device="cpu,cuda:7")


@pytest.mark.parametrize(
    ("num_gpus", "expected"),
    [
        (0, "cpu"),
        (1, "cuda:0"),
        (2, "cuda:0,cuda:1"),
        (3, "cuda:0+cuda:1,cuda:1+cuda:2"),
        (4, "cuda:0+cuda:1,cuda:2+cuda:3"),
    ],
)
def test_auto_is_all_gpus(num_gpus: int, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    assert str(Placement.of("auto")) == expected


def test_layers_are_divided_by_bytes() -> None:
    """Four layers of 10 and 20 beside them, on two devices of 30: a layer goes where its middle lies."""
    a, b, c = (torch.device(f"lazy:{index}") for index in range(3))
    assert division([10] * 4, 20, [a, b]) == [a, b, b, b]
    assert division([10] * 4, 0, [a, b]) == [a, a, b, b]
    assert division([10] * 6, 0, [a, b, c]) == [a, a, b, b, c, c]
    assert division([10] * 2, 100, [a, b]) == [b, b], "what is beside fills the first"
    assert division([0, 0], 0, [a, b]) == [a, a]


def subject_of(pair: Pair) -> Subject:
    crosscoder = random_crosscoder(pair, LargestOfToken(6), "sae").to(pair.device)
    reading = Reading(1, crosscoder, torch.linspace(0.5, 2.0, crosscoder.num_latents), TokenPolicy())
    return Subject(pair, replace(reading, bounds=NormBounds((1e9, 5.5), (0,))))


def answers(pair: Pair) -> list[Any]:
    """What a worker is asked of a pair, once each."""
    subject = subject_of(pair)
    reading = subject.reading
    assert reading is not None
    encoder = Encoder(subject, 1)
    encoder.check()
    found: list[Any] = [vars(code) for code in encoder([IDS, IDS[:5]])]
    found += [vars(model) for each in compare(subject, [IDS[:8], IDS[:3]], 3) for model in (each.base, each.chat)]
    found += [each.kl_chat_base for each in compare(Subject(pair), [IDS[:4]], 3)]
    ids, roles = IDS[:8], TextTokenizer(pair.tokenizer).text("a").roles[:1].repeat(8)
    questions = [Question(num_exact=2, include_left_out=True), Question(BASE, (3, 6), num_exact=1)]
    questions.append(Question(continuations=(IDS[:2], IDS[3:6]), num_exact=1, include_left_out=True))
    for question in questions:
        found.append(vars(attribute(subject, ids, roles, question)))
    tokenizer = TextTokenizer(pair.tokenizer)
    decoder = Decoder(subject, CACHE_BYTES, 8)
    orders = [prompt(tokenizer, text, *ARMS, with_code=True) for text in ("the red fox", "a")]
    found.append(decoder.token_bytes)
    for event in run(decoder, *orders):
        match event:
            case Started():
                found += [event.left_out, vars(event.code)]
            case Token():
                found += [event.id, event.log_probability, None if event.code is None else vars(event.code)]
            case Ended():
                found += [event.text, event.num_changed, event.num_left_out]
    return found


def assert_same(found: Any, expected: Any) -> None:
    """Nested values, equal bit for bit."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        found, expected = list(found.values()), list(expected.values())
    if isinstance(expected, Sequence) and not isinstance(expected, str):
        assert len(found) == len(expected)
        for each in zip(found, expected, strict=True):
            assert_same(*each)
    else:
        np.testing.assert_array_equal(found, expected)


@pytest.fixture(scope="module")
def expected(tiny_pair: Pair) -> list[Any]:
    return answers(tiny_pair)


def devices_of(pair: Pair) -> list[set[str]]:
    return [{str(each.device) for each in model.parameters()} for model in pair.models]


@pytest.mark.parametrize(("words", "lie"), [(APART, [{HERE}, {THERE}]), (CROSSED, [{HERE, THERE}] * 2)])
def test_everything_that_a_worker_is_asked_is_the_same_on_several_devices(
    words: str, lie: list[set[str]], tiny_pair: Pair, expected: list[Any]
) -> None:
    with elsewhere():
        pair = load_pair(tiny_pair.manifest, words)
        assert devices_of(pair) == lie
        assert not pair.is_together
        assert_same(answers(pair), expected)


def test_one_device_named_twice_is_one(tiny_pair: Pair, expected: list[Any]) -> None:
    pair = load_pair(tiny_pair.manifest, "cpu,cpu")
    assert pair.is_together
    assert_same(answers(pair), expected)


def test_bytes_are_known_of_each_device_before_a_model_is_loaded(tiny_pair: Pair) -> None:
    with elsewhere():
        for words in (APART, CROSSED):
            for upto in (None, 1):
                pair = load_pair(tiny_pair.manifest, words, upto=upto)
                found = {torch.device(name): 0 for name in (HERE, THERE)}
                for model in pair.models:
                    for name, each in model.named_parameters():
                        # Here, unlike on a GPU, a tied head is another tensor.
                        found[each.device] += 0 if name == "lm_head.weight" else each.nbytes
                assert expected_bytes(tiny_pair.manifest, upto, words) == found


def test_the_rest_of_a_spread_model_joins_the_part_that_is_there(tiny_pair: Pair) -> None:
    with elsewhere():
        part = load_pair(tiny_pair.manifest, SPREAD, upto=2)
        whole = load_pair(tiny_pair.manifest, SPREAD, given=part)
        for lower, model in zip(part.models, whole.models, strict=True):
            below, layers = decoder_layers(lower), decoder_layers(model)
            for index in range(3):
                for one, other in zip(below[index].parameters(), layers[index].parameters(), strict=True):
                    assert one is other
        ids, lengths = torch.from_numpy(IDS)[None], torch.tensor([len(IDS)])
        for pair in (part, whole):
            x = PairActivations(pair, 2)(ids, lengths)
            torch.testing.assert_close(x.cpu(), PairActivations(tiny_pair, 2)(ids, lengths), rtol=0, atol=0)


def test_mixing_devices_fails_in_these_tests_as_on_gpus() -> None:
    """The devices of these tests are worth something."""
    with elsewhere():
        here, there, plain = torch.ones(2, device=HERE), torch.ones(2).to(THERE), torch.ones(2)
        for wrong in ((here, there), (here, plain), (plain, there)):
            with pytest.raises(RuntimeError, match="same device"):
                torch.add(*wrong)
        with pytest.raises(RuntimeError, match="numpy"):
            here.numpy()
        moved: Tensor = here.to(THERE) + there
        assert (moved.device, moved.tolist()) == (torch.device(THERE), [2.0, 2.0])
