"""What a plan says of the disk, beside the folder of a real job: never less, and of large files hardly more."""

import json
import random
from pathlib import Path

from crosscope_proto.folders import bytes_of
from crosscope_proto.recipe import CrosscoderRecipe, parse_recipe
from crosscope_server.jobs.check import check
from crosscope_server.jobs.plan import plan
from crosscope_worker.recipes.parts import PARTS
from crosscope_worker.recipes.train import make_crosscoder
from crosscope_worker.work import Workspace, silent

LARGE = 1_000_000
WORDS = ("the", "red", "fox", "cat", "one", "two", "and", "not")


def recipe_in(home: Path, pair: Path) -> CrosscoderRecipe:
    draw = random.Random(0)
    rows = [{"text": " ".join(draw.choices(WORDS, k=draw.randint(10, 26)))} for _ in range(300)]
    (home / "web.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = parse_recipe(f"""
kind: crosscoder
name: toy
pair: {{name: tiny, base: {pair / "base"}, chat: {pair / "chat"}}}
layer: 1
data: [{{name: web, source: jsonl, path: web.jsonl, text_column: text, max_tokens: 1600}}]
tokens: {{max_length: 64, held_out_every: 2}}
crosscoder: {{variant: topk, num_latents: 1500, k: 8}}
training: {{batch_size: 256, lr: 0.001, warmup_steps: 3, buffer_tokens: 1024, checkpoint_every: 4, max_steps: 6}}
analysis: {{max_tokens: 3000, num_shards: 100, parts: 1, uselessness_steps: 5, spliced_tokens: 0}}
""")
    assert isinstance(recipe, CrosscoderRecipe)
    return recipe


def test_a_job_writes_what_its_plan_says(tmp_path: Path, tiny_pair_folder: Path) -> None:
    recipe = recipe_in(tmp_path, tiny_pair_folder)
    planned = plan(recipe, check(recipe, tmp_path, (tiny_pair_folder,)), tmp_path).disk
    said = {entry.name: entry.value or 0 for entry in planned.entries}
    (folder := tmp_path / "jobs" / "job-1").mkdir(parents=True)
    workspace = Workspace(home=tmp_path, folder=folder, fence=lambda: None, data_roots=(tiny_pair_folder,))
    made = make_crosscoder(recipe, workspace, silent)

    [checkpoint] = workspace.checkpoints.glob("step-*")
    parts = workspace.checkpoints / PARTS
    version = tmp_path / "crosscoders" / "toy" / "versions" / made.version_id
    weights, examples = version / "crosscoder.safetensors", version / "examples"
    wrote = {
        "checkpoint": bytes_of(checkpoint),
        "parts": bytes_of(parts),
        "version: weights": bytes_of(weights),
        "version: examples": bytes_of(examples),
        "version: tables": bytes_of(version) - bytes_of(weights) - bytes_of(examples),
    }
    said["parts"] = said.pop("parts: held-out texts") + said.pop("parts: sums") + said.pop("parts: codes")
    assert said.pop("next checkpoint") == said["checkpoint"]
    assert said.keys() == wrote.keys()
    ratios = {name: said[name] / size for name, size in wrote.items()}
    assert {name for name, size in wrote.items() if size > LARGE} >= {"checkpoint", "parts"}
    assert min(ratios.values()) >= 1, ratios
    assert all(ratios[name] <= 1.2 for name, size in wrote.items() if size > LARGE), ratios
    assert planned.kept_bytes >= bytes_of(version)
    assert planned.peak_bytes >= bytes_of(workspace.checkpoints) + bytes_of(version)
