"""Codes of prompts: the same in recorded shapes as one by one, in the same order, and what recorded runs take."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures_serve import VERSION, random_crosscoder, write_version
from torch.overrides import TorchFunctionMode

from crosscope_worker.dictionary.keep import AboveThreshold, LargestOfToken
from crosscope_worker.dictionary.sparse import SparseCode
from crosscope_worker.dictionary.strongest import _order, by_strength, fetched
from crosscope_worker.effects.subject import Subject
from crosscope_worker.models.activations import PairActivations
from crosscope_worker.models.norms import NormBounds
from crosscope_worker.serve import loading
from crosscope_worker.serve.encoding import Encoder, PromptCode
from crosscope_worker.serve.loading import LoadedCrosscoder, Loader, warm_up
from tests.worker.devices import needs_gpu
from tests.worker.effects.subjects import LAYER as SUBJECT_LAYER
from tests.worker.effects.subjects import decoupled, make_crosscoder, make_pair, make_subject
from tests.worker.models.test_fixed_shapes import Plain, on_gpu, texts_of

LENGTHS = [5, 40, 1, 100, 17, 33]


def subject_of(kind: str = "Gemma2") -> Subject:
    """With bounds of norms that leave out every first token, and about half of the others."""
    pair = make_pair(kind)
    x = PairActivations(pair, SUBJECT_LAYER).rows(torch.from_numpy(texts_of([64])[0])[None])[0]
    base, chat = (float(part.norm(dim=-1).median()) for part in x.split(pair.d_model, dim=-1))
    return make_subject(pair, bounds=NormBounds((base, 10 * chat), (0,)))


def assert_same(found: list[PromptCode], expected: list[PromptCode], rtol: float = 1e-4) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.row_starts, other.row_starts)
        np.testing.assert_array_equal(one.latents, other.latents)
        np.testing.assert_allclose(one.activations, other.activations, rtol=rtol)
        np.testing.assert_array_equal(one.outlying, other.outlying)


@pytest.mark.parametrize("kind", ["Gemma2", "Llama"])
def test_recorded_shapes_give_the_codes_of_each_prompt_alone(kind: str) -> None:
    subject, plain, prompts = subject_of(kind), Plain(), texts_of(LENGTHS)
    encoder = Encoder(subject, 1, plain)
    together = encoder(prompts)
    alone = [Encoder(subject, 1)([ids])[0] for ids in prompts]
    assert plain.repeated
    assert_same(together, alone)
    assert_same(Encoder(subject, 1)(prompts), alone)
    assert [code.outlying[0] for code in together] == [True] * len(prompts)
    assert 0 < np.concatenate([code.outlying[1:] for code in together]).mean() < 1
    assert 1 < sum(len(code.latents) for code in together) / sum(LENGTHS) < 35
    assert encoder.size_bytes == sum(shape.rows * shape.pos * 32 * 4 for shape in plain.recorded)
    assert Encoder(subject, 1).size_bytes == 0


def test_entries_are_by_token_then_strength_with_ties_to_the_lower_latent() -> None:
    """By hand: latent 7 and 2 tie on token 0; the sort of CUDA tensors, here of the CPU's, gives the same order."""
    crosscoder = replace(make_crosscoder((16, 16)), W_dec=torch.full((40, 32), 0.5 / 16**0.5))
    sparsifier = crosscoder.sparsifier()  # norms of 0.5 in each model: the code times 1
    tokens, latents = torch.tensor([0, 0, 0, 1, 2, 2]), torch.tensor([2, 5, 7, 0, 3, 4])
    code = SparseCode(tokens, latents, torch.tensor([1.5, 3.0, 1.5, 9.0, 0.5, 0.25]), 3)
    found = by_strength(code, sparsifier)
    assert [each.tolist() for each in found] == [
        [0, 0, 0, 1, 2, 2],
        [5, 2, 7, 0, 3, 4],
        [3.0, 1.5, 1.5, 9.0, 0.5, 0.25],
    ]
    order = _order(tokens, sparsifier.scaled_entries(code))
    assert latents[order].tolist() == found[1].tolist()


