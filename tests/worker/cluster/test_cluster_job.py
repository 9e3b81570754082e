"""A whole job on a Ray cluster of two nodes, with a rank killed: what one device makes, made by two."""

import json
import random
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from fixtures_ray import ROOT, RayCluster
from fixtures_waiting import until

from crosscope_proto.artefacts import METRICS, version_folder
from crosscope_proto.recipe import CrosscoderRecipe, parse_recipe
from crosscope_proto.v1 import jobs_pb2
from crosscope_worker.dictionary.load import load_crosscoder
from crosscope_worker.recipes.train import make_crosscoder
from crosscope_worker.work import Workspace, silent
from tests.jobs.rig import Rig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

WORDS = "the a small red fox cat bird sees likes finds house one two and not river old baker bread story".split()  # noqa: SIM905


@pytest.fixture
def rig(cluster: RayCluster, tiny_pair_folder: Path) -> Iterator[Rig]:
    """A server, and a job worker that has joined the cluster."""
    made = Rig()
    (made.home / "pairs").symlink_to(tiny_pair_folder.parent)
    made.start_redis()
    made.start_server()
    made.start_real_worker(
        CROSSCOPE_WORKER_RAY_ADDRESS=cluster.address,
        CROSSCOPE_WORKER_DATA_ROOTS=str(tiny_pair_folder.parent),
        **cluster.environment,
    )
    yield made
    made.close()


def write_data(home: Path) -> None:
    draw = random.Random(0)

    def sentence() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(25, 40)))

    def chat() -> list[dict[str, str]]:
        return [{"role": "user", "content": sentence()}, {"role": "assistant", "content": f"sorry {sentence()}"}]

    tags = [{"behaviour": "apology", "turn": 1, "start": 0, "end": 5}]
    rows = {
        "web": [{"text": sentence()} for _ in range(1400)],
        "chat": [{"conversation": chat(), "behaviours": tags if i % 3 else []} for i in range(700)],
    }
    (home / "data").mkdir()
    for name, each in rows.items():
        (home / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in each))


def demo_recipe(name: str, pair: Path, **training: object) -> str:
    """The demo's recipe for the tiny pair, with fewer tokens. Its held-out texts fill a window and a bit: two parts."""
    recipe = yaml.safe_load((ROOT / "recipes" / "demo.yaml").read_text())
    models = {model: str(pair / model) for model in ("base", "chat")}
    recipe |= {"name": name, "layer": 1, "pair": {"name": "tiny", **models}}
    recipe["tokens"]["held_out_every"] = 2
    recipe["training"] |= {"buffer_tokens": 4096, "max_steps": 200, "checkpoint_every": 20, "streams": 2, **training}
    recipe["analysis"] |= {"max_tokens": 68_000, "parts": 2, "uselessness_steps": 20}
    recipe["analysis"]["causal"] |= {"num_latents": 2, "tokens": 200}
    return yaml.safe_dump(recipe)


def published(home: Path, name: str, version_id: str) -> Path:
    return Path(version_folder(home, name, version_id))


def test_a_job_goes_on_when_a_rank_is_killed(cluster: RayCluster, rig: Rig, tiny_pair_folder: Path) -> None:
    write_data(rig.home)
    text = demo_recipe("together", tiny_pair_folder, devices=2)
    job = rig.jobs.SubmitJob(jobs_pb2.SubmitJobRequest(recipe_yaml=text), timeout=10).job
    checkpoints = rig.home / "jobs" / job.id / "checkpoints"
    until(lambda: any(checkpoints.glob("step-*")) or rig.get(job.id).ended_at > 0, 400)
    assert rig.get(job.id).ended_at == 0, rig.get(job.id).message
    cluster.ranks()[-1].send_signal(signal.SIGKILL)
    replies = list(rig.watch(job.id, timeout_s=400))
    ended = replies[-1].job
    assert ended.state == jobs_pb2.JOB_STATE_SUCCEEDED, ended.message
    assert ended.attempt == 1, "the job itself was not started again"
    said = " ".join(event.message for reply in replies for event in reply.events)
    assert "died; training goes on from step" in said
    assert "(start 2 of 4)" in said
    assert re.search(r"\d of 2 parts of the held-out texts measured|2 of the held-out texts is measured already", said)

    recipe = parse_recipe(demo_recipe("alone", tiny_pair_folder))
    assert isinstance(recipe, CrosscoderRecipe)
    (folder := rig.home / "jobs" / "alone").mkdir()
    alone = make_crosscoder(recipe, Workspace(rig.home, folder, lambda: None, data_roots=(tiny_pair_folder,)), silent)
    compare(published(rig.home, "together", ended.version_id), published(rig.home, "alone", alone.version_id))


def compare(found: Path, expected: Path) -> None:
    """The same weights, choices and texts; figures differ as their weights do."""
    for one, other in zip(weights(found), weights(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    names = sorted(path.relative_to(expected) for path in expected.rglob("*.parquet"))
    assert sorted(path.relative_to(found) for path in found.rglob("*.parquet")) == names
    for name in names:
        one, other = pq.read_table(found / name), pq.read_table(expected / name)
        if name.name == METRICS:
            one, other = (table.filter(pc.field("name") != "tokens_per_second") for table in (one, other))
        if name.parent.name == "examples":  # Texts whose activations agree to seven digits may change places.
            agree = pc.equal(one["sequence"], other["sequence"])
            assert pc.mean(agree).as_py() > 0.99
            one, other = one.filter(agree), other.filter(agree)
        for column in other.column_names:
            same(f"{name}: {column}", one[column].combine_chunks(), other[column].combine_chunks())


def same(what: str, one: pa.Array, other: pa.Array) -> None:
    while pa.types.is_list(one.type) or pa.types.is_fixed_size_list(one.type):
        assert pc.list_value_length(one).equals(pc.list_value_length(other)), what
        one, other = one.flatten(), other.flatten()
    if not (pa.types.is_floating(one.type) or what.endswith("histogram")):
        assert one.equals(other), what
        return
    numbers = [each.to_numpy(zero_copy_only=False).astype(float) for each in (one, other)]
    np.testing.assert_allclose(*numbers, rtol=1e-3, atol=2 if what.endswith("histogram") else 1e-4, err_msg=what)


def weights(folder: Path) -> list[torch.Tensor]:
    crosscoder = load_crosscoder(folder)
    return [crosscoder.W_enc, crosscoder.b_enc, crosscoder.W_dec, crosscoder.b_dec]
