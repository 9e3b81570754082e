"""The shuffle buffer, checkpoints and the training loop on planted activations."""

import errno
from collections.abc import Generator, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures_training import PlantedSource, drawn, make_recipe, run
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crosscope_proto.specs import TrainingSpec
from crosscope_worker import disk
from crosscope_worker import training as public
from crosscope_worker.dictionary.keep import AboveThreshold
from crosscope_worker.training.active_code import Weights
from crosscope_worker.training.buffer import ShuffleBuffer
from crosscope_worker.training.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from crosscope_worker.training.loop import learning_rate
from crosscope_worker.training.objective import compute_step
from crosscope_worker.training.start import geometric_median, initial_weights
from crosscope_worker.training.trainer import Trainer
from crosscope_worker.training.variants import variant_of
from crosscope_worker.work import Cancelled


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), max_size=12),
    capacity=st.integers(1, 60),
    batch=st.integers(1, 17),
)
def test_every_token_comes_out_exactly_once(sizes: list[int], capacity: int, batch: int):
    total = sum(sizes)
    blocks = torch.arange(total, dtype=torch.float32)[:, None].split(sizes) if sizes else ()
    batches = list(drawn(ShuffleBuffer(iter(blocks), capacity, batch, seed=0), batch))
    assert sorted(torch.cat(batches).squeeze(1).tolist() if batches else []) == list(range(total))
    assert all(len(b) == batch for b in batches[:-1])


def test_the_buffer_keeps_mixing_in_new_tokens_and_stays_bounded():
    seen = 0

    def blocks() -> Iterator[Tensor]:
        nonlocal seen
        for start in range(0, 1000, 10):
            seen += 10
            yield torch.arange(start, start + 10, dtype=torch.float32)[:, None]

    buffer, num_drawn = ShuffleBuffer(blocks(), capacity=100, batch_size=10, seed=0), 0
    order = []
    for batch in drawn(buffer, 10):
        assert seen - num_drawn <= 100
        num_drawn += len(batch)
        order += batch.squeeze(1).tolist()
    assert order != sorted(order)
    assert max(order[:100]) < 200  # a bounded window, not a global shuffle
    assert min(order[-50:]) > 500


def test_buffer_state_continues_with_the_same_batches():
    stream = [torch.full((7, 1), float(i)) for i in range(20)]
    whole = list(drawn(ShuffleBuffer(iter(stream), 30, 8, seed=3), 8))
    used = iter(stream)
    first = ShuffleBuffer(used, 30, 8, seed=3)
    taken = list(islice(drawn(first, 8), 5))
    second = ShuffleBuffer(used, 30, 8, seed=99)
    second.restore(first.state())
    assert [b.tolist() for b in drawn(second, 8)] == [b.tolist() for b in whole[5:]]
    assert [b.tolist() for b in taken] == [b.tolist() for b in whole[:5]]


@pytest.mark.parametrize(
    ("crosscoder", "dtype"),
    [
        ({"variant": "batch_topk", "num_latents": 24, "k": 2}, "float32"),
        ({"variant": "batch_topk", "num_latents": 24, "k": 2}, "bfloat16"),
        ({"variant": "l1", "num_latents": 24, "mu": 0.02}, "float32"),
        ({"variant": "l1", "num_latents": 24, "mu": 0.02}, "bfloat16"),
        ({"variant": "l1", "num_latents": 24, "mu": 0.02, "squared": True, "code_normalisation": "sae"}, "float32"),
    ],
)
def test_training_recovers_planted_directions(tmp_path: Path, crosscoder: dict[str, Any], dtype: str):
    source = PlantedSource(num_blocks=400)
    result = run(make_recipe(crosscoder, lr=1e-2, buffer_tokens=4096, dtype=dtype), tmp_path, source)
    assert result.crosscoder.W_dec.dtype == torch.float32
    rows = torch.nn.functional.normalize(result.crosscoder.W_dec, dim=1)
    best = (source.directions @ rows.T).max(1).values
    assert (best > 0.9).float().mean() >= 0.75
    assert result.tokens == 40_000
    last = {name: value for _, name, value in result.curves}
    assert last["fve_base"] > 0.85
    assert last["fve_chat"] > 0.85


def test_input_normalisation_is_part_of_the_crosscoder(tmp_path: Path):
    result = run(make_recipe(normalise_inputs=True), tmp_path)
    x = next(PlantedSource().blocks())
    base, chat = result.crosscoder.input_scale
    assert base != chat
    scaled = torch.cat([x[:, :8] * base, x[:, 8:] * chat], 1)
    assert scaled[:, :8].square().sum(1).mean() == pytest.approx(8, rel=0.2)
    torch.testing.assert_close(result.crosscoder.scale_inputs(x), scaled)


class Stop(Exception):
    pass


