"""The null test: a model against itself has no exclusive latents."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from crosscope_proto.recipe import CrosscoderRecipe, parse_recipe
from crosscope_worker.recipes.train import make_crosscoder
from crosscope_worker.work import Workspace, silent

RECIPE = Path(__file__).parents[3] / "recipes" / "demo-null.yaml"
WORDS = ("the", "a", "small", "red", "fox", "cat", "sees", "likes", "finds", "house", "one", "two", "and", "not")


@pytest.fixture
def home(tmp_path: Path, tiny_pair_folder: Path) -> Path:
    """A home folder as the demo leaves it, with the tiny pair in place of the demo's."""
    draw = random.Random(0)

    def sentence() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(5, 30)))

    def turns() -> list[dict[str, str]]:
        return [{"role": role, "content": sentence()} for role in ("user", "assistant")]

    demo = tmp_path / "pairs" / "demo"
    (demo / "data").mkdir(parents=True)
    for model in ("base", "chat"):
        (demo / model).symlink_to(tiny_pair_folder / model)
    rows = {"web": [{"text": sentence()} for _ in range(150)], "chat": [{"conversation": turns()} for _ in range(60)]}
    for name, each in rows.items():
        (demo / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in each))
    return tmp_path


def allow() -> None:
    """A fence that lets everything pass."""


def test_no_latent_of_a_model_against_itself_is_exclusive(home: Path, tiny_pair_folder: Path):
    recipe = parse_recipe(RECIPE.read_text())
    assert isinstance(recipe, CrosscoderRecipe)
    recipe = replace(
        recipe,
        crosscoder=replace(recipe.crosscoder, num_latents=64, k=4),
        training=replace(recipe.training, batch_size=128, warmup_steps=3, buffer_tokens=512, checkpoint_every=100),
        analysis=replace(recipe.analysis, max_tokens=2000, num_shards=4, uselessness_steps=5, spliced_tokens=300),
    )
    folder = home / "jobs" / "job-1"
    folder.mkdir(parents=True)
    workspace = Workspace(home=home, folder=folder, fence=allow, data_roots=(tiny_pair_folder,))
    manifest = make_crosscoder(recipe, workspace, silent)
    assert manifest.pair.base == manifest.pair.chat
    assert manifest.hashes["base"] == manifest.hashes["chat"]
    assert manifest.metrics["num_living"] > 10
    assert manifest.class_counts["chat_only"] == manifest.class_counts["base_only"] == 0
    table = pq.read_table(home / "crosscoders" / "demo-null" / "versions" / manifest.version_id / "latents.parquet")
    assert table.column("rel_norm").to_numpy() == pytest.approx(0.5, abs=1e-3)
    figures = manifest.metrics
    assert figures["kl_base_all"] == pytest.approx(0, abs=1e-6), "the base model's activation is the chat model's own"
    for kind in ("ce_clean", "ce_spliced", "ce_zero", "kl_spliced"):
        assert figures[f"{kind}_base"] == pytest.approx(figures[f"{kind}_chat"], rel=1e-3)
    assert figures["kl_spliced_base"] > 1e-6
    assert figures["patch_latents"] == max(1, int(figures["num_living"] * 0.05))
