"""Batches from which nothing can be learned: a training continues without a NaN, or ends with a sentence."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures_training import PlantedSource, make_recipe, run
from torch import Tensor

from crosscope_proto.dictionaries import dictionary
from crosscope_proto.specs import TrainingSpec
from crosscope_worker.dictionary.crosscoder import Crosscoder
from crosscope_worker.dictionary.keep import StoredKeep
from crosscope_worker.training import TrainingError
from crosscope_worker.training.trainer import Trainer

VARIANTS: dict[str, dict[str, Any]] = {
    "batch_topk": {"k": 2},
    "decoupled": {"variant": "batch_topk", "k": 2, "code_normalisation": "decoupled"},
    "l1": {"mu": 0.02},
    "designated_shared": {"mu": 0.02, "num_shared": 5, "shared_penalty": 0.2},
    "dfc": {"k": 2, "num_base_only": 4, "num_chat_only": 6},
    "delta": {"k": 2, "num_delta": 8, "k_delta": 1, "delta_weight": 1.0},
    "diff_sae": {"k": 2},
    "jumprelu": {"mu": 0.02},
    "matryoshka": {"k": 2},
}


def spec_of(name: str) -> dict[str, Any]:
    return {"variant": name, "num_latents": 24} | VARIANTS[name]


class Blocks(PlantedSource):
    """Blocks of planted activations, changed by a function of their number and content."""

    def __init__(self, change: Any, **options: Any) -> None:
        super().__init__(**options)
        self._change = change

    def blocks(self) -> Iterator[Tensor]:
        for number, block in enumerate(super().blocks()):
            yield self._change(number, block)


def finite(crosscoder: Crosscoder) -> bool:
    return all(
        bool(torch.isfinite(each).all())
        for each in (crosscoder._weights() | StoredKeep.of(crosscoder.keep, crosscoder.num_latents).tensors).values()
    )


@torch.no_grad()
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dead_after_tokens", [50, 10_000_000], ids=["all dead", "none dead"])
def test_a_training_goes_on_after_batches_in_which_nothing_fires(name: str, dead_after_tokens: int):
    training = TrainingSpec(batch_size=100, lr=1e-3, warmup_steps=0, dead_after_tokens=dead_after_tokens)
    trainer = Trainer(dictionary(**spec_of(name)), training, (8, 8))
    blocks = list(PlantedSource(num_blocks=12).blocks())
    outcomes = []
    for number, tokens in enumerate(blocks):
        bias = trainer.weights.b_enc.clone()
        if 3 <= number < 6:
            trainer.weights.b_enc.fill_(-1e6)
        outcomes.append(trainer.step(trainer.inputs(tokens), 1e-3))
        if 3 <= number < 6:
            trainer.weights.b_enc.copy_(bias)
    for number, outcome in enumerate(outcomes):
        assert (outcome.num_active == 0) == (3 <= number < 6), number
        assert all(bool(torch.isfinite(each).all()) for each in outcome.gradients)
    crosscoder = trainer.crosscoder()
    assert finite(crosscoder)
    assert (trainer.counters.step, trainer.counters.tokens) == (12, 1200)
    assert (crosscoder.encode(blocks[0]) > 0).any()


@pytest.mark.parametrize(("columns", "model"), [(slice(0, 8), "base"), (slice(8, 16), "chat")])
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_activations_of_either_model_that_never_change_are_refused(
    tmp_path: Path, columns: slice, model: str, value: float
):
    def change(_: int, block: Tensor) -> Tensor:
        block[:, columns] = value
        return block

    with pytest.raises(TrainingError, match=f"the {model} model's activations are the same on all of the first "):
        run(make_recipe(normalise_inputs=True), tmp_path, Blocks(change))
    assert not list(tmp_path.iterdir())


def test_a_block_that_never_changes_is_trained_on_like_any_other(tmp_path: Path):
    """Whole batches of one token in the middle of a training."""

    def change(number: int, block: Tensor) -> Tensor:
        return block[:1].repeat(100, 1) if number > 20 else block

    recipe = make_recipe(batch_size=10, buffer_tokens=20, dead_after_tokens=100)
    result = run(recipe, tmp_path, Blocks(change))
    assert result.tokens == 4000
    assert finite(result.crosscoder)


def test_a_last_batch_of_one_token_does_not_end_a_training_with_dead_latents(tmp_path: Path):
    """4 033 tokens in batches of 64: the error of one token has no variance, by which the auxiliary loss is divided."""

    def change(number: int, block: Tensor) -> Tensor:
        return block if number < 40 else block[:33]

    recipe = make_recipe({"variant": "batch_topk", "num_latents": 24, "k": 1}, dead_after_tokens=100)
    result = run(recipe, tmp_path, Blocks(change, num_blocks=41))
    assert (result.steps, result.tokens) == (64, 4033)
    assert finite(result.crosscoder)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["batch_topk", "l1"])
def test_values_that_are_not_finite_never_reach_a_crosscoder(tmp_path: Path, name: str, value: float):
    """A harvest names the token; a value that gets past it ends the training before weights are changed."""

    def change(number: int, block: Tensor) -> Tensor:
        if number == 8:
            block[7, 11] = value
        return block

    recipe = make_recipe(spec_of(name), checkpoint_every=3)
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf|-inf) at step"):
        run(recipe, tmp_path, Blocks(change))
    assert len(list(tmp_path.iterdir())) == 1