@pytest.mark.parametrize("crosscoder", [None, {"variant": "l1", "num_latents": 24, "mu": 0.02}])
@pytest.mark.parametrize("stop_at", [3, 7, 8, 29, 61])
def test_a_resumed_training_equals_an_undisturbed_one(tmp_path: Path, crosscoder: dict[str, Any] | None, stop_at: int):
    recipe = make_recipe(crosscoder, checkpoint_every=4, dead_after_tokens=200)
    whole = run(recipe, tmp_path / "whole")

    def stop(*_: Any, step: int = 0, **__: Any) -> None:
        if step == stop_at:
            raise Stop

    with pytest.raises(Stop):
        run(recipe, tmp_path / "cut", progress=stop)
    resumed = run(recipe, tmp_path / "cut")
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        assert torch.equal(getattr(resumed.crosscoder, name), getattr(whole.crosscoder, name)), name
    assert resumed.crosscoder.keep == whole.crosscoder.keep
    assert (resumed.steps, resumed.tokens) == (whole.steps, whole.tokens) == (63, 4000)
    times = {"tokens_per_second"}
    strip = [[row for row in result.curves if row[1] not in times] for result in (resumed, whole)]
    assert strip[0] == strip[1]


def test_a_cancelled_training_leaves_only_whole_checkpoints(tmp_path: Path):
    def cancel(*_: Any, step: int = 0, **__: Any) -> None:
        if step == 9:
            raise Cancelled

    with pytest.raises(Cancelled):
        run(make_recipe(checkpoint_every=4), tmp_path, progress=cancel)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000008"]


def test_logging_changes_nothing(tmp_path: Path):
    often, never = (run(make_recipe(log_every=n), tmp_path / str(n)) for n in (1, 10_000))
    assert torch.equal(often.crosscoder.W_dec, never.crosscoder.W_dec)
    assert often.crosscoder.keep == never.crosscoder.keep
    assert len(often.curves) == 63 * 7 - 5  # the threshold begins with the end of the warm-up
    assert never.curves == []


def test_dead_latents_are_revived_by_the_auxiliary_loss(tmp_path: Path):
    x = torch.cat(list(PlantedSource(num_blocks=20).blocks()))
    dead, fve = [], []
    for weight in (0.0, 1.0):
        spec = {"variant": "batch_topk", "num_latents": 24, "k": 1}
        recipe = make_recipe(spec, dead_after_tokens=500, aux_weight=weight, lr=1e-2)
        crosscoder = run(recipe, tmp_path / str(weight), PlantedSource(num_blocks=100)).crosscoder
        code = crosscoder.encode(x)
        dead.append(int((code.sum(0) == 0).sum()))
        rest = (x - crosscoder.decode(code)).square().sum()
        fve.append(float(1 - rest / (x - x.mean(0)).square().sum()))
    assert dead[0] >= 10
    assert dead[1] <= 0.75 * dead[0]
    assert fve[1] > fve[0]


def test_max_steps_and_decay_end_a_training():
    training = TrainingSpec(lr=1.0, warmup_steps=10, decay_share=0.5)
    rates = [learning_rate(training, step, fraction) for step, fraction in [(0, 0), (4, 0), (20, 0.5)]]
    assert rates == [0.1, 0.5, 1.0]
    assert learning_rate(training, 50, 0.75) == 0.5
    assert learning_rate(training, 99, 1.0) == 0.0
    cosine = TrainingSpec(lr=1.0, warmup_steps=0, decay_share=0.5, decay="cosine")
    rates = [learning_rate(cosine, 50, fraction) for fraction in (0.5, 0.75, 2 / 3, 1.0)]
    assert rates == pytest.approx([1.0, 0.5, 0.75, 0.0])


@pytest.mark.parametrize("buffer_tokens", [512, 100_000])
def test_the_fraction_counts_trained_tokens_and_not_those_in_the_buffer(tmp_path: Path, buffer_tokens: int):
    fractions: list[float] = []

    def note(_stage: str, fraction: float, *_: Any, **__: Any) -> None:
        fractions.append(fraction)

    recipe = make_recipe(buffer_tokens=buffer_tokens, decay_share=1.0, warmup_steps=0)
    result = run(recipe, tmp_path, progress=note)
    assert fractions == pytest.approx([64 * step / 4000 for step in range(63)])
    start = initial_weights(variant_of(recipe.crosscoder, (8, 8)), recipe.training.seed, "cpu").decoder
    assert not torch.allclose(result.crosscoder.W_dec, start, atol=0.01)  # the learning rate was not zero throughout


def test_a_training_that_ends_within_the_warm_up_has_a_threshold(tmp_path: Path):
    result = run(make_recipe(warmup_steps=1000), tmp_path)
    assert isinstance(result.crosscoder.keep, AboveThreshold)
    assert result.crosscoder.keep.threshold > 0


