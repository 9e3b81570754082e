"""The estimate of a training's memory against the peak on the device.

    python -m bench.gpu.memory [--dry] [--out FILE]

A step of each dictionary at the original run's shape, one with a batch four times as large, and one training with both
models, prefetching and a checkpoint. Without a GPU nothing is counted: --dry shows that it runs; its rows are 1 and say
that they mean nothing.
"""

import sys
from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor

from bench.gpu.material import gemma_pair, gemma_tokenizer, lengths, texts
from bench.gpu.rows import Run, main
from bench.train_step import Sizes, specs
from crosscope_proto.dictionaries import Known
from crosscope_proto.specs import TokenPolicy, TrainingSpec
from crosscope_proto.training_memory import ON_THE_WAY, needed
from crosscope_worker.data.harvest import harvest
from crosscope_worker.data.prefetch import PrefetchedSource
from crosscope_worker.dictionary.sparse import launches_kernels
from crosscope_worker.models.activations import PairActivations
from crosscope_worker.precision import float32_on, float32_products
from crosscope_worker.training.buffer import ShuffleBuffer
from crosscope_worker.training.trainer import Trainer

LR = 1e-5
STEPS = 3
_NO_PEAK = "torch counts no peak on a CPU"
MEASURED = ("batch_topk", "l1", "dfc", "delta", "diff_sae", "designated_shared", "topk", "jumprelu", "matryoshka")


def rows(run: Run) -> None:
    """All rows of the section: each ratio, and the lowest and highest of all."""
    sizes = Sizes(d_model=run.sizes.d_model, num_latents=run.sizes.num_latents, k=run.sizes.k)
    known, batch = specs(sizes), run.sizes.batch
    ratios: list[float] = []
    with torch.no_grad(), float32_products(float32_on(run.device, None)):
        for name in MEASURED:
            run.part(f"memory.{name}", lambda name=name: ratios.append(_step(run, name, known[name], batch)), 12)
        whole = known["batch_topk"]
        run.part("memory.batch_topk.x4", lambda: ratios.append(_step(run, "batch_topk.x4", whole, 4 * batch)), 12)
        run.part("memory.with_models", lambda: ratios.append(_with_models(run, whole)), 45)
    if ratios:
        run.row("memory.lowest", min(ratios), "times", _NO_PEAK)
        run.row("memory.highest", max(ratios), "times", _NO_PEAK)


def _step(run: Run, name: str, spec: Known, batch: int) -> float:
    """The row of a few steps in bfloat16: the terms of weights and batch, over their peak."""
    training, widths = (
        TrainingSpec(batch_size=batch, buffer_tokens=1, dtype="bfloat16"),
        (run.sizes.d_model, run.sizes.d_model),
    )
    held = run.start_peak()
    trainer = Trainer(spec, training, widths, run.device)
    tokens = torch.randn(batch, sum(widths), device=run.device)
    for _ in range(STEPS):
        trainer.step(trainer.inputs(tokens), LR)
    parts = needed(spec, training, widths, run.device.type)
    estimate = parts["crosscoder.num_latents"] + parts["training.batch_size"]
    work_space = needed(spec, training, (0, 0), run.device.type)[ON_THE_WAY]  # what does not grow with the models
    return _row(run, name, (estimate + work_space) / 2**30, run.peak_gib(held), {"batch": batch})


def _with_models(run: Run, spec: Known) -> float:
    """The row of a training with both models in memory, whose weights are not counted, and one checkpoint."""
    held = run.start_peak()
    pair = gemma_pair(run, gemma_tokenizer(4000), run.device.type == "cuda" and launches_kernels())
    weights = run.start_peak() - held
    source = _Texts(PairActivations(pair, run.sizes.layer), len(pair.tokenizer), 6000 if run.dry else 700_000)
    training = TrainingSpec(
        batch_size=run.sizes.batch,
        buffer_tokens=1000 if run.dry else 131_072,
        dtype="bfloat16",
        max_steps=40,
        checkpoint_every=1000,
    )
    buffer = ShuffleBuffer(PrefetchedSource(source, run.device).blocks(), training.buffer_tokens, run.sizes.batch, 0)
    trainer = Trainer(spec, training, pair.d_model, run.device)
    copied: list[Tensor] = []
    for step in range(40):
        buffer.fill()
        tokens = buffer.draw(run.sizes.batch)
        trainer.sample.add(step * run.sizes.batch, tokens)
        trainer.step(trainer.inputs(tokens), LR)
        if step == 30:  # the copy of a checkpoint
            copied = [tensor.clone() for tensor in (*trainer.tensors().values(), *buffer.state().values())]
    del copied
    parts = needed(spec, training, pair.d_model, run.device.type)
    named = {name: size / 2**30 for name, size in parts.items()}
    return _row(run, "with_models", (sum(parts.values()) + weights) / 2**30, run.peak_gib(held), {"parts_gib": named})


class _Texts:
    """The activations of random texts, as an ActivationSource gives them."""

    def __init__(self, activations: PairActivations, vocab_size: int, num_tokens: int) -> None:
        self._activations, self._texts = activations, texts(lengths(num_tokens), vocab_size)

    def blocks(self) -> Generator[Tensor]:
        """See ActivationSource."""
        for found in harvest(self._texts, self._activations, TokenPolicy()):
            yield found.x

    def fraction(self) -> float:
        """See ActivationSource; it is not known here."""
        return 0.0

    def state(self) -> dict[str, Any]:
        """See ActivationSource: there is nothing to go on from."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """See ActivationSource."""


def _row(run: Run, name: str, estimate: float, peak: float, detail: dict[str, Any]) -> float:
    ratio = estimate / peak if peak else 1.0
    reserved = torch.cuda.max_memory_reserved() / 2**30 if run.device.type == "cuda" else 0.0
    gib = {"estimate_gib": estimate, "peak_gib": peak, "reserved_gib": reserved}
    run.row(f"memory.{name}", ratio, "times", _NO_PEAK, **gib, **detail)
    return ratio


if __name__ == "__main__":
    sys.exit(main("memory", rows))
