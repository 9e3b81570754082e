"""Activations in fixed shapes: the same as without padding, and which runs are recorded."""

import copy
import logging
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import masking_utils

from crosscope_worker.models.activations import PairActivations
from crosscope_worker.models.fixed_shapes import (
    LENGTHS,
    MAX_TOKENS,
    ROWS,
    CannotRecord,
    FixedShapes,
    Run,
    Shape,
    groups,
)
from crosscope_worker.models.graphs import Graphs, Masks
from crosscope_worker.models.pair import Pair
from crosscope_worker.models.places import PairError
from crosscope_worker.models.probes import standardised_error
from tests.worker.devices import needs_gpu
from tests.worker.effects.subjects import make_pair
from tests.worker.tiny_models import VOCAB

LAYER = 1


class Plain:
    """Records nothing: repeats a run by running the models again, in the same memory."""

    def __init__(self) -> None:
        self.recorded: list[Shape] = []
        self.repeated: list[Shape] = []

    def __call__(self, activations: PairActivations, shape: Shape) -> Run:
        self.recorded.append(shape)
        x = torch.empty(*shape, sum(activations.d_model), device=activations.pair.device)

        def repeat(ids: Tensor) -> Tensor:
            assert ids.shape == shape
            self.repeated.append(shape)
            return x.copy_(activations.rows(ids))

        return Run(repeat, x.nbytes)


def texts_of(lengths: list[int], vocab: int = VOCAB, seed: int = 0) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [draw.integers(3, vocab, length) for length in lengths]


def one_by_one(activations: PairActivations, texts: list[np.ndarray]) -> Tensor:
    runs = (activations(torch.from_numpy(ids)[None], torch.tensor([len(ids)]))[0] for ids in texts)
    return torch.cat(list(runs))


@pytest.mark.parametrize("kind", ["Gemma2", "Llama", "GPTNeoX"])
def test_padding_and_order_change_no_activation(kind: str) -> None:
    """Texts longer and shorter than Gemma 2's window of 8, in several shapes; each as if it were alone."""
    activations = PairActivations(make_pair(kind), LAYER)
    texts, plain = texts_of([3, 40, 16, 1, 100, 17, 33, 64, 12]), Plain()
    x = FixedShapes(activations, plain)(texts)
    assert plain.repeated == [Shape(1, 128), Shape(8, 64)]
    torch.testing.assert_close(x, one_by_one(activations, texts), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(x, one_by_one(activations, texts[::-1]), atol=1e-2)


def test_a_run_is_recorded_once_and_leaves_nothing_of_the_text_before() -> None:
    activations = PairActivations(make_pair("Gemma2"), LAYER)
    plain = Plain()
    shapes = FixedShapes(activations, plain)
    for seed, length in enumerate([16, 2, 9]):
        texts = texts_of([length], seed=seed)
        torch.testing.assert_close(shapes(texts), one_by_one(activations, texts), rtol=1e-5, atol=1e-5)
    assert plain.recorded == [Shape(1, 16)]
    assert shapes.size_bytes == 16 * 32 * 4


def test_the_longest_unused_run_goes() -> None:
    activations = PairActivations(make_pair(), LAYER)
    plain = Plain()
    shapes = FixedShapes(activations, plain, max_runs=2)
    for length in (16, 32, 16, 64, 16, 32):
        shapes(texts_of([length]))
    assert [shape.pos for shape in plain.recorded] == [16, 32, 64, 32]
    assert shapes.size_bytes == (16 + 32) * 32 * 4


def test_what_cannot_be_recorded_runs_plainly_and_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    activations = PairActivations(make_pair("Gemma2"), LAYER)
    asked: list[Shape] = []

    def refuse(_activations: PairActivations, shape: Shape) -> Run:
        asked.append(shape)
        raise CannotRecord("the model asks the device")

    shapes, texts = FixedShapes(activations, refuse), texts_of([5, 30, 70])
    with caplog.at_level(logging.WARNING):
        x = [shapes(texts) for _ in range(2)]
    torch.testing.assert_close(x[0], one_by_one(activations, texts), rtol=1e-5, atol=1e-5)
    assert torch.equal(*x)
    assert asked == [Shape(4, 128)]
    said = [record.getMessage() for record in caplog.records]
    assert said == ["runs of prompts are not recorded, and so slower: the model asks the device"]
    assert shapes.size_bytes == 0


def test_padding_takes_no_text_into_another_regime() -> None:
    """LongRoPE turns otherwise beyond 20 tokens: a text of 18 would be read as one of 32 where it is padded to that."""
    rope = {"rope_type": "longrope", "rope_theta": 10_000.0, "original_max_position_embeddings": 20}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [4.0, 8.0, 16.0, 32.0]}
    changed = {"original_max_position_embeddings": 20, "rope_parameters": rope}
    activations = PairActivations(make_pair("Phi3, LongRoPE", changed), LAYER)
    assert activations.long_text_limits == (20,)
    plain = Plain()
    shapes = FixedShapes(activations, plain)
    for lengths, repeated in (([18], []), ([12, 9], [Shape(2, 16)]), ([30, 22], [Shape(2, 32)]), ([30, 18], [])):
        plain.repeated.clear()
        texts = texts_of(lengths)
        torch.testing.assert_close(shapes(texts), one_by_one(activations, texts), rtol=1e-5, atol=1e-5)
        assert plain.repeated == repeated


