"""Batches of several streams: what each gives, what happens when streams end, and a cut in the middle."""

from collections.abc import Generator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures_training import PlantedSource, make_recipe
from torch import Tensor

from crosscope_proto.recipe import recipe_dict
from crosscope_proto.specs import TrainingSpec
from crosscope_worker.ranks import ALONE
from crosscope_worker.training import TrainingError, num_streams, train
from crosscope_worker.training.batches import Batches, _taken
from crosscope_worker.training.checkpoint import CheckpointError, load_checkpoint
from crosscope_worker.work import silent


class Counting:
    """A source of the numbers from `first` on, ten a block."""

    def __init__(self, first: int, number: int) -> None:
        self._first, self._number, self._next = first, number, 0

    def blocks(self) -> Generator[Tensor]:
        while self._next < self._number:
            start, self._next = self._next, min(self._next + 10, self._number)
            yield torch.arange(self._first + start, self._first + self._next, dtype=torch.float32)[:, None]

    def fraction(self) -> float:
        return self._next / self._number if self._number else 1.0

    def state(self) -> dict[str, Any]:
        return {"next": self._next}

    def restore(self, state: dict[str, Any]) -> None:
        self._next = state["next"]


def batches_of(*sizes: int, batch_size: int = 6) -> list[list[float]]:
    """All batches of streams of so many tokens; the numbers of stream i begin at 1000 · i."""
    training = TrainingSpec(batch_size=batch_size, buffer_tokens=60)
    sources = [Counting(1000 * index, size) for index, size in enumerate(sizes)]
    found: list[list[float]] = []
    with Batches(sources, training, ALONE, "cpu", 1) as batches:
        while (batch := batches.next()) is not None:
            found.append(batch.tokens.squeeze(1).tolist())
    return found


@pytest.mark.parametrize(
    ("batch_size", "held", "taken"),
    [
        (7, [9, 9, 9], [3, 2, 2]),
        (6, [9, 0, 9], [3, 0, 3]),  # one has ended: the others share its part
        (6, [9, 1, 9], [2, 1, 2]),  # one ends: this batch is smaller
        (6, [0, 0], [0, 0]),
        (6, [4], [4]),
    ],
)
def test_what_a_batch_takes_of_each_stream(batch_size: int, held: list[int], taken: list[int]) -> None:
    assert _taken(batch_size, held) == taken


def test_every_token_of_every_stream_comes_once_in_equal_parts() -> None:
    found = batches_of(100, 50, 0)
    assert sorted(chain.from_iterable(found)) == [*map(float, range(100)), *map(float, range(1000, 1050))]
    of_second = [sum(token >= 1000 for token in batch) for batch in found]
    assert of_second[:16] == 16 * [3], "equal parts of the streams that hold tokens, in their order"
    assert all(batch == [*filter(lambda t: t < 1000, batch), *filter(lambda t: t >= 1000, batch)] for batch in found)
    assert of_second[16] == 2
    assert [len(batch) for batch in found[17:]] == [*(8 * [6]), 1], "the other stream takes its part"


def test_one_stream_gives_the_batches_of_a_buffer_and_streams_differ_by_their_seed() -> None:
    one, two = batches_of(120), batches_of(60, 60)
    assert [len(batch) for batch in one] == 20 * [6]
    first = [[token for token in batch if token < 1000] for batch in two]
    second = [[token - 1000 for token in batch if token >= 1000] for batch in two]
    assert first != second


def sources() -> list[PlantedSource]:
    return [PlantedSource(30), PlantedSource(21, block_tokens=50)]


def test_a_cut_training_of_two_streams_ends_with_the_same_weights(tmp_path: Path) -> None:
    recipe = make_recipe(streams=2, checkpoint_every=7, normalise_inputs=True)
    whole = train(recipe, sources(), (8, 8), tmp_path / "whole", silent)
    assert whole.tokens == 30 * 100 + 21 * 50

    def stop(*_: Any, step: int = 0, **__: Any) -> None:
        if step == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, sources(), (8, 8), tmp_path / "cut", stop)
    assert num_streams(recipe, tmp_path / "cut", 4) == 2
    resumed = train(recipe, sources(), (8, 8), tmp_path / "cut", silent)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        assert torch.equal(getattr(whole.crosscoder, name), getattr(resumed.crosscoder, name)), name
    figures = [[row for row in each.curves if row[1] != "tokens_per_second"] for each in (whole, resumed)]
    assert figures[0] == figures[1]
    assert [each["next"] for each in resumed.sources] == [30, 21]
    with pytest.raises(CheckpointError, match=r"has 2 streams of texts and training\.streams says 1"):
        train(recipe, [PlantedSource()], (8, 8), tmp_path / "cut", silent)
    saved = load_checkpoint(tmp_path / "cut", recipe_dict(make_recipe(streams=2, checkpoint_every=7, devices="auto",
                                                                       normalise_inputs=True)))  # fmt: skip
    assert saved is not None, "the number of devices may change"


def test_constant_activations_are_refused_if_all_streams_have_them(tmp_path: Path) -> None:
    class Constant(PlantedSource):
        def blocks(self) -> Generator[Tensor]:
            for block in super().blocks():
                block[:, :8] = 1.0
                yield block

    def run(folder: str, *given: PlantedSource) -> None:
        train(make_recipe(streams=2, max_steps=1), given, (8, 8), tmp_path / folder, silent)

    with pytest.raises(TrainingError, match="the base model's activations are the same on all of the first 512 tokens"):
        run("both", Constant(3), Constant(3))
    run("one", Constant(3), PlantedSource(3))


def test_streams_that_a_batch_cannot_take_a_token_of(tmp_path: Path) -> None:
    recipe = make_recipe(batch_size=3, devices="auto")
    assert num_streams(recipe, tmp_path, 3) == 3
    with pytest.raises(TrainingError, match="there are 4 devices, and a batch of 3 tokens"):
        num_streams(recipe, tmp_path, 4)
    assert num_streams(make_recipe(streams=2), tmp_path, 8) == 2
