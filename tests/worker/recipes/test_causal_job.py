"""The job that measures a published crosscoder's causal effects: same weights and tables, new columns."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from crosscope_proto.artefacts import CrosscoderManifest, PairManifest
from crosscope_proto.causal_columns import CAUSAL_COLUMNS
from crosscope_proto.recipe import CausalRecipe, PublishedRecipe, parse_recipe
from crosscope_worker.analysis import AnalysisError
from crosscope_worker.dictionary.crosscoder import Crosscoder, CrosscoderError
from crosscope_worker.dictionary.version import read_manifest
from crosscope_worker.jobs.environment import uses_hub
from crosscope_worker.models.places import PairError
from crosscope_worker.recipes.causal import make_causal
from crosscope_worker.recipes.publish import Provenance, manifest_of, read_current
from crosscope_worker.recipes.published import make_published
from crosscope_worker.work import LostClaim, Workspace, silent

WIDTH, NUM_LATENTS = 32, 12
CAUSAL = {column.name for column in CAUSAL_COLUMNS}
ANALYSIS = "max_tokens: 400, num_shards: 2, uselessness_steps: 3, spliced_tokens: 200"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    answer = {"role": "assistant", "content": "the red fox, please"}
    rows = [{"turns": [{"role": "user", "content": f"tell me {i}"}, answer]} for i in range(12)]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def workspace(home: Path, pair: Path, job: str, fence=lambda: None) -> Workspace:
    (folder := home / "jobs" / job).mkdir(parents=True, exist_ok=True)
    return Workspace(home=home, folder=folder, fence=fence, data_roots=(pair,))


def published(home: Path, pair: Path, causal: str = "null") -> CrosscoderManifest:
    """A random crosscoder, measured and published here."""
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(2 * WIDTH, NUM_LATENTS, generator=generator)
    random = Crosscoder(
        W, torch.zeros(NUM_LATENTS), W.T.contiguous(), torch.zeros(2 * WIDTH), (WIDTH, WIDTH), variant="l1"
    )
    recipe = parse_recipe(f"""
kind: published
name: theirs
pair: {{name: tiny, base: {pair / "base"}, chat: {pair / "chat"}}}
layer: 1
path: files
data: [{{name: chat, source: jsonl, path: chat.jsonl, chat_column: turns}}]
tokens: {{held_out_every: 2}}
analysis: {{{ANALYSIS}, causal: {causal}}}
""")
    assert isinstance(recipe, PublishedRecipe)
    (home / "files").mkdir(exist_ok=True)
    told = Provenance(PairManifest(name="tiny", base="b", chat="c", tokenizer="c"), 1, {})
    random.save(home / "files", manifest_of("theirs", random, told))
    return make_published(recipe, workspace(home, pair, "job-1"), silent)


def causal(latents: str, name: str = "theirs") -> CausalRecipe:
    recipe = parse_recipe(f"{{kind: causal, name: {name}, causal: {latents}}}")
    assert isinstance(recipe, CausalRecipe)
    return recipe


def version(home: Path, manifest: CrosscoderManifest) -> Path:
    return home / "crosscoders" / "theirs" / "versions" / manifest.version_id


def test_a_job_adds_columns_and_leaves_the_rest_as_it_is(home: Path, tiny_pair_folder: Path):
    before = published(home, tiny_pair_folder)
    recipe = causal("{latents: [0, 3]}")
    stages: list[str] = []
    after = make_causal(
        recipe, workspace(home, tiny_pair_folder, "job-2"), lambda stage, *_, **__: stages.append(stage)
    )
    assert list(dict.fromkeys(stages)) == ["load", "hash", "causal", "publish"]
    assert after.version_id != before.version_id == find_other(home, after)
    assert read_current(home / "crosscoders" / "theirs") == after.version_id
    old, new = version(home, before), version(home, after)
    for path in sorted(old.rglob("*")):
        if path.is_file() and path.name not in ("latents.parquet", "crosscoder.json"):
            assert (new / path.relative_to(old)).read_bytes() == path.read_bytes()
    was, now = pq.read_table(old / "latents.parquet"), pq.read_table(new / "latents.parquet")
    assert now.schema == was.schema
    for name in now.column_names:
        if name not in CAUSAL:
            assert repr(now.column(name).to_pylist()) == repr(was.column(name).to_pylist())
    measured = now.column("ablation_gap_all").to_numpy()
    assert np.flatnonzero(np.isfinite(measured)).tolist() == [0, 3]
    assert after.metrics["causal_latents"] == 2
    assert {name: value for name, value in after.metrics.items() if not name.startswith("causal_")} == before.metrics
    assert after.recipe["analysis"]["causal"]["latents"] == [0, 3]  # pyright: ignore[reportIndexIssue]
    assert (after.job, after.datasets, after.hashes["base"]) == ("job-2", before.datasets, before.hashes["base"])
    assert read_manifest(new) == after
    again = make_causal(recipe, workspace(home, tiny_pair_folder, "job-2"), silent)
    assert again.version_id == after.version_id, "an attempt that comes late publishes nothing twice"
    assert not uses_hub("{kind: causal, name: theirs}", home)


def find_other(home: Path, after: CrosscoderManifest) -> str:
    (other,) = {each.name for each in (home / "crosscoders" / "theirs" / "versions").iterdir()} - {after.version_id}
    return other


def test_the_analysis_and_the_job_measure_the_same(home: Path, tiny_pair_folder: Path):
    first = published(home, tiny_pair_folder, "{top: num_active, num_latents: 3}")
    second = make_causal(
        causal("{top: num_active, num_latents: 3}"), workspace(home, tiny_pair_folder, "job-2"), silent
    )
    tables = [pq.read_table(version(home, each) / "latents.parquet") for each in (first, second)]
    for name in CAUSAL:
        np.testing.assert_array_equal(*(table.column(name).to_numpy() for table in tables))
    assert first.metrics == second.metrics
    assert first.metrics["causal_latents"] == 3
    assert first.metrics["causal_latents_left_out"] > 0


def test_bad_input_says_what_is_wrong(home: Path, tiny_pair_folder: Path):
    manifest = published(home, tiny_pair_folder)

    def attempt(recipe: CausalRecipe, fence=lambda: None) -> None:
        make_causal(recipe, workspace(home, tiny_pair_folder, "job-3", fence), silent)

    with pytest.raises(CrosscoderError, match=r"there is no crosscoder 'mine' to measure \(there: theirs\)"):
        attempt(causal("{}", "mine"))
    with pytest.raises(AnalysisError, match="names latent 99, but the dictionary has 12"):
        attempt(causal("{latents: [99]}"))
    with pytest.raises(AnalysisError, match="no living latent of class base_only has a nu_err"):
        attempt(causal("{classes: [base_only], num_latents: 1}"))

    def lost() -> None:
        raise LostClaim("another attempt")

    with pytest.raises(LostClaim):
        attempt(causal("{latents: [0]}"), lost)
    assert read_current(home / "crosscoders" / "theirs") == manifest.version_id
    path = version(home, manifest) / "crosscoder.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"hashes": document["hashes"] | {"chat": "other"}}))
    with pytest.raises(PairError, match="the chat of the pair 'tiny' has changed since crosscoder 'theirs'"):
        attempt(causal("{latents: [0]}"))
    path.write_text(json.dumps(document | {"recipe": {"was": "lost"}}))
    with pytest.raises(CrosscoderError, match="names no data and pair that can be read"):
        attempt(causal("{latents: [0]}"))
