"""A section of `make bench-gpu`: a training end to end: texts, tokens, both models on a thread, and the dictionary."""

import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.gpu import material
from bench.gpu.rows import Run, main
from crosscope_proto.recipe import CrosscoderRecipe, parse_recipe
from crosscope_proto.stages import Stage
from crosscope_worker.data.activation_source import ActivationSource
from crosscope_worker.data.harvest import TOKENS_PER_FORWARD
from crosscope_worker.data.harvest_source import HarvestSource, open_sources
from crosscope_worker.data.prefetch import PrefetchedSource
from crosscope_worker.data.texts import TextStream
from crosscope_worker.models.activations import PairActivations
from crosscope_worker.phases import Following
from crosscope_worker.precision import float32_on, float32_products
from crosscope_worker.tokenizer.tokens import TextTokenizer
from crosscope_worker.training.loop import train
from crosscope_worker.work import silent

ORIGINAL_TOKENS = 200e6
"""Token-steps of the original run: 100 M tokens, twice."""
RECIPE = """
kind: crosscoder
name: run
pair: {{name: random, base: google/gemma-2-2b, chat: google/gemma-2-2b-it, dtype: bfloat16}}
layer: {layer}
data:
  - {{name: docs, source: jsonl, path: docs.jsonl, text_column: text}}
  - {{name: chats, source: jsonl, path: chats.jsonl, chat_column: conversation, skip_refused: true}}
tokens: {{max_length: 1024, skip_bos: true, held_out_every: 100}}
crosscoder: {{variant: batch_topk, num_latents: {num_latents}, k: {k}}}
training: {{batch_size: {batch}, lr: 1.0e-4, warmup_steps: 20, epochs: 8, buffer_tokens: {buffer}, dtype: bfloat16,
            max_steps: {steps}, checkpoint_every: 1000000, log_every: 10}}
analysis: {{max_tokens: 1000, spliced_tokens: 0}}
"""


class _Enough(Exception):
    """Ends a training before its last checkpoint, which is measured elsewhere."""


class _Clock:
    """When each step was reported; ends the training after `num_steps`."""

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps
        self.at: list[float] = []

    def __call__(self, stage: str, fraction: float, message: str = "", *, step: int = 0, **_: Any) -> None:
        """See Progress."""
        del fraction, message
        if stage == Stage.TRAIN and step > len(self.at):
            self.at += [time.perf_counter()] * (step - len(self.at))
            if step >= self.num_steps:
                raise _Enough