@pytest.mark.parametrize("warmup_steps", [1, 1000])
def test_a_batch_of_a_few_tokens_moves_no_threshold_unless_it_is_the_first(warmup_steps: int):
    recipe = make_recipe(warmup_steps=warmup_steps)
    trainer = Trainer(recipe.crosscoder, recipe.training, (8, 8))
    first, *full = (block[:64] for block in PlantedSource(num_blocks=4).blocks())

    def says() -> tuple[float, tuple[float, ...]]:
        keep = trainer.crosscoder().keep
        assert isinstance(keep, AboveThreshold)
        return keep.threshold, trainer.counters.last_smallest

    with torch.no_grad():
        trainer.step(first[:2], 3e-3)
        fragment = says()
        assert fragment[0] == fragment[1][0] > 0
        for x in full:
            trainer.step(x, 3e-3)
        before = says()
        assert before != fragment
        trainer.step(100 * first[:1], 3e-3)
    assert says() == before


def test_max_steps_stops(tmp_path: Path):
    assert run(make_recipe(max_steps=11), tmp_path).steps == 11


def test_geometric_median_is_the_median_in_one_dimension_and_ignores_an_outlier():
    points = torch.tensor([[0.0], [1.0], [2.0], [3.0], [1000.0]])
    assert geometric_median(points, 2000).item() == pytest.approx(2.0, abs=0.01)


def test_a_stream_without_tokens_is_reported_in_a_sentence(tmp_path: Path):
    with pytest.raises(public.TrainingError, match="leaves no token to train on"):
        run(make_recipe(), tmp_path, PlantedSource(num_blocks=0))


def test_a_loss_that_is_not_finite_is_reported_in_a_sentence(tmp_path: Path):
    with pytest.raises(public.TrainingError, match="lr below"):
        run(make_recipe({"variant": "l1", "num_latents": 24, "mu": 0.1, "squared": True}, lr=1e30), tmp_path)


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path):
    run(make_recipe(checkpoint_every=4), tmp_path)
    with pytest.raises(CheckpointError, match=r"training\.lr was 0\.003 and is 0\.5"):
        run(make_recipe(checkpoint_every=4, lr=0.5), tmp_path)


def test_a_checkpoint_that_cannot_be_written_leaves_the_previous_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_checkpoint(tmp_path, Checkpoint(1, {"a": torch.ones(2)}, recipe={}, counters={}, streams={}))

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(disk, "sync", full)
    with pytest.raises(OSError, match="no room for the checkpoint of step 2"):
        save_checkpoint(tmp_path, Checkpoint(2, {"a": torch.zeros(2)}, recipe={}, counters={}, streams={}))
    found = load_checkpoint(tmp_path, {})
    assert found is not None
    assert found.step == 1
    assert torch.equal(found.tensors(frozenset(), slice(0, 0))["a"], torch.ones(2))
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]


@pytest.mark.parametrize("limit", [0.05, 1e6, None])
def test_clipping_and_optimiser_are_torchs_own(limit: float | None):
    recipe = make_recipe(max_grad_norm=limit, aux_weight=0.0)
    batches = list(PlantedSource(num_blocks=20).blocks())
    with torch.no_grad():
        trainer = Trainer(recipe.crosscoder, recipe.training, (8, 8))
        plain = [weight.clone() for weight in trainer.weights]
        optimiser = torch.optim.Adam(plain, lr=3e-3)
        clipped = 0
        for x in batches:
            step = compute_step(Weights(*plain), x, variant_of(recipe.crosscoder, (8, 8)))
            for weight, gradient in zip(plain, step.gradients, strict=True):
                weight.grad = gradient
            if limit is not None:
                clipped += int(torch.nn.utils.clip_grad_norm_(plain, limit) > limit)
            optimiser.step()
            trainer.step(x, 3e-3)
    for found, expected in zip(trainer.weights, plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert clipped == (20 if limit == 0.05 else 0)


def test_activations_that_never_change_are_refused(tmp_path: Path):
    class Constant(PlantedSource):
        def blocks(self) -> Iterator[Tensor]:
            for block in super().blocks():
                block[:, 8:] = 3.0
                yield block

    with pytest.raises(public.TrainingError, match="the chat model's activations are the same on all of the first 512"):
        run(make_recipe(), tmp_path, Constant())


@pytest.mark.parametrize("normalise_inputs", [False, True])
def test_models_that_do_not_differ_have_no_dictionary_of_differences(tmp_path: Path, normalise_inputs: bool):
    class Same(PlantedSource):
        def blocks(self) -> Generator[Tensor]:
            for block in super().blocks():
                block[:, 8:] = block[:, :8]
                yield block

    recipe = make_recipe({"variant": "diff_sae", "num_latents": 24, "k": 2}, normalise_inputs=normalise_inputs)
    with pytest.raises(public.TrainingError, match="activations do not differ"):
        run(recipe, tmp_path, Same())
