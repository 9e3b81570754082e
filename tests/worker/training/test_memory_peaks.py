"""The estimate of a training's memory against what it allocates: never below its peak, and at most a tenth above.

On the CPU torch's profiler tells every allocation. The code for CUDA runs there too, with functions in the place of the
kernels that allocate what kernels do and compute nothing.
"""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fixtures_training import drawn
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from crosscope_proto import training_memory
from crosscope_proto.dictionaries import Known, dictionary
from crosscope_proto.specs import TrainingSpec
from crosscope_worker.data.harvest import TOKENS_PER_FORWARD, WINDOW_FORWARDS
from crosscope_worker.data.prefetch import BLOCKS_AHEAD
from crosscope_worker.dictionary import sparse
from crosscope_worker.ranks import Ranks
from crosscope_worker.training import adam, objective
from crosscope_worker.training.buffer import ShuffleBuffer
from crosscope_worker.training.trainer import Trainer

LATENTS = 2048
OWN: dict[str, dict[str, Any]] = {
    "batch_topk": {"k": 4},
    "l1": {"mu": 0.04},
    "designated_shared": {"mu": 0.04, "num_shared": 128, "shared_penalty": 0.1},
    "dfc": {"k": 4, "num_base_only": 128, "num_chat_only": 128},
    "delta": {"k": 3, "num_delta": 128, "k_delta": 1, "delta_weight": 1.0},
    "diff_sae": {"k": 4},
    "topk": {"k": 4},
    "jumprelu": {"mu": 0.01, "initial_threshold": 0.001, "bandwidth": 0.001},
    "matryoshka": {"k": 4},
    "decoupled": {"k": 4, "variant": "batch_topk", "code_normalisation": "decoupled"},
}
VARIANTS = [pytest.param(name, marks=pytest.mark.slow) if name in training_memory.LIKE else name for name in OWN]
"""All dictionaries; those that are counted like another one are slow tests."""
SHAPES = {"wide": (512, 64), "long": (64, 256)}
"""Width of each model, and batch: most memory is of weights in the first, and of codes in the second."""


def spec_of(variant: str) -> Known:
    return dictionary(**{"variant": variant, "num_latents": LATENTS, **OWN[variant]})


def blocks(width: int, batch: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    while True:
        yield torch.randn(batch, width, generator=generator)


def train(spec: Known, training: TrainingSpec, d_model: int) -> tuple[object, ...]:
    """Two steps, of which the first makes Adam's moments; what lives on."""
    buffer = ShuffleBuffer(blocks(2 * d_model, training.batch_size), 0, training.batch_size, 0)
    trainer = Trainer(spec, training, (d_model, d_model))
    batches = drawn(buffer, training.batch_size)
    for _ in range(2):
        trainer.step(trainer.inputs(next(batches)), 1e-3)
    return trainer, buffer, batches


def peak_bytes(spec: Known, training: TrainingSpec, d_model: int) -> int:
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as prof:
        lives = train(spec, training, d_model)
    held = peak = 0
    assert prof.profiler is not None
    for event in prof.profiler.kineto_results.events():  # pyright: ignore[reportOptionalMemberAccess]
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    del lives
    return peak


def ratio(variant: str, shape: str, dtype: str, device: str) -> float:
    (d_model, batch), spec = SHAPES[shape], spec_of(variant)
    training = TrainingSpec(batch_size=batch, buffer_tokens=1, dtype=dtype)  # pyright: ignore[reportArgumentType]
    parts = training_memory.needed(spec, training, (d_model, d_model), device)
    fields = [size for name, size in parts.items() if name.partition(".")[2]]
    return sum(fields) / peak_bytes(spec, training, d_model)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of a batch as small, beside the batch, as those of a large training are."""
    assert sparse._PIECE_ENTRIES == training_memory._PIECE_ENTRIES
    for module in (sparse, training_memory):
        monkeypatch.setattr(module, "_PIECE_ENTRIES", 1 << 13)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_on_a_cpu(monkeypatch: pytest.MonkeyPatch, variant: str, shape: str, dtype: str):
    monkeypatch.setattr(np, "flatnonzero", lambda mask: torch.from_numpy(mask).reshape(-1).nonzero().squeeze(1).numpy())
    monkeypatch.setattr(sparse, "_PIECE_BYTES", 1 << 16)
    assert 1 <= ratio(variant, shape, dtype, "cpu") <= 1.1


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_on_cuda(monkeypatch: pytest.MonkeyPatch, variant: str, shape: str, dtype: str):
    as_on_cuda(monkeypatch)
    assert 1 <= ratio(variant, shape, dtype, "cuda") <= 1.1


def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the CPU take the ways of CUDA."""

    def weighted_sums(_: Tensor, rows: Tensor, starts: Tensor, __: Tensor, ___: Any, out: Any = None) -> Tensor:
        return torch.zeros(len(starts), rows.shape[1]) if out is None else out.zero_()

    def entry_products(_: Tensor, latents: Tensor, *__: Any) -> Tensor:
        return torch.full((len(latents),), 1e-3)

    class Uncounted(objective.Counted):
        def __init__(self, mask: Tensor, ranks: Ranks) -> None:
            self._count = int(mask.numpy().sum())

        def by_rank(self) -> list[int]:
            return [self._count]

    plain = torch.mm

    def mm(a: Tensor, b: Tensor, *, out_dtype: torch.dtype | None = None, out: Tensor | None = None) -> Tensor:
        if out_dtype is None:
            return plain(a, b, out=out)
        return (torch.empty(len(a), b.shape[1], dtype=out_dtype) if out is None else out).normal_()

    kernels = {"DECODING": {}, "BY_LATENT": {}, "ENTRY_PRODUCTS": {}}
    sums = SimpleNamespace(weighted_sums=weighted_sums, entry_products=entry_products, **kernels)
    steps = SimpleNamespace(
        norm=lambda *_: torch.ones(()), step=lambda *_: None, Rates=lambda *_: None, Moments=lambda *_: None
    )
    monkeypatch.setattr(sparse, "kernels_for", lambda *_: sums)
    monkeypatch.setattr(adam, "_kernels", lambda _: steps)
    monkeypatch.setattr(adam.Adam, "takes_sums", lambda *_: True)
    monkeypatch.setattr(objective, "Counted", Uncounted)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda _: True))
    monkeypatch.setattr(torch, "mm", mm)


def test_what_is_on_its_way_is_counted_by_the_worker_as_here():
    assert training_memory.FORWARD_TOKENS == TOKENS_PER_FORWARD
    assert training_memory.WINDOW_TOKENS == WINDOW_FORWARDS * TOKENS_PER_FORWARD
    assert training_memory.WINDOWS == {"cpu": 3, "cuda": 3 + BLOCKS_AHEAD}
