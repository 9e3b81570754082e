"""The dictionaries in training: budgets, ties, absences and schedules; gradients are in test_objective.py."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures_training import PlantedSource, make_recipe, run

from crosscope_proto.dictionaries import dictionary
from crosscope_proto.specs import TrainingSpec
from crosscope_worker.dictionary.crosscoder import Crosscoder
from crosscope_worker.dictionary.keep import AboveThresholds, StoredKeep
from crosscope_worker.training import TrainingError, train
from crosscope_worker.training.budget import Budget
from crosscope_worker.training.variants import variant_of
from crosscope_worker.training.variants.budgeted import Budgeted
from crosscope_worker.training.variants.penalised import Penalised
from crosscope_worker.work import silent

DESIGNATED = {"variant": "designated_shared", "num_latents": 24, "mu": 0.02, "num_shared": 5, "shared_penalty": 0.2}
DFC = {"variant": "dfc", "num_latents": 24, "k": 2, "num_base_only": 4, "num_chat_only": 6}
DELTA = {"variant": "delta", "num_latents": 24, "k": 2, "num_delta": 8, "k_delta": 1, "delta_weight": 1.0}
DECOUPLED = {"variant": "batch_topk", "num_latents": 24, "k": 2, "code_normalisation": "decoupled"}
DIFFERENCE = {"variant": "diff_sae", "num_latents": 24, "k": 2}
JUMPRELU = {"variant": "jumprelu", "num_latents": 24, "mu": 0.05}
MATRYOSHKA = {"variant": "matryoshka", "num_latents": 24, "k": 2, "prefixes": [4, 10, 24]}


def trained(folder: Path, spec: dict[str, Any], **training: Any) -> tuple[Crosscoder, dict[str, float]]:
    result = run(make_recipe(spec, **({"lr": 1e-2} | training)), folder, PlantedSource(num_blocks=200))
    return result.crosscoder, {name: value for _, name, value in result.curves}


def activations() -> torch.Tensor:
    return torch.cat(list(PlantedSource(num_blocks=20).blocks()))


@pytest.mark.parametrize("spec", [DESIGNATED, DFC, DELTA, DECOUPLED, MATRYOSHKA], ids=lambda spec: spec["variant"])
def test_reconstructs_both_models(tmp_path: Path, spec: dict[str, Any]):
    crosscoder, last = trained(tmp_path, spec)
    assert min(last["fve_base"], last["fve_chat"]) > 0.7
    x = activations()
    error = x - crosscoder.decode(crosscoder.encode(x))
    assert 1 - error.square().sum() / (x - x.mean(0)).square().sum() > 0.7


def test_designated_shared_latents_have_one_row_for_both_models(tmp_path: Path):
    crosscoder, _ = trained(tmp_path, DESIGNATED)
    base, chat = crosscoder.decoder(0), crosscoder.decoder(1)
    assert torch.equal(base[:5], chat[:5])
    assert not torch.isclose(base[5:], chat[5:]).all(dim=1).any()


def test_the_penalty_of_designated_shared_latents_is_reduced():
    variant = variant_of(dictionary(**DESIGNATED), (8, 8))
    assert isinstance(variant, Penalised)
    weights = variant.penalties(torch.zeros(24))
    torch.testing.assert_close(weights, torch.tensor([0.004] * 5 + [0.02] * 19))


def test_latents_of_one_model_neither_read_nor_write_the_other(tmp_path: Path):
    crosscoder, _ = trained(tmp_path, DFC)
    for rows in (crosscoder.W_dec, crosscoder.W_enc.T):
        base, chat = rows[:, :8].norm(dim=1), rows[:, 8:].norm(dim=1)
        assert (chat == 0).nonzero().flatten().tolist() == [0, 1, 2, 3]
        assert (base == 0).nonzero().flatten().tolist() == [4, 5, 6, 7, 8, 9]


def test_delta_latents_have_a_budget_and_a_threshold_of_their_own(tmp_path: Path):
    variant = variant_of(dictionary(**DELTA), (8, 8))
    assert isinstance(variant, Budgeted)
    assert variant.budgets() == (Budget(slice(0, 8), 1), Budget(slice(8, 24), 2))
    crosscoder, _ = trained(tmp_path, DELTA)
    assert isinstance(crosscoder.keep, AboveThresholds)
    assert len(set(crosscoder.keep.thresholds.tolist())) == 2
    counts = (crosscoder.encode(activations()) > 0).float().sum(0) / 2000
    assert float(counts[:8].sum()) == pytest.approx(1, rel=0.3)
    assert float(counts[8:].sum()) == pytest.approx(2, rel=0.3)


def test_the_weight_of_the_difference_reduces_its_error(tmp_path: Path):
    sizes = []
    for weight in (1e-3, 10.0):
        crosscoder, _ = trained(tmp_path / str(weight), DELTA | {"delta_weight": weight})
        x = activations()
        error = x - crosscoder.decode(crosscoder.encode(x))
        base, chat = error.split(8, dim=1)
        sizes.append(float((chat - base).norm(dim=1).mean() / (chat + base).norm(dim=1).mean()))
    assert sizes[1] < 0.7 * sizes[0]


def test_a_decoupled_code_keeps_k_latents_for_each_model(tmp_path: Path):
    crosscoder, last = trained(tmp_path, DECOUPLED)
    assert last["l0"] == pytest.approx(2, rel=0.02)
    code = crosscoder.encode_sparse(activations())
    for kept in crosscoder.sparsifier().kept_by(code):
        assert float(kept.sum()) / 2000 == pytest.approx(2, rel=0.3)


@pytest.mark.parametrize("normalise", [False, True])
def test_a_dictionary_of_differences_reads_and_writes_the_difference(tmp_path: Path, normalise: bool):
    crosscoder, last = trained(tmp_path, DIFFERENCE, normalise_inputs=normalise)
    assert last["fve_difference"] > 0.6
    x = activations()
    difference = x[:, 8:] - x[:, :8]
    code = crosscoder.encode(x)
    both = torch.full_like(x, 3.0)
    torch.testing.assert_close(crosscoder.encode(x + both), code, rtol=1e-3, atol=1e-4)
    x_hat = crosscoder.decode(code)
    assert not x_hat[:, :8].any()
    error = difference - x_hat[:, 8:]
    assert 1 - error.square().sum() / (difference - difference.mean(0)).square().sum() > 0.6
    assert (crosscoder.input_scale[0] == crosscoder.input_scale[1] != 1.0) == normalise


def test_models_that_are_the_same_have_no_difference(tmp_path: Path):
    class Same(PlantedSource):
        def blocks(self):
            for block in super().blocks():
                yield block[:, :8].repeat(1, 2)

    with pytest.raises(TrainingError, match="do not differ"):
        run(make_recipe(DIFFERENCE, normalise_inputs=True), tmp_path, Same())


@pytest.mark.parametrize("spec", [DESIGNATED, DELTA, DIFFERENCE], ids=lambda spec: spec["variant"])
def test_models_of_different_width_are_refused_where_they_must_be_equal(tmp_path: Path, spec: dict[str, Any]):
    with pytest.raises(TrainingError, match=rf"variant {spec['variant']} needs models of equal width; .* 8 and 7"):
        train(make_recipe(spec), [PlantedSource(d_model=(8, 7))], (8, 7), tmp_path, silent)


def test_k_falls_and_mu_rises():
    training = TrainingSpec(sparsity_warmup_steps=4, k_start=10)
    spec = dictionary(variant="batch_topk", num_latents=24, k=2)
    variant = variant_of(spec, (8, 8))
    assert [variant.at_step(training, step).spec.k for step in range(6)] == [10, 8, 6, 4, 2, 2]
    for name in ("l1", "jumprelu"):
        variant = variant_of(dictionary(variant=name, num_latents=24, mu=0.4), (8, 8))
        steps = [variant.at_step(TrainingSpec(sparsity_warmup_steps=4), step).spec.mu for step in range(5)]
        assert steps == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])


def test_a_training_anneals_its_k(tmp_path: Path):
    recipe = make_recipe(DFC, sparsity_warmup_steps=30, k_start=12, log_every=1)
    curves = run(recipe, tmp_path).curves
    active = [value for _, name, value in curves if name == "l0"]
    assert active[0] > 4 * active[-1]
    assert active[40] == pytest.approx(2, abs=0.01)
    thresholds = [step for step, name, _ in curves if name == "threshold"]
    assert thresholds[0] == 31  # what is kept while k falls says nothing about the end


@pytest.mark.parametrize("spec", [DELTA, DECOUPLED, DIFFERENCE, JUMPRELU, MATRYOSHKA], ids=lambda spec: spec["variant"])
def test_a_resumed_training_equals_an_undisturbed_one(tmp_path: Path, spec: dict[str, Any]):
    class Stopped(Exception):
        pass

    def stop(_stage: str, _fraction: float, *_: Any, step: int = 0, **__: Any) -> None:
        if step == 37:
            raise Stopped

    recipe = make_recipe(spec, checkpoint_every=10)
    whole = run(recipe, tmp_path / "whole").crosscoder
    with pytest.raises(Stopped):
        run(recipe, tmp_path / "parts", progress=stop)
    resumed = run(recipe, tmp_path / "parts").crosscoder
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        assert torch.equal(getattr(whole, name), getattr(resumed, name)), name
    kept = [StoredKeep.of(each.keep, 24) for each in (whole, resumed)]
    assert kept[0].threshold == kept[1].threshold
    assert all(torch.equal(each, kept[1].tensors[name]) for name, each in kept[0].tensors.items())
