"""Trainings that would not fit are refused before they start, with a sentence that helps."""

from pathlib import Path

import pytest
import torch
from fixtures_training import make_recipe, run

from crosscope_proto.recipe import CrosscoderSpec, TrainingSpec
from crosscope_worker.training import TrainingError, memory

SPEC = CrosscoderSpec(variant="batch_topk", num_latents=1000, k=8)
TRAINING = TrainingSpec(batch_size=100, buffer_tokens=10_000)


def test_bytes_by_hand():
    assert memory.needed(SPEC, TRAINING, 50) == {
        "crosscoder.num_latents": 4 * 4 * (2 * 1000 * 50 + 1000 + 50),  # 1 616 800
        "training.batch_size": 5 * 100 * 1000,
        "training.buffer_tokens": 4 * 10_000 * 50,  # 2 000 000
    }


@pytest.mark.parametrize(
    ("free", "says"),
    [
        (4_200_000, None),
        (3_116_800, "4.1 MB of memory .* 3.1 MB are free; lower training.buffer_tokens to 5000$"),
        (1_200_000, "lower crosscoder.num_latents to about 140, or use a machine with more"),
    ],
)
def test_what_to_lower(free: int, says: str | None):
    found = memory.shortage(memory.needed(SPEC, TRAINING, 50), memory.values_of(SPEC, TRAINING), free)
    if says is None:
        assert found is None
    else:
        with pytest.raises(MemoryError, match=says):
            raise MemoryError(found)


def test_a_batch_that_is_too_large():
    training = TrainingSpec(batch_size=10_000, buffer_tokens=20_000)
    parts, values = memory.needed(SPEC, training, 50), memory.values_of(SPEC, training)
    found = memory.shortage(parts, values, 40_000_000)
    assert found is not None
    assert found.endswith("lower training.batch_size to 6800")


def test_the_machine_says_what_is_free():
    free = memory.free_bytes(torch.device("cpu"))
    assert free is None or free > 100_000_000


def test_a_training_that_cannot_fit_does_not_start(tmp_path: Path):
    spec = {"variant": "l1", "num_latents": 2_000_000_000, "mu": 0.1}
    with pytest.raises(TrainingError, match=r"needs about 1696.0 GB .*; lower crosscoder.num_latents to about"):
        run(make_recipe(spec), tmp_path)
