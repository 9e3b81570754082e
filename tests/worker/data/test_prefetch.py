"""A source that works ahead gives the blocks of the source behind it, and its state is the trainer's."""

import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures_training import PlantedSource, make_recipe, run
from fixtures_waiting import PATIENCE_S
from torch import Tensor

from crosscope_worker.data.activation_source import ActivationSource
from crosscope_worker.data.prefetch import BLOCKS_AHEAD, PrefetchedSource

CPU = torch.device("cpu")


def ahead(source: ActivationSource) -> PrefetchedSource:
    return PrefetchedSource(source, CPU)


def alive() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "prefetch"]


def test_blocks_states_and_fractions_are_those_of_the_source_behind_it():
    plain, source = PlantedSource(num_blocks=9), ahead(PlantedSource(num_blocks=9))
    assert (source.fraction(), source.state()) == (plain.fraction(), plain.state())
    for expected, found in zip(plain.blocks(), source.blocks(), strict=True):
        assert torch.equal(found, expected)
        assert (source.fraction(), source.state()) == (plain.fraction(), plain.state())
    assert source.fraction() == 1.0
    assert not alive()


def test_it_stays_a_few_blocks_ahead():
    planted, made = PlantedSource(num_blocks=30), threading.Semaphore(0)

    class Told(PlantedSource):
        def blocks(self) -> Generator[Tensor]:
            for block in planted.blocks():
                made.release()
                yield block

    blocks = ahead(Told()).blocks()
    next(blocks)
    for _ in range(1 + BLOCKS_AHEAD + 1):
        assert made.acquire(timeout=PATIENCE_S)
    assert not made.acquire(timeout=0.2), "the first block, those ahead and no more"
    assert planted.next == BLOCKS_AHEAD + 2
    blocks.close()
    assert not alive()


def test_an_error_of_the_source_reaches_the_trainer_after_the_blocks_before_it():
    class Broken(PlantedSource):
        def blocks(self) -> Generator[Tensor]:
            for number, block in enumerate(super().blocks()):
                if number == 2:
                    raise ValueError("block 2 is broken")
                yield block

    found: list[Tensor] = []
    with pytest.raises(ValueError, match="block 2 is broken"):
        found.extend(ahead(Broken()).blocks())
    assert len(found) == 2
    assert not alive()


class Stop(Exception):
    pass


@pytest.mark.parametrize("stop_at", [5, 23])
def test_a_training_that_was_cut_goes_on_to_the_same_weights(tmp_path: Path, stop_at: int):
    recipe = make_recipe(checkpoint_every=4, buffer_tokens=200)
    whole = run(recipe, tmp_path / "whole").crosscoder

    def stop(*_: Any, step: int = 0, **__: Any) -> None:
        if step == stop_at:
            raise Stop

    with pytest.raises(Stop):
        run(recipe, tmp_path / "cut", ahead(PlantedSource()), stop)
    assert not alive()
    resumed = run(recipe, tmp_path / "cut", ahead(PlantedSource())).crosscoder
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        assert torch.equal(getattr(resumed, name), getattr(whole, name)), name
    assert resumed.keep == whole.keep


def test_a_training_that_has_had_enough_ends_the_thread(tmp_path: Path):
    assert run(make_recipe(max_steps=3), tmp_path, ahead(PlantedSource())).steps == 3
    assert not alive()
