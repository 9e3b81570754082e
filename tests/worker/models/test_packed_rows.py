"""Rows of many texts with packed attention and compiled layers, on the CPU: by a formula in the kernel's place."""

# pyright: reportPrivateUsage=false, reportArgumentType=false, reportAttributeAccessIssue=false

import re
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from crosscope_proto.artefacts import PairManifest
from crosscope_proto.specs import TokenPolicy
from crosscope_worker.data.harvest import harvest
from crosscope_worker.data.packing import pack
from crosscope_worker.data.texts import Text
from crosscope_worker.models import packed_attention as attention
from crosscope_worker.models import packed_rows
from crosscope_worker.models.activations import PairActivations
from crosscope_worker.models.pair import Pair, decoder_layers
from tests.worker.models.packed_attention_formula import formula
from tests.worker.tiny_models import tiny_model

LENGTHS = (1, 5, 17, 24, 9, 2)
"""Gemma 2's sliding window is 8 tokens here."""
ROW = 64


@pytest.fixture(autouse=True, scope="module")
def _formula_on_the_cpu() -> None:
    attention.packed_attention.register_kernel("cpu")(formula)


@pytest.fixture(autouse=True)
def _compiled_to_the_same_operators(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Graphs are made and guarded as ever; what C++ or Triton would come of them is left out."""
    monkeypatch.setattr(packed_rows, "BACKEND", "eager")
    packed_rows._compiled.cache_clear()
    torch.compiler.reset()
    yield
    packed_rows._compiled.cache_clear()


def pair_of(kind: str, tiny_pair: Pair, dtype: torch.dtype = torch.float32, other: str | None = None) -> Pair:
    models = [tiny_model(each, attn_implementation="eager") for each in (kind, other or kind)]
    for parameter in models[1].parameters():
        parameter += 0.05 * torch.randn_like(parameter)
    manifest = PairManifest(name="random", base="base", chat="chat", tokenizer="chat")
    both = (models[0].to(dtype), models[1].to(dtype))
    return Pair(manifest, both, tiny_pair.tokenizer, torch.device("cpu"), long_rows=True)


def texts_of(lengths: tuple[int, ...], seed: int = 0) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [draw.integers(3, 61, length) for length in lengths]


def read(activations: PairActivations, texts: list[np.ndarray]) -> list[Tensor]:
    """Activations of texts that lie in one long row."""
    (forward,) = pack([len(text) for text in texts], ROW, share_rows=True, long_rows=True)
    assert forward.shape == (1, ROW)
    x = activations.rows(*forward.fill([texts[index] for index in forward.texts]))[0]
    starts = dict(zip(forward.texts.tolist(), forward.starts.tolist(), strict=True))
    return [x[starts[index] : starts[index] + len(text)] for index, text in enumerate(texts)]


@pytest.mark.parametrize("kind", ["Gemma2", "Qwen3", "GPT2"])
def test_texts_of_a_long_row_are_as_if_alone(kind: str, tiny_pair: Pair) -> None:
    """Gemma 2 has layers with a window and without; both models share their graphs, and other texts need no others."""
    activations = PairActivations(pair_of(kind, tiny_pair), 2)
    first, second = texts_of(LENGTHS), texts_of((30, 20, 7), seed=1)
    alone = [activations.rows(torch.from_numpy(text)[None])[0] for text in (*first, *second)]
    before = packed_rows.graphs_compiled()
    assert activations.packs_rows(ROW)
    num_graphs = packed_rows.graphs_compiled() - before
    assert num_graphs == (2 if kind == "Gemma2" else 1)
    assert f"rows hold 64 tokens of many texts, with packed attention and {num_graphs} graphs" in (
        activations.about_rows(ROW)
    )
    together = [*read(activations, first), *read(activations, second)]
    for x, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(x, expected, atol=2e-5, rtol=1e-5)
    assert packed_rows.graphs_compiled() - before == num_graphs
    for model in activations.pair.models:
        assert model.config._attn_implementation == "eager"
        assert not any("forward" in layer.__dict__ for layer in decoder_layers(model))


def test_rounding_in_bfloat16_is_no_reason(tiny_pair: Pair) -> None:
    activations = PairActivations(pair_of("Gemma2", tiny_pair, torch.bfloat16), 2)
    assert activations.packs_rows(ROW)
    assert "its own attention: " in activations.about_rows(ROW)


@pytest.mark.parametrize("without", ["softcap", "window", "texts"])
def test_wrong_numbers_are_never_taken(without: str, tiny_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(q: Tensor, k: Tensor, v: Tensor, positions: Tensor, scale: float, softcap: float, window: int) -> Tensor:
        if without == "texts":
            positions = torch.arange(q.shape[2]).expand(len(q), -1)
        return formula(
            q, k, v, positions, scale, 0 if without == "softcap" else softcap, 0 if without == "window" else window
        )

    pair = pair_of("Gemma2", tiny_pair)
    for model in pair.models:
        for layer in decoder_layers(model):
            layer.self_attn.attn_logit_softcapping = 1.0
    attention.packed_attention.register_kernel("cpu")(wrong)
    try:
        activations = PairActivations(pair, 2)
        assert not activations.packs_rows(ROW)
    finally:
        attention.packed_attention.register_kernel("cpu")(formula)
    said = r"^rows are short, with the models' own attention: the (base|chat) model's activations change by"
    assert re.match(said, activations.about_rows(ROW))


def test_layers_that_cannot_be_compiled_run_as_they_are(tiny_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(packed_rows, "BACKEND", fail)
    activations = PairActivations(pair_of("Gemma2", tiny_pair), 2)
    assert activations.packs_rows(ROW)
    assert activations.about_rows(ROW).startswith("compiled layers cannot be used: BackendCompilerFailed: ")
    assert "layers that are not compiled" in activations.about_rows(ROW)
    texts = texts_of(LENGTHS)
    alone = [activations.rows(torch.from_numpy(text)[None])[0] for text in texts]
    for x, expected in zip(read(activations, texts), alone, strict=True):
        torch.testing.assert_close(x, expected, atol=2e-5, rtol=1e-5)


def test_memory_that_runs_out_is_no_answer(tiny_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    pair = pair_of("Llama", tiny_pair)
    monkeypatch.setattr(packed_rows, "_errors", refuse)
    with pytest.raises(torch.OutOfMemoryError):
        PairActivations(pair, 2).packs_rows(ROW)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("Lfm2", "mixes texts of one row"), ("Llama4", "transformers does not say that")],
)
def test_a_model_that_cannot_is_read_in_short_rows(
    kind: str, reason: str, tiny_pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    activations = PairActivations(pair_of("Llama", tiny_pair, other=kind), 2)
    with caplog.at_level("INFO"):
        assert not activations.packs_rows(ROW)
    assert reason in caplog.text


def test_a_pair_on_the_cpu_is_not_tried(tiny_pair: Pair) -> None:
    activations = PairActivations(tiny_pair, 2)
    assert not activations.packs_rows(ROW)
    assert activations.about_rows(ROW) == ""


def test_a_harvest_in_long_rows_gives_the_same_tokens(tiny_pair: Pair) -> None:
    """Every window but the last fills its eight rows, and no ninth is begun."""
    pair = pair_of("Gemma2", tiny_pair)
    draw = np.random.default_rng(0)
    lengths = draw.integers(2, 30, 120)
    texts = [Text(0, ids, np.ones(len(ids), np.uint8)) for ids in texts_of(tuple(lengths.tolist()))]
    shapes: list[tuple[int, ...]] = []

    class Watched(PairActivations):
        def rows(self, ids: Tensor, positions: Tensor | None = None) -> Tensor:
            shapes.append(tuple(ids.shape))
            return super().rows(ids, positions)

    watched = Watched(pair, 2)
    found = list(harvest(texts, watched, TokenPolicy(skip_bos=False), ROW))
    assert set(shapes) == {(1, ROW)}
    assert len(shapes) <= 8 * len(found)
    assert [text for each in found for text in each.texts] == texts
    alone = PairActivations(pair, 2)
    expected = torch.cat([alone.rows(torch.from_numpy(text.ids)[None])[0] for text in texts])
    torch.testing.assert_close(torch.cat([each.x for each in found]), expected, atol=2e-5, rtol=1e-5)
