"""Inference thresholds keep k entries a token on average, however short the training was (math §2)."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures_training import PlantedSource, make_recipe, run
from hypothesis import given, settings
from hypothesis import strategies as st

from crosscope_proto.roles import BASE, CHAT
from crosscope_worker.dictionary.crosscoder import Crosscoder
from crosscope_worker.dictionary.keep import AboveThreshold
from crosscope_worker.training import calibration, saved_result
from crosscope_worker.training.budget import Budget
from crosscope_worker.training.calibration import TokenSample, calibrate

SPECS: dict[str, dict[str, Any]] = {
    "batch_topk": {"variant": "batch_topk", "num_latents": 24, "k": 2},
    "diff_sae": {"variant": "diff_sae", "num_latents": 24, "k": 2},
    "dfc": {"variant": "dfc", "num_latents": 24, "k": 2, "num_base_only": 4, "num_chat_only": 4},
    "decoupled": {"variant": "dfc", "num_latents": 24, "k": 2, "num_base_only": 4, "num_chat_only": 4}
    | {"code_normalisation": "decoupled"},
    "delta": {"variant": "delta", "num_latents": 24, "k": 2, "num_delta": 8, "k_delta": 1, "delta_weight": 1.0},
    "matryoshka": {"variant": "matryoshka", "num_latents": 24, "k": 2, "prefixes": [6, 12, 24]},
}
SHARE = 0.4
"""Of the planted directions that are active on a token: more than k, so that k can be kept at all."""
SHORT = {"warmup_steps": 5, "decay_share": 0.3, "lr": 1e-2}
"""As the demo: the learning rate rises, stands and falls within less than the thousand updates of the average."""


def held_out(num_blocks: int = 200) -> torch.Tensor:
    """Tokens that no training here has seen: blocks far behind those that trainings read."""
    source = PlantedSource(num_blocks=10_000 + num_blocks, share=SHARE)
    source.next = 10_000
    return torch.cat(list(source.blocks()))


def l0_of_budgets(crosscoder: Crosscoder, spec: dict[str, Any], x: torch.Tensor) -> list[tuple[float, int]]:
    """For each budget, the entries a token that inference keeps, and the number that the recipe promises."""
    code, sparsifier = crosscoder.encode_sparse(x), crosscoder.sparsifier()
    if crosscoder.code_normalisation == "decoupled":
        kept = sparsifier.kept_by(code)
        return [(int(kept[model].sum()) / len(x), spec["k"]) for model in (BASE, CHAT)]
    if (num_delta := spec.get("num_delta")) is None:
        return [(len(code.latents) / len(x), spec["k"])]
    is_delta = code.latents < num_delta
    return [(int(is_delta.sum()) / len(x), spec["k_delta"]), (int((~is_delta).sum()) / len(x), spec["k"])]


@pytest.mark.parametrize("name", SPECS)
def test_a_short_training_keeps_k_on_held_out_tokens(tmp_path: Path, name: str):
    result = run(make_recipe(SPECS[name], **SHORT), tmp_path, PlantedSource(num_blocks=200, share=SHARE))
    for found, promised in l0_of_budgets(result.crosscoder, SPECS[name], held_out()):
        assert found == pytest.approx(promised, rel=0.02), result.figures


def test_a_long_training_keeps_k_on_held_out_tokens(tmp_path: Path):
    spec = SPECS["batch_topk"]
    result = run(make_recipe(spec, batch_size=32, **SHORT), tmp_path, PlantedSource(num_blocks=400, share=SHARE))
    assert result.steps > 1200, "longer than the memory of the running average"
    assert l0_of_budgets(result.crosscoder, spec, held_out())[0][0] == pytest.approx(2, rel=0.02)


def test_a_falling_k_promises_its_final_value(tmp_path: Path):
    recipe = make_recipe(sparsity_warmup_steps=1000, k_start=8, **SHORT)
    result = run(recipe, tmp_path, PlantedSource(num_blocks=100, share=SHARE))
    assert result.steps < 1000
    assert l0_of_budgets(result.crosscoder, SPECS["batch_topk"], held_out())[0][0] == pytest.approx(2, rel=0.02)


def test_both_thresholds_are_in_the_figures(tmp_path: Path):
    one = run(make_recipe(**SHORT), tmp_path / "one")
    assert one.crosscoder.keep == AboveThreshold(one.figures["threshold"])
    last = [value for _, name, value in one.curves if name == "threshold"][-1]
    assert one.figures["threshold_running"] == pytest.approx(last, rel=0.1)
    assert one.figures["threshold_running"] != one.figures["threshold"]
    assert one.figures["calibration_tokens"] == 4000
    two = run(make_recipe(SPECS["delta"], **SHORT), tmp_path / "two")
    assert {"threshold", "threshold_1", "threshold_running", "threshold_running_1"} <= two.figures.keys()
    assert run(make_recipe({"variant": "l1", "num_latents": 24, "mu": 0.1}), tmp_path / "three").figures == {}


def test_the_crosscoder_of_a_checkpoint_is_calibrated(tmp_path: Path):
    """A training that fails keeps the crosscoder of its last checkpoint."""
    recipe = make_recipe(**SHORT)
    result = run(recipe, tmp_path)
    with torch.no_grad():
        saved = saved_result(recipe, (8, 8), tmp_path)
    assert saved is not None
    assert saved.crosscoder.keep == result.crosscoder.keep
    assert saved.figures == result.figures


def test_a_thinned_sample_survives_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(calibration, "SAMPLE_TOKENS", 700)
    monkeypatch.setattr(TokenSample.__init__, "__defaults__", (700,))
    recipe = make_recipe(checkpoint_every=4)
    whole = run(recipe, tmp_path / "whole")
    assert 350 <= whole.figures["calibration_tokens"] <= 700

    class Stop(Exception):
        pass

    def stop(*_: Any, step: int = 0, **__: Any) -> None:
        if step == 30:
            raise Stop

    with pytest.raises(Stop):
        run(recipe, tmp_path / "cut", progress=stop)
    resumed = run(recipe, tmp_path / "cut")
    assert resumed.figures == whole.figures
    assert resumed.crosscoder.keep == whole.crosscoder.keep


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=30), capacity=st.integers(1, 20))
def test_a_sample_is_every_nth_token(sizes: list[int], capacity: int):
    sample, total = TokenSample(capacity), sum(sizes)
    before = 0
    for batch in torch.arange(float(total))[:, None].split(sizes):
        sample.add(before, batch)
        before += len(batch)
    stride = next(2**power for power in range(20) if -(-total // 2**power) <= capacity)
    assert sample.tokens()[:, 0].tolist() == list(range(0, total, stride))


@pytest.mark.parametrize("piece", [1, 1 << 24])
def test_a_threshold_by_hand(monkeypatch: pytest.MonkeyPatch, piece: int):
    """Two latents read one value each; norms are 2 and 3. Scaled: 2, 4, 6, 8 and 3, 6, 9, 0."""
    monkeypatch.setattr(calibration, "_BLOCK_ENTRIES", piece)
    crosscoder = Crosscoder(
        W_enc=torch.eye(2),
        b_enc=torch.zeros(2),
        W_dec=torch.diag(torch.tensor([2.0, 3.0])),
        b_dec=torch.zeros(2),
        d_model=(1, 1),
        variant="batch_topk",
    )
    x = torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [4.0, -5.0]])
    whole, first = slice(0, 2), slice(0, 1)
    assert calibrate(crosscoder, [Budget(whole, 1)], x) == (4.0,)  # 9, 8, 6, 6 stay
    assert calibrate(crosscoder, [Budget(first, 1), Budget(slice(1, 2), 2)], x) == (0.0, 0.0)  # fewer are positive
    assert calibrate(crosscoder, [Budget(whole, 1, BASE), Budget(whole, 1, CHAT)], x) == (0.0, 0.0)