def test_an_id_without_embedding_is_refused_before_anything_runs() -> None:
    activations = PairActivations(make_pair(), LAYER)
    plain = Plain()
    with pytest.raises(PairError, match=f"token id {VOCAB} has no embedding"):
        FixedShapes(activations, plain)([np.array([2, 3]), np.array([VOCAB])])
    assert not plain.recorded


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([64], [([0], (1, 64))]),
        ([65], [([0], (1, 128))]),
        ([64] * 32, [(list(range(32)), (32, 64))]),
        ([64] * 17, [(list(range(16)), (16, 64)), ([16], (1, 64))]),
        ([64] * 12, [(list(range(12)), (16, 64))]),
        ([20] * 3 + [500], [([3], (1, 512)), ([0, 1, 2], (4, 32))]),
        ([600, 20], [([0], (1, 1024)), ([1], (1, 32))]),
        ([2000, 1900, 30, 1600, 1100], [([0, 1, 3], None), ([4], None), ([2], (1, 32))]),
        ([2] * 70, [(list(range(32)), (32, 16)), (list(range(32, 64)), (32, 16)), (list(range(64, 70)), (8, 16))]),
    ],
)
def test_which_texts_run_together(lengths: list[int], expected: list[tuple[list[int], Shape | None]]) -> None:
    found = [(chosen.tolist(), shape) for chosen, shape in groups(np.array(lengths))]
    assert found == expected


def test_every_text_runs_once_and_little_is_padding() -> None:
    draw = np.random.default_rng(0)
    for count in (1, 7, 40, 200):
        lengths = np.exp(draw.uniform(np.log(20), np.log(1024), count)).astype(np.int64)
        found = list(groups(lengths))
        assert sorted(np.concatenate([chosen for chosen, _ in found])) == list(range(count))
        for chosen, shape in found:
            assert shape is not None
            assert len(chosen) <= shape.rows
            assert lengths[chosen].max() <= shape.pos
            assert shape.rows in ROWS
            assert shape.pos in LENGTHS
            assert shape.rows * shape.pos <= MAX_TOKENS
        padded = sum(shape.rows * shape.pos for _, shape in found if shape is not None)
        assert padded < 1.6 * lengths.sum() + 512


