"""The hooks for new dictionaries: tensors of their own, and reconstructions in pieces."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures_training import make_recipe, run
from torch import Tensor

from crosscope_proto.dictionaries import dictionary
from crosscope_proto.recipe import recipe_dict
from crosscope_worker.dictionary.keep import AboveThresholds, Keep
from crosscope_worker.training import active_code
from crosscope_worker.training.active_code import Scratch, Selected, Weights
from crosscope_worker.training.checkpoint import load_checkpoint
from crosscope_worker.training.objective import compute_step
from crosscope_worker.training.variants import l1, variant_of
from crosscope_worker.training.variants.batch_topk import BatchTopK
from crosscope_worker.training.variants.l1 import L1
from crosscope_worker.training.variants.variant import Batch, Further, Reconstruction

PENALISED = {"variant": "l1", "num_latents": 24, "mu": 0.02}


class Learns(L1):
    """Pulls a threshold of every latent towards e."""

    def extra(self, weights: Weights) -> dict[str, Tensor]:
        return {"log_threshold": torch.zeros_like(weights.b_enc)}

    def further(self, batch: Batch, reconstruction: Reconstruction, gradients: Weights | None) -> Further:
        gradient = batch.extra["log_threshold"] - 1
        return Further(0.5 * float(gradient.square().sum()), {"log_threshold": gradient})

    def keep(self, thresholds: Sequence[float], weights: Weights, extra: Mapping[str, Tensor]) -> Keep:
        return AboveThresholds(extra["log_threshold"].exp())


def test_tensors_of_its_own_are_learnt_kept_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(l1, "VARIANT", Learns)

    class Stopped(Exception):
        pass

    def stop(*_: Any, step: int = 0, **__: Any) -> None:
        if step == 37:
            raise Stopped

    recipe = make_recipe(PENALISED, checkpoint_every=10, lr=0.05)
    whole = run(recipe, tmp_path / "whole").crosscoder
    with pytest.raises(Stopped):
        run(recipe, tmp_path / "parts", progress=stop)
    resumed = run(recipe, tmp_path / "parts").crosscoder
    assert isinstance(whole.keep, AboveThresholds)
    assert isinstance(resumed.keep, AboveThresholds)
    assert torch.equal(whole.keep.thresholds, resumed.keep.thresholds)
    torch.testing.assert_close(whole.keep.thresholds, torch.full((24,), torch.e), rtol=0.1, atol=0)
    saved = load_checkpoint(tmp_path / "parts", recipe_dict(recipe))
    assert saved is not None
    assert {"log_threshold", "adam.log_threshold.exp_avg"} <= saved.tensors(frozenset(), slice(0, 24)).keys()


class InPieces(BatchTopK):
    """The same reconstruction, in three pieces."""

    def reconstruct(self, batch: Batch, selected: Sequence[Selected]) -> Reconstruction:
        whole = super().reconstruct(batch, selected)
        parts = [slice(0, 5), slice(5, 6), slice(6, self.spec.num_latents)]
        pieces = [(each.narrowed(part), grad) for each, grad in whole.pieces for part in parts]
        summed = sum(piece.decode(batch.operands.decoder) for piece, _ in pieces)
        torch.testing.assert_close(batch.x - batch.weights.b_dec - summed, whole.error)
        return whole._replace(pieces=pieces)


@pytest.mark.parametrize("dense_above", [-1.0, 2.0], ids=["dense", "entries"])
def test_pieces_of_latents_have_the_gradients_of_the_whole(monkeypatch: pytest.MonkeyPatch, dense_above: float):
    monkeypatch.setattr(active_code, "dense_above", lambda device, dtype: dense_above)
    spec = dictionary(variant="batch_topk", num_latents=16, k=3)
    draw = torch.Generator().manual_seed(0)
    weights = Weights(
        *(torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in ((16, 8), (16,), (16, 8), (8,)))
    )
    x, dead = torch.randn(9, 8, generator=draw, dtype=torch.float64), torch.arange(16) % 3 == 0
    whole = compute_step(weights, x, variant_of(spec, (4, 4)), dead=dead, aux_weight=0.5)
    pieces = compute_step(weights, x, InPieces(spec, (4, 4)), dead=dead, aux_weight=0.5)
    assert pieces.loss == whole.loss
    for found, expected in zip(pieces.gradients, whole.gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_pieces_write_their_gradients_to_memory_that_is_taken_again():
    spec, scratch = dictionary(variant="batch_topk", num_latents=16, k=3), Scratch()
    draw = torch.Generator().manual_seed(0)
    weights = Weights(*(torch.randn(*shape, generator=draw) for shape in ((16, 8), (16,), (16, 8), (8,))))
    steps = [compute_step(weights, torch.randn(9, 8), InPieces(spec, (4, 4)), scratch=scratch) for _ in range(2)]
    for first, second in zip(*([step.gradients.encoder, step.gradients.decoder] for step in steps), strict=True):
        assert first.data_ptr() == second.data_ptr()
