"""A source of planted activations and recipes for tests of training."""

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crosscope_proto.dictionaries import dictionary
from crosscope_proto.recipe import CrosscoderRecipe
from crosscope_proto.specs import DataSpec, PairSpec, TrainingSpec
from crosscope_worker import training as public
from crosscope_worker.data.activation_source import ActivationSource
from crosscope_worker.training.buffer import ShuffleBuffer
from crosscope_worker.work import silent


class PlantedSource:
    """Sparse combinations of planted directions, in blocks; block i is the same whenever it is asked for."""

    def __init__(
        self, num_blocks: int = 40, block_tokens: int = 100, d_model: tuple[int, int] = (8, 8), share: float = 0.15
    ) -> None:
        """`share` of the 12 directions is active on a token."""
        self.num_blocks, self.block_tokens, self.share = num_blocks, block_tokens, share
        generator = torch.Generator().manual_seed(7)
        self.directions = torch.nn.functional.normalize(torch.randn(12, sum(d_model), generator=generator), dim=1)
        self.next = 0

    def blocks(self) -> Generator[Tensor]:
        while self.next < self.num_blocks:
            generator = torch.Generator().manual_seed(1000 + self.next)
            active = torch.rand(self.block_tokens, 12, generator=generator) < self.share
            strength = 1 + torch.rand(self.block_tokens, 12, generator=generator)
            self.next += 1
            yield 3 * (active * strength) @ self.directions

    def fraction(self) -> float:
        return self.next / self.num_blocks if self.num_blocks else 1.0

    def state(self) -> dict[str, Any]:
        return {"next": self.next}

    def restore(self, state: dict[str, Any]) -> None:
        self.next = state["next"]


def drawn(buffer: ShuffleBuffer, batch_size: int) -> Iterator[Tensor]:
    """The batches of a buffer, to its end."""
    while len(buffer.fill()):
        yield buffer.draw(batch_size)


def make_recipe(crosscoder: dict[str, Any] | None = None, **training: Any) -> CrosscoderRecipe:
    spec = crosscoder or {"variant": "batch_topk", "num_latents": 24, "k": 2}
    defaults = {"batch_size": 64, "lr": 3e-3, "warmup_steps": 5, "buffer_tokens": 512, "log_every": 10}
    return CrosscoderRecipe(
        kind="crosscoder",
        name="toy",
        pair=PairSpec(name="toy"),
        layer=0,
        data=(DataSpec(name="web", source="text", path="x"),),
        crosscoder=dictionary(**spec),
        training=TrainingSpec(**defaults | training),
    )


def run(recipe: CrosscoderRecipe, folder: Path, source: ActivationSource | None = None, progress: Any = silent):
    return public.train(recipe, [source or PlantedSource()], (8, 8), folder, progress)
