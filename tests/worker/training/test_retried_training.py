"""A real training, in a real job process, that fails in the middle and is retried after its data is repaired."""

import json
import random
import re
import shutil
from pathlib import Path

import pytest
import torch

from crosscope_proto.recipe import CrosscoderRecipe, parse_recipe
from crosscope_proto.v1 import jobs_pb2
from crosscope_worker.dictionary.load import load_crosscoder
from crosscope_worker.recipes.train import make_crosscoder
from crosscope_worker.work import Workspace, silent
from tests.jobs.rig import Rig

RECIPE = """
kind: crosscoder
name: retried
pair: {{name: tiny, base: {pair}/base, chat: {pair}/chat}}
layer: 1
data: [{{name: web, source: jsonl, path: web.jsonl, text_column: text}}]
tokens: {{held_out_every: 50}}
crosscoder: {{variant: batch_topk, num_latents: 32, k: 4}}
training: {{batch_size: 1024, lr: 0.003, buffer_tokens: 4096, checkpoint_every: 20}}
analysis: {{max_tokens: 500, num_shards: 2, top_examples: 1, uselessness_steps: 1, spliced_tokens: 0}}
"""


@pytest.mark.slow
def test_a_retried_training_ends_with_the_same_weights(tiny_pair_folder: Path) -> None:
    rig = Rig()
    try:
        draw = random.Random(0)
        rows = [{"text": " ".join(draw.choices(("the", "fox", "sees", "a", "red", "house"), k=40))} for _ in range(850)]
        broken = [row if index != 830 else {"body": "?"} for index, row in enumerate(rows)]
        web, mended = rig.home / "web.jsonl", "".join(json.dumps(row) + "\n" for row in rows)
        web.write_text("".join(json.dumps(row) + "\n" for row in broken))
        rig.start_redis()
        rig.start_server()
        rig.start_real_worker()
        shutil.copytree(tiny_pair_folder, rig.home / "models")  # Jobs read below the home only.
        text = RECIPE.format(pair=rig.home / "models")
        job = rig.jobs.SubmitJob(jobs_pb2.SubmitJobRequest(recipe_yaml=text)).job
        failed = rig.wait(job.id, timeout_s=120)
        assert failed.state == jobs_pb2.JOB_STATE_FAILED
        assert "web.jsonl, line 831: there is no column 'text'; there are body" in failed.message
        kept = re.search(rf"crosscope retry {job.id} continues from step (\d+)\.$", failed.message)
        assert kept, failed.message
        assert int(kept[1]) >= 20
        assert 0.05 < failed.total_fraction < 0.8

        web.write_text(mended)
        rig.retry(job.id)
        done = rig.wait(job.id, timeout_s=120)
        assert (done.state, done.attempt, done.total_fraction) == (jobs_pb2.JOB_STATE_SUCCEEDED, 2, 1)
        stages = [event.stage for reply in rig.watch(job.id) for event in reply.events]
        assert {"load", "hash", "train", "analyse", "publish"} <= set(stages)

        recipe = parse_recipe(text)
        assert isinstance(recipe, CrosscoderRecipe)
        (folder := rig.home / "jobs" / "undisturbed").mkdir()
        whole = make_crosscoder(recipe, Workspace(rig.home, folder, lambda: None), silent)
        versions = rig.home / "crosscoders" / "retried" / "versions"
        first, second = (load_crosscoder(versions / each) for each in (done.version_id, whole.version_id))
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            assert torch.equal(getattr(first, name), getattr(second, name)), name
    finally:
        rig.close()