def test_the_order_is_that_of_the_cpu_for_many_ties() -> None:
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(50, (5000,), generator=draw).sort().values
    activations = torch.randint(1, 20, (5000,), generator=draw).float()
    expected = np.lexsort((-activations.numpy(), tokens.numpy()))
    assert _order(tokens, activations).tolist() == expected.tolist()


def test_one_copy_brings_tensors_of_all_kinds_and_none() -> None:
    given = [
        torch.tensor([True, False, True]),
        torch.arange(5),
        torch.empty(0),
        torch.arange(6, dtype=torch.float32).view(2, 3).T,
        torch.arange(7, dtype=torch.uint8),
    ]
    found = fetched(given)
    assert [each.dtype for each in found] == [np.bool_, np.int64, np.float32, np.float32, np.uint8]
    for one, other in zip(found, given, strict=True):
        np.testing.assert_array_equal(one, other.numpy())


def test_recorded_runs_count_as_memory_of_a_crosscoder(home: Path) -> None:
    loaded = Loader(home, "cpu").load("demo", VERSION, whole=False)
    assert isinstance(loaded, LoadedCrosscoder)
    weights = loaded.size_bytes
    recorded = replace(loaded, encoder=Encoder(loaded.subject, 1, Plain()))
    warm_up(recorded)
    assert recorded.size_bytes == weights + (16 + 64) * 64 * 4  # prompts of 1, 8 and 64 tokens; 64 values a token


def test_only_the_crosscoders_product_is_rounded_as_its_recipe_says() -> None:
    """Models make angles of positions by products, which TF32 would spoil."""
    seen: dict[str, set[str]] = {}

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in (torch.addmm, torch.nn.functional.linear):
                seen.setdefault(func.__name__, set()).add(torch.get_float32_matmul_precision())
            return func(*args, **(kwargs or {}))

    for float32, word in (("tf32", "high"), ("ieee", "highest"), (None, "highest")):
        seen.clear()
        with Watch():
            Encoder(make_subject(make_pair("Gemma2"), float32=float32), 1, Plain())(texts_of([9, 20]))
        assert seen == {"addmm": {word}, "linear": {"highest"}}
    assert torch.get_float32_matmul_precision() == "highest"


def test_how_products_are_made_is_said_by_setting_then_recipe_then_device(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "float32_on", lambda _device, asked: asked or "tf32")  # as a GPU answers
    write_version(home, "told", random_crosscoder(), recipe={"float32": "ieee"})
    write_version(home, "silent", random_crosscoder(), recipe={"float32": None})

    def found(name: str, setting: Any) -> str | None:
        loaded = Loader(home, "cpu", setting).load(name, VERSION, whole=False)
        assert isinstance(loaded, LoadedCrosscoder)
        return loaded.reading.float32

    assert [found(name, None) for name in ("told", "silent", "demo")] == ["ieee", "tf32", "tf32"]
    assert [found("told", "tf32"), found("silent", "ieee")] == ["tf32", "ieee"]


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("rule", ["threshold", "largest", "decoupled"])
def test_a_gpu_gives_the_codes_of_the_cpu(rule: str) -> None:
    """With graphs and without; in IEEE float32, where no latent may come or go."""
    on_cpu = make_pair("Gemma2")
    makers = {
        "threshold": lambda: make_crosscoder(on_cpu.d_model, keep=AboveThreshold(2.0)),
        "largest": lambda: make_crosscoder(on_cpu.d_model, keep=LargestOfToken(8)),
        "decoupled": lambda: decoupled(on_cpu.d_model),
    }
    bounds = NormBounds((6.0, 6.5), (0,))
    subject = make_subject(on_cpu, makers[rule](), bounds=bounds, float32="ieee")
    there = make_subject(on_gpu(on_cpu, torch.float32), makers[rule]().to("cuda"), bounds=bounds, float32="ieee")
    prompts = texts_of(LENGTHS)
    expected = Encoder(subject, 1)(prompts)
    assert_same(Encoder(there, 1)(prompts), expected)
    assert_same(Encoder(there, 1, Plain())(prompts), expected)
