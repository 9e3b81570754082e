"""Thresholds that are learnt: what is kept, what is found, and the edges; gradients are in test_objective.py."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures_training import PlantedSource, make_recipe, run
from torch import Tensor

from crosscope_proto.dictionaries import dictionary
from crosscope_proto.specs import TrainingSpec
from crosscope_worker.dictionary.keep import AboveThresholds
from crosscope_worker.training.active_code import Weights
from crosscope_worker.training.objective import Step, compute_step
from crosscope_worker.training.trainer import Trainer
from crosscope_worker.training.variants import variant_of

SPEC = {"variant": "jumprelu", "num_latents": 24, "mu": 0.05}


@torch.no_grad()
def test_inference_keeps_what_training_chose():
    source = PlantedSource(num_blocks=60)
    trainer = Trainer(dictionary(**SPEC), TrainingSpec(batch_size=100, warmup_steps=0), (8, 8))
    *blocks, first, second = source.blocks()
    for block in blocks:
        trainer.step(block, 3e-3)
    held_out = torch.cat([first, second])
    chosen = compute_step(trainer.weights, held_out, trainer.variant, extra=trainer.extra)
    crosscoder = trainer.crosscoder()
    assert isinstance(crosscoder.keep, AboveThresholds)
    assert len(crosscoder.keep.thresholds.unique()) > 12
    code = crosscoder.encode(held_out)
    assert (
        0
        < chosen.num_active
        == torch.count_nonzero(code)
        < torch.count_nonzero(crosscoder.pre_activations(held_out) > 0)
    )
    assert torch.equal(chosen.fired, (code > 0).any(0))
    squares = (held_out - crosscoder.decode(code)).square().sum(0).split(8)
    assert chosen.squared_error == pytest.approx([float(part.sum()) for part in squares], rel=1e-4)


def test_planted_directions_are_found_and_a_higher_price_leaves_fewer_latents_active(tmp_path: Path):
    """12 directions of strengths 3 to 6, of which 1.8 are active a token."""
    held_out = torch.cat(list(PlantedSource(num_blocks=160).blocks())[150:])
    active, found = [], []
    for mu in (0.01, 0.1, 0.3):
        source, spec = PlantedSource(num_blocks=150), SPEC | {"mu": mu, "initial_threshold": 1.0, "bandwidth": 1.0}
        crosscoder = run(make_recipe(spec, lr=2e-2), tmp_path / str(mu), source).crosscoder
        active.append(float(torch.count_nonzero(crosscoder.encode(held_out))) / len(held_out))
        cosines = torch.nn.functional.normalize(crosscoder.W_dec, dim=1) @ source.directions.T
        found.append(int((cosines.max(dim=0).values > 0.9).sum()))
    assert 6 > active[0] > 1.3 * active[1] > 1.3 * 1.05 * active[2] > 2, active
    assert found[1] >= 10, found


def one_entry(pre: float, norm: float, **options: Any) -> Step:
    """A step on one token with one latent, whose pre-activation and code normalisation are given."""
    options = {"initial_threshold": 1.0, "bandwidth": 0.5, "code_normalisation": "sae"} | options
    variant = variant_of(dictionary(variant="jumprelu", num_latents=1, mu=0.5, **options), (1, 1))
    row: Tensor = torch.tensor([[0.6, 0.8]])
    weights = Weights(torch.tensor([[1.0, 0.0]]), torch.zeros(1), norm * row, torch.zeros(2))
    return compute_step(weights, torch.tensor([[pre, 0.0]]), variant, extra=variant.extra(weights))


@pytest.mark.parametrize(
    ("scaled", "active", "learns"), [(0.7, 0, False), (0.8, 0, True), (1.2, 1, True), (1.3, 1, False)]
)
def test_a_threshold_learns_from_scaled_activations_near_it(scaled: float, active: int, learns: bool):
    """The range is 0.5 wide around 1, whatever the scale of encoder and decoder."""
    for norm in (0.1, 1.0, 10.0):
        step = one_entry(scaled / norm, norm)
        assert step.num_active == active
        assert bool(step.extra["log_threshold"].any()) == learns


def test_what_relu_zeroes_teaches_a_low_threshold_nothing():
    wide = {"initial_threshold": 0.1, "bandwidth": 1.0}
    assert one_entry(0.05, 1.0, **wide).extra["log_threshold"].any()
    assert not one_entry(-0.05, 1.0, **wide).extra["log_threshold"].any()


def test_a_latent_without_a_row_is_never_active():
    step = one_entry(3.0, 0.0, bandwidth=5.0)
    assert step.num_active == 0
    assert all(bool(torch.isfinite(each).all()) for each in (*step.gradients, *step.extra.values()))
    assert not step.extra["log_threshold"].any()