@pytest.mark.parametrize(("kind", "num_masks"), [("Gemma2", 4), ("Llama", 2), ("GPTNeoX", 2)])
def test_a_recording_is_given_the_masks_of_the_run_before(kind: str, num_masks: int) -> None:
    """It makes none and asks the device nothing, which a graph could not record. Afterwards transformers does again."""
    changed = {"attn_implementation": "eager"} if kind == "Gemma2" else {}  # as load_pair sets it
    activations = PairActivations(make_pair(kind, changed), LAYER)
    one, other = (torch.from_numpy(ids)[None] for ids in texts_of([24, 24]))
    masks, functions = Masks(activations), masking_utils.ALL_MASK_ATTENTION_FUNCTIONS
    before = {name: functions[name] for name in functions}
    for _ in range(2):
        with masks.made(), Operations() as plain:
            expected = activations.unchecked_rows(one)
    assert len(masks._masks) == num_masks  # a full one and one with a window in each Gemma 2; a full one in others
    others = activations.unchecked_rows(other)
    for ids, x in ((one, expected), (other, others)):
        with masks.given(), Operations() as recorded:
            assert torch.equal(activations.unchecked_rows(ids), x)
        assert "aten::_local_scalar_dense" in plain.names
        assert not recorded.names & {"aten::_local_scalar_dense", "aten::where", "aten::lift_fresh"}
    assert {name: functions[name] for name in functions} == before
    both = torch.cat([torch.arange(12)] * 2)[None]
    apart = activations.rows(one, both)
    torch.testing.assert_close(apart[:, 12:], activations.rows(one[:, 12:]), rtol=1e-5, atol=1e-5)


class Operations(TorchDispatchMode):
    """Names of torch's operations while it lasts."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func._schema.name)
        return func(*args, **(kwargs or {}))


def on_gpu(pair: Pair, dtype: torch.dtype) -> Pair:
    base, chat = (copy.deepcopy(model).to("cuda", dtype) for model in pair.models)
    return Pair(pair.manifest, (base, chat), pair.tokenizer, torch.device("cuda"))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", ["Gemma2", "Llama", "GPTNeoX"])
def test_a_graph_repeats_a_plain_run(kind: str, dtype: torch.dtype, fuse: bool) -> None:
    """Bit for bit; with fused norms up to rounding. Graphs that share their memory do not disturb each other."""
    activations = PairActivations(on_gpu(make_pair(kind), dtype), LAYER)
    graphs, draw = Graphs(torch.device("cuda"), fuse), torch.Generator().manual_seed(0)
    runs = [(shape, graphs(activations, shape)) for shape in (Shape(1, 16), Shape(4, 32), Shape(1, 64))]
    for shape, run in runs * 2:
        ids = torch.randint(3, VOCAB, shape, generator=draw)
        found, expected = run.repeat(ids), activations.rows(ids)
        if not fuse:
            assert torch.equal(found, expected)
        assert standardised_error(found, expected) < (0.05 if dtype == torch.bfloat16 else 1e-4)
        assert run.size_bytes > 0


@pytest.mark.gpu
@needs_gpu
def test_a_model_that_asks_the_device_runs_plainly(caplog: pytest.LogCaptureFixture) -> None:
    """Dynamic RoPE looks at the largest position. The device works on afterwards, and records another pair's runs."""
    activations = PairActivations(on_gpu(make_pair("Llama, dynamic RoPE"), torch.float32), LAYER)
    shapes = FixedShapes(activations, Graphs(torch.device("cuda")))
    with caplog.at_level(logging.WARNING):
        for seed in (0, 1):
            texts = texts_of([16], seed=seed)  # of no other length than a shape's: each length is a regime of its own
            torch.testing.assert_close(shapes(texts), one_by_one(activations, texts), rtol=1e-4, atol=1e-4)
    said = [each.getMessage() for each in caplog.records if "are not recorded" in each.getMessage()]
    assert len(said) == 1
    assert shapes.size_bytes == 0
    other = PairActivations(on_gpu(make_pair("Gemma2"), torch.float32), LAYER)
    run, ids = Graphs(torch.device("cuda"), fuse=False)(other, Shape(1, 16)), torch.arange(3, 19)[None]
    assert torch.equal(run.repeat(ids), other.rows(ids))