class _Kept:
    """A source of blocks that lie on the device: the training without texts and models."""

    def __init__(self, blocks: list[Tensor]) -> None:
        self._blocks = blocks

    def blocks(self) -> Generator[Tensor]:
        """See ActivationSource."""
        while True:
            yield from self._blocks

    def fraction(self) -> float:
        """See ActivationSource."""
        return 0.0

    def state(self) -> dict[str, Any]:
        """See ActivationSource."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """See ActivationSource."""


class Trainings:
    """The pair, a corpus on disk, and what is known of both halves of the work."""

    def __init__(self, run: Run, home: Path) -> None:
        self.run, self.home = run, home
        material.write_corpus(home, 20_000 if run.dry else 1_500_000)
        tokenizer = material.gemma_tokenizer(1000 if run.dry else 8000)
        self.tokenizer = TextTokenizer(tokenizer)
        self.activations = PairActivations(material.gemma_pair(run, tokenizer, long_rows=not run.dry), run.sizes.layer)
        self.rates: dict[str, float] = {}
        self.kept: list[Tensor] = []

    def recipe(self, steps: int) -> CrosscoderRecipe:
        """The original run's recipe, with fewer steps."""
        sizes = self.run.sizes
        found = parse_recipe(
            RECIPE.format(
                layer=sizes.layer,
                num_latents=sizes.num_latents,
                k=sizes.k,
                batch=sizes.batch,
                buffer=2048 if self.run.dry else 262_144,
                steps=steps + 1,
            )
        )
        assert isinstance(found, CrosscoderRecipe)
        return found

    def source(self, recipe: CrosscoderRecipe) -> ActivationSource:
        """The recipe's source, as a job opens it."""
        stream = TextStream(recipe.data, self.tokenizer, recipe.tokens, [self.home], "train")
        if self.run.dry:
            return PrefetchedSource(HarvestSource(stream, self.activations, recipe, 256), self.run.device)
        following = Following(silent, Stage.FILL)
        return open_sources(recipe, [stream], self.activations, self.home, {}, lambda _: None, following)[0]

    def ready(self) -> None:
        """Compiles what reading long rows needs."""
        seconds, packs = self.run.wall(lambda: self.activations.packs_rows(TOKENS_PER_FORWARD))
        said = self.activations.about_rows(TOKENS_PER_FORWARD)
        self.run.row("train.ready", seconds, "s", packs_rows=packs, said=said)

    def tokenising(self) -> None:
        """Reading and tokenising alone."""
        recipe = self.recipe(1)
        stream = TextStream(recipe.data, self.tokenizer, recipe.tokens, [self.home], "train")
        started, tokens = time.perf_counter(), 0
        for text in stream:
            tokens += len(text.ids)
            if time.perf_counter() - started > 2:
                break
        self.run.row("train.tokenising", tokens / (time.perf_counter() - started), "tok/s", tokens=tokens)

    def harvest(self) -> None:
        """The source alone: texts, tokens, and both models on their thread."""
        num_blocks = 3 if self.run.dry else 8
        with closing(self.source(self.recipe(1)).blocks()) as blocks:
            next(blocks)
            self.run.sync()
            started = time.perf_counter()
            self.kept = [next(blocks) for _ in range(num_blocks)]
            self.run.sync()
        tokens = sum(map(len, self.kept))
        self.rates["harvest"] = tokens / (time.perf_counter() - started)
        self.run.row("train.harvest_alone", self.rates["harvest"], "tok/s", tokens=tokens, blocks=num_blocks)

    def steps(self) -> None:
        """The training loop alone, on blocks in the device's memory."""
        if not self.kept:
            raise RuntimeError("there are no blocks, for the harvest alone has failed")
        at = self._train(_Kept(self.kept), 8 if self.run.dry else 90)
        self.kept = []
        self.rates["steps"] = self._rate("train.steps_alone", at, 2 if self.run.dry else 20)

    def end_to_end(self) -> None:
        """The whole: tokens a second, and hours of the original run at that rate."""
        num_steps, warm = (12, 2) if self.run.dry else (700, 200)
        at = self._train(self.source(self.recipe(num_steps)), num_steps)
        in_turn = {}
        if {"harvest", "steps"} <= self.rates.keys():
            in_turn["in_turn"] = 1 / (1 / self.rates["harvest"] + 1 / self.rates["steps"])
        rate = self._rate("train.end_to_end", at, warm, **in_turn)
        self.run.row("train.original_run", ORIGINAL_TOKENS / rate / 3600, "h", token_steps=ORIGINAL_TOKENS)

    def _train(self, source: ActivationSource, num_steps: int) -> list[float]:
        """When each step was reported."""
        recipe, clock = self.recipe(num_steps), _Clock(num_steps)
        with tempfile.TemporaryDirectory(dir=self.home) as folder, torch.no_grad():
            try:
                train(recipe, [source], self.activations.d_model, Path(folder), clock, self.run.device)
            except _Enough:
                return clock.at
        return clock.at

    def _rate(self, name: str, at: list[float], warm: int, **detail: float) -> float:
        """Tokens a second behind the first `warm` steps, as a row."""
        gaps = 1000 * np.diff(at[warm:])
        rate = 1000 * self.run.sizes.batch / float(gaps.mean())
        self.run.row(
            name, rate, "tok/s", steps=len(gaps), mean_ms=float(gaps.mean()), median_ms=float(np.median(gaps)),
            p95_ms=float(np.percentile(gaps, 95)), **detail,
        )  # fmt: skip
        return rate


def rows(run: Run) -> None:
    """The section's rows. Its float32 products are a job's."""
    with tempfile.TemporaryDirectory() as home, float32_products(float32_on(run.device, None)):
        made = run.part("train", lambda: Trainings(run, Path(home)), 40, "beside")
        if made is None:
            return
        run.part("train.ready", made.ready, 60, "beside")
        run.part("train.tokenising", made.tokenising, 10, "free")
        run.part("train.harvest_alone", made.harvest, 25)
        run.part("train.steps_alone", made.steps, 25)
        run.part("train.end_to_end", made.end_to_end, 60)
        run.part("train.in_turn", partial(_by_parts, made), 5, "free")


def _by_parts(made: Trainings) -> None:
    """Where the whole was not measured: what its parts would take one after the other."""
    if "steps" in made.rates and "harvest" in made.rates:
        rate = 1 / (1 / made.rates["harvest"] + 1 / made.rates["steps"])
        made.run.row("train.in_turn", rate, "tok/s", original_run_h=ORIGINAL_TOKENS / rate / 3600)


if __name__ == "__main__":
    sys.exit(main("train", rows))
