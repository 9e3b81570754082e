"""The measured speeds of a machine are reported and remembered, and change no result."""

import json
from pathlib import Path

import pytest

from crosscope_proto.footprint import SPEEDS, Speed
from crosscope_proto.recipe import CrosscoderRecipe, parse_recipe
from crosscope_worker.recipes import speeds

TEXT = """
kind: crosscoder
name: a
layer: 1
pair: {name: p}
crosscoder: {variant: batch_topk, num_latents: 64, k: 4}
training: {batch_size: 100}
data: [{name: web, source: text, path: x}]
"""


@pytest.fixture
def recipe() -> CrosscoderRecipe:
    recipe = parse_recipe(TEXT)
    assert isinstance(recipe, CrosscoderRecipe)
    return recipe


def test_a_speed_is_remembered_and_found_again(tmp_path: Path, recipe: CrosscoderRecipe) -> None:
    speeds.remember(tmp_path, recipe, "cpu", 1, [(10, "loss", 1.0)])
    assert not (tmp_path / SPEEDS).exists()
    for rate in range(speeds.KEPT + 3):
        if rate in (3, 4, speeds.KEPT + 2) or rate == 0:
            speeds.remember(
                tmp_path, recipe, "cpu", 1, [(10, "tokens_per_second", 5.0), (20, "tokens_per_second", rate)]
            )
    found = [Speed(**json.loads(line)) for line in (tmp_path / SPEEDS).read_text().splitlines()]
    assert [speed.tokens_per_second for speed in found] == [0, 3, 4, speeds.KEPT + 2]
    assert all(speed.is_of(recipe) for speed in found)
    (tmp_path / SPEEDS).write_text("x\n" * 2 * speeds.KEPT)
    speeds.remember(tmp_path, recipe, "cpu", 1, [(10, "tokens_per_second", 5.0)])
    assert len((tmp_path / SPEEDS).read_text().splitlines()) == speeds.KEPT


def test_the_faster_dtype_is_suggested(recipe: CrosscoderRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    took = {"float32": 3.0, "bfloat16": 1.0}
    monkeypatch.setattr(speeds, "product_seconds", lambda *shape: took[shape[3]])
    said = speeds.faster_dtype(recipe, 64, "cpu")
    assert said.startswith("products in bfloat16 are 3.0 times as fast here as in float32: training.dtype: bfloat16")
    assert speeds.faster_dtype(recipe, 64, "cuda") == ""
    took["bfloat16"] = 2.9
    assert speeds.faster_dtype(recipe, 64, "cpu") == ""


def test_a_product_is_measured(recipe: CrosscoderRecipe) -> None:
    assert 0 < speeds.product_seconds(8, 16, 32, "float32", budget_s=0.001) < 1
