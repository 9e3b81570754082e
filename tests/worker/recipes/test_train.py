"""The whole job on a tiny pair: texts to a published version, whatever interrupts it."""

import datetime
import json
import random
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from crosscope_proto.artefacts import CrosscoderManifest
from crosscope_proto.column import arrow_schema
from crosscope_proto.columns import LATENT_COLUMNS
from crosscope_proto.dictionaries import dictionary
from crosscope_proto.recipe import CrosscoderRecipe, PublishedRecipe, parse_recipe, recipe_dict
from crosscope_proto.roles import BASE, CHAT
from crosscope_proto.stages import STAGES, Stage
from crosscope_worker.analysis import AnalysisError
from crosscope_worker.data.harvest import HarvestError
from crosscope_worker.data.texts import DataError
from crosscope_worker.dictionary.crosscoder import Crosscoder
from crosscope_worker.dictionary.keep import ALL_POSITIVE, AboveModelThresholds, AboveThresholds, LargestOfToken
from crosscope_worker.dictionary.load import load_crosscoder
from crosscope_worker.dictionary.version import read_manifest
from crosscope_worker.jobs.stages import Shares
from crosscope_worker.models.norms import NormBounds, NormFilter
from crosscope_worker.recipes.material import Material
from crosscope_worker.recipes.published import make_published
from crosscope_worker.recipes.train import make_crosscoder
from crosscope_worker.training import checkpoint
from crosscope_worker.training.trainer import Trainer
from crosscope_worker.work import Cancelled, LostClaim, Stopped, Workspace, silent

WORDS = (
    "the",
    "a",
    "small",
    "red",
    "fox",
    "cat",
    "bird",
    "sees",
    "likes",
    "finds",
    "house",
    "one",
    "two",
    "and",
    "not",
)


class Stop(Stopped):
    """Stands for anything that ends the process in the middle."""


class ReadTimeout(Exception):
    """An error as HTTP clients raise it, of a class that no handler names."""


@pytest.fixture
def home(tmp_path: Path, tiny_pair_folder: Path) -> Path:
    (tmp_path / "pairs").symlink_to(tiny_pair_folder.parent)
    draw = random.Random(0)

    def sentence() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(5, 30)))

    documents = [{"text": sentence()} for _ in range(120)]
    chats = [
        {
            "turns": [{"role": "user", "content": sentence()}, {"role": "assistant", "content": "sorry " + sentence()}],
            "tags": [{"turn": 1, "start": 0, "end": 5, "behaviour": "apology"}] if i % 3 else [],
        }
        for i in range(90)
    ]
    for name, rows in (("web", documents), ("chat", chats)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def recipe(tiny_pair_folder: Path) -> CrosscoderRecipe:
    return parse_crosscoder(f"""
kind: crosscoder
name: toy
pair: {{name: tiny, base: {tiny_pair_folder / "base"}, chat: {tiny_pair_folder / "chat"}}}
layer: 1
data:
  - {{name: web, source: jsonl, path: web.jsonl, text_column: text}}
  - {{name: chat, source: jsonl, path: chat.jsonl, chat_column: turns, behaviours_column: tags}}
tokens: {{max_length: 64, held_out_every: 5}}
crosscoder: {{variant: batch_topk, num_latents: 64, k: 4}}
training: {{batch_size: 128, lr: 0.003, warmup_steps: 3, epochs: 2, buffer_tokens: 512, log_every: 5,
            checkpoint_every: 7}}
analysis: {{max_tokens: 2000, num_shards: 4, top_examples: 3, quantiles: 2, examples_per_quantile: 1,
            uselessness_steps: 5}}
""")


def parse_crosscoder(text: str) -> CrosscoderRecipe:
    recipe = parse_recipe(text)
    assert isinstance(recipe, CrosscoderRecipe)
    return recipe


def allow() -> None:
    """A fence that lets everything pass."""


def workspace(home: Path, job: str = "job-1", fence: Any = allow) -> Workspace:
    """A workspace with the session's pair, which lies beside the home in a folder that jobs may read."""
    folder = home / "jobs" / job
    folder.mkdir(parents=True, exist_ok=True)
    return Workspace(home=home, folder=folder, fence=fence, data_roots=(home / "pairs",))


def test_texts_are_cut_to_what_both_models_can_read(home: Path, recipe: CrosscoderRecipe):
    (home / "web.jsonl").write_text(5 * (json.dumps({"text": 400 * "fox "}) + "\n"))
    longer = replace(recipe, data=recipe.data[:1], tokens=replace(recipe.tokens, max_length=1024))
    material = Material.load(longer, workspace(home), silent)
    assert [len(text.ids) for text in material.texts("train")] == [256] * 4


def test_the_first_attempts_day_is_every_attempts(home: Path, recipe: CrosscoderRecipe):
    first = Material.load(recipe, workspace(home), silent)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    assert first.tokenizer.template.settings.date == today
    day = home / "jobs" / "job-1" / "first-day"
    assert day.read_text() == f"{today}\n"
    day.write_text("2020-02-29\n")  # the attempt of that day was cut
    told = replace(recipe, chat_template_kwargs={"mood": "calm"})
    resumed = Material.load(told, workspace(home), silent).tokenizer.template.settings
    assert (resumed.date, resumed.kwargs) == ("2020-02-29", {"mood": "calm"})
    stated = replace(told, chat_template_date=datetime.date(2026, 3, 5))
    settings = Material.load(stated, workspace(home), silent).tokenizer.template.settings
    assert (settings.date, settings.kwargs) == ("2026-03-05", {"mood": "calm", "date_string": "05 Mar 2026"})
    day.write_text("")
    assert workspace(home).first_day() == today


def test_a_set_without_held_out_texts_ends_the_job_before_its_training(home: Path, recipe: CrosscoderRecipe):
    stages: list[str] = []

    def note(stage: str, *_: object, **__: object) -> None:
        stages.append(stage)

    (home / "chat.jsonl").write_text("".join((home / "chat.jsonl").read_text().splitlines(keepends=True)[:4]))
    with pytest.raises(DataError, match="'chat' has 4 texts, none of them held out"):
        make_crosscoder(recipe, workspace(home), note)
    assert set(stages) == {"load"}


def version_folder(home: Path, manifest: CrosscoderManifest) -> Path:
    return home / "crosscoders" / manifest.name / "versions" / manifest.version_id


OTHERS: dict[str, dict[str, Any]] = {
    "designated_shared": {"k": None, "mu": 0.02, "num_shared": 8, "shared_penalty": 0.2},
    "dfc": {"num_base_only": 8, "num_chat_only": 8},
    "delta": {"num_delta": 16, "k_delta": 1, "delta_weight": 1.0},
    "diff_sae": {},
    "topk": {},
    "jumprelu": {"k": None, "mu": 0.02},
    "matryoshka": {"prefixes": [8, 24, 64]},
}


PARTS = {
    "designated_shared": {"designated": 8, "rest": 56},
    "dfc": {"base_exclusive": 8, "chat_exclusive": 8, "rest": 48},
    "delta": {"delta": 16, "rest": 48},
    "diff_sae": {"": 64},
    "topk": {"": 64},
    "jumprelu": {"": 64},
    "matryoshka": {"prefix_1": 8, "prefix_2": 16, "prefix_3": 40},
}


@pytest.mark.parametrize("variant", OTHERS)
def test_every_dictionary_is_trained_analysed_and_published(home: Path, recipe: CrosscoderRecipe, variant: str):
    spec = dictionary(**asdict(recipe.crosscoder) | {"variant": variant} | OTHERS[variant])
    bins: list[Sequence[int]] = []

    def note(*_: object, metrics: object = None, rel_norms: Sequence[int] = (), **__: object) -> None:
        if metrics:
            bins.append(rel_norms)

    manifest = make_crosscoder(replace(recipe, crosscoder=spec), workspace(home), note)
    assert {sum(each) for each in bins} == {0 if variant == "diff_sae" else 64}
    if variant == "dfc":
        assert all(each[0] >= 8 <= each[-1] for each in bins)
    folder = version_folder(home, manifest)
    crosscoder = load_crosscoder(folder)
    assert crosscoder.variant == manifest.variant == variant
    assert ("fve_difference" in manifest.metrics) == (variant == "diff_sae")
    latents = pq.read_table(folder / "latents.parquet")
    classes = latents["latent_class"].to_pylist()
    if variant == "dfc":
        assert {*classes[:8]} <= {"base_only", "dead"}
        assert {*classes[8:16]} <= {"chat_only", "dead"}
    if variant == "designated_shared":
        assert {*classes[:8]} <= {"shared", "dead"}
    if variant in ("delta", "jumprelu"):
        assert isinstance(crosscoder.keep, AboveThresholds)
    if variant == "topk":
        assert (crosscoder.keep, manifest.threshold) == (LargestOfToken(manifest.token_k or 0), None)
    assert set(manifest.class_counts) >= {*classes}
    assert Counter(latents["part"].to_pylist()) == PARTS[variant]
    assert latents["part"][0].as_py() == next(iter(PARTS[variant])), "the latents that are set apart come first"


def test_a_decoupled_code_is_trained_analysed_and_published(home: Path, recipe: CrosscoderRecipe):
    recipe = replace(recipe, crosscoder=replace(recipe.crosscoder, code_normalisation="decoupled"))
    manifest = make_crosscoder(recipe, workspace(home), silent)
    k = recipe.crosscoder.k
    assert k is not None
    assert k / 2 < manifest.metrics["l0"] <= 2 * k, "k for each model"
    crosscoder = load_crosscoder(version_folder(home, manifest))
    assert isinstance(crosscoder.keep, AboveModelThresholds)
    x = 30 * torch.randn(40, sum(crosscoder.d_model))
    f, thresholds = crosscoder.pre_activations(x).relu(), crosscoder.keep.thresholds
    base, chat = (f * crosscoder.decoder(model).norm(dim=1) > thresholds[model] for model in (BASE, CHAT))
    assert (base != chat).any(), "the models keep different entries"
    assert torch.equal(crosscoder.encode(x) > 0, base | chat)
    assert (base | chat).sum() < (f > 0).sum(), "the thresholds drop some"


@pytest.mark.parametrize("variant", [{}, {"variant": "l1", "mu": 0.02, "k": None}])
def test_a_recipe_becomes_a_published_crosscoder(home: Path, recipe: CrosscoderRecipe, variant: dict[str, Any]):
    recipe = replace(recipe, crosscoder=dictionary(**asdict(recipe.crosscoder) | variant))
    manifest = make_crosscoder(recipe, workspace(home), silent)
    folder = version_folder(home, manifest)
    assert (home / "crosscoders/toy/CURRENT").read_text().strip() == manifest.version_id
    assert read_manifest(folder) == manifest
    assert manifest.job == "job-1"
    assert manifest.datasets == ("web", "chat")
    assert manifest.training_tokens > 0
    assert manifest.float32 == "ieee"
    assert set(manifest.metrics) >= {"fve_base", "fve_chat", "l0", "dead_share"}
    assert (manifest.metrics.get("threshold"), "threshold_running" in manifest.metrics) == (
        manifest.threshold,
        manifest.threshold is not None,
    )
    assert set(manifest.hashes) >= {"tokenizer", "base", "chat"}
    assert pq.read_schema(folder / "latents.parquet").equals(arrow_schema(LATENT_COLUMNS))
    detectors = pq.read_table(folder / "behaviours.parquet").to_pylist()
    assert {row["behaviour"] for row in detectors} == {"apology"}
    crosscoder = load_crosscoder(folder)
    assert crosscoder.num_latents == 64
    assert (crosscoder.keep is ALL_POSITIVE) == (manifest.variant == "l1")


def test_every_token_is_trained_on_once_an_epoch(home: Path, recipe: CrosscoderRecipe):
    once = make_crosscoder(replace(recipe, training=replace(recipe.training, epochs=1)), workspace(home, "a"), silent)
    twice = make_crosscoder(recipe, workspace(home, "b"), silent)
    assert twice.training_tokens == 2 * once.training_tokens


@pytest.mark.parametrize("stop_at", [1, 8, 20, 41])
def test_a_job_that_was_cut_ends_with_the_same_weights(home: Path, recipe: CrosscoderRecipe, stop_at: int):
    whole = make_crosscoder(recipe, workspace(home, "whole"), silent)

    def stop(*_: Any, step: int = 0, **__: Any) -> None:
        if step == stop_at:
            raise Stop

    with pytest.raises(Stop):
        make_crosscoder(recipe, workspace(home, "cut"), stop)
    resumed = make_crosscoder(recipe, workspace(home, "cut"), silent)
    first, second = (load_crosscoder(version_folder(home, manifest)) for manifest in (whole, resumed))
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    assert first.keep == second.keep
    assert resumed.metrics == whole.metrics


def test_every_phase_of_a_job_is_named_and_moves(home: Path, recipe: CrosscoderRecipe):
    """Stages come in the order by which the whole job's share is computed, and the share never falls."""
    seen: list[tuple[str, float, str]] = []

    def note(stage: str, fraction: float, message: str = "", **_: Any) -> None:
        seen.append((stage, fraction, message))

    cached = replace(recipe, training=replace(recipe.training, cache=True, buffer_tokens=2048))
    make_crosscoder(cached, workspace(home), note)
    stages = list(dict.fromkeys(stage for stage, _, _ in seen))
    assert stages == [stage for stage, _ in STAGES["crosscoder"] if stage is not Stage.CAUSAL]  # it is not asked for
    assert stages == [stage for stage, _ in groupby(stage for stage, _, _ in seen)]  # each once
    shares, totals = Shares(STAGES["crosscoder"]), []
    for stage, fraction, message in seen:
        assert message, stage
        shares.at(stage, fraction)
        totals.append(shares.total)
    assert totals == sorted(totals)
    assert totals[-1] > 0.98
    moves = {stage: len({(fraction, message) for at, fraction, message in seen if at == stage}) for stage in stages}
    assert moves.pop("publish") == 1
    assert min(moves.values()) > 1, moves
    told = " ".join(message for _, _, message in seen)
    for phase in ("writing the checkpoint of step 7", "MB of activations, shard 0", "choosing examples", "held-out"):
        assert phase in told


@pytest.mark.parametrize("at", ["load", "hash", "hash-data", "fill", "train", "analyse", "fidelity", "publish"])
def test_a_cancel_is_heard_in_every_phase(home: Path, recipe: CrosscoderRecipe, at: str):
    quick = replace(recipe, training=replace(recipe.training, cache=True, epochs=1, max_steps=3))

    def cancel(stage: str, *_: Any, **__: Any) -> None:
        if stage == at:
            raise Cancelled

    with pytest.raises(Cancelled):
        make_crosscoder(quick, workspace(home), cancel)
    assert not (home / "crosscoders/toy/CURRENT").exists()
    assert not list(home.glob("crosscoders/toy/versions/*"))


def test_a_job_that_is_run_again_publishes_nothing_twice(home: Path, recipe: CrosscoderRecipe):
    first = make_crosscoder(recipe, workspace(home), silent)
    again = make_crosscoder(recipe, workspace(home), silent)
    assert again == first
    assert len(list((home / "crosscoders/toy/versions").iterdir())) == 1
    other = make_crosscoder(recipe, workspace(home, "job-2"), silent)
    assert other.version_id != first.version_id


def test_an_attempt_that_lost_its_claim_publishes_nothing(home: Path, recipe: CrosscoderRecipe):
    def lost() -> None:
        raise LostClaim

    with pytest.raises(LostClaim):
        make_crosscoder(recipe, workspace(home, fence=lost), silent)
    assert not list(home.glob("crosscoders/toy/versions/*"))


def test_outlier_limits_survive_a_cut(home: Path, recipe: CrosscoderRecipe):
    recipe = replace(recipe, tokens=replace(recipe.tokens, max_norm_ratio=1.1))
    whole = make_crosscoder(recipe, workspace(home, "whole"), silent)

    def stop(*_: Any, step: int = 0, **__: Any) -> None:
        if step == 15:
            raise Stop

    with pytest.raises(Stop):
        make_crosscoder(recipe, workspace(home, "cut"), stop)
    newest = checkpoint.load_checkpoint(home / "jobs/cut/checkpoints", whole.recipe)
    assert newest is not None
    assert newest.step == 14
    resumed = make_crosscoder(recipe, workspace(home, "cut"), silent)
    assert resumed.training_tokens == whole.training_tokens
    weights = [load_crosscoder(version_folder(home, manifest)).W_dec for manifest in (whole, resumed)]
    assert torch.equal(*weights)
    assert (resumed.norm_limits, resumed.norm_left_out) == (whole.norm_limits, whole.norm_left_out)
    assert resumed.norm_positions == whole.norm_positions


def test_outliers_are_recorded_and_told_and_the_analysis_has_the_trainings_limits(
    home: Path, recipe: CrosscoderRecipe, monkeypatch: pytest.MonkeyPatch
):
    made: list[NormFilter] = []
    filters = NormFilter.__init__

    def note(self: NormFilter, *arguments: Any) -> None:
        filters(self, *arguments)
        made.append(self)

    monkeypatch.setattr(NormFilter, "__init__", note)
    told: list[str] = []

    def listen(stage: str, _: float, message: str = "", **__: Any) -> None:
        if stage == "analyse" and message:
            told.append(message)

    strict = replace(recipe, tokens=replace(recipe.tokens, max_norm_ratio=1.1))
    manifest = make_crosscoder(strict, workspace(home), listen)
    assert manifest.norm_left_out > 0
    assert {each.bounds for each in made} == {NormBounds(manifest.norm_limits or (0, 0), manifest.norm_positions)}
    assert len(made) >= 4, "of the training as it was read and as it is recorded, of analysis and spliced tokens"
    assert 0 < manifest.metrics["outlier_share"] < 1
    assert told[0] == manifest.warnings[0]
    total = manifest.norm_left_out + manifest.training_tokens
    assert f"tokens ({manifest.norm_left_out} of {total}) were left out: norm above 1.1 ×" in told[0]
    assert read_manifest(version_folder(home, manifest)) == manifest
    everything = replace(recipe, tokens=replace(recipe.tokens, max_norm_ratio=None), name="all")
    manifest = make_crosscoder(everything, workspace(home, "all"), silent)
    assert (manifest.norm_limits, manifest.norm_left_out, manifest.warnings) == (None, 0, ())
    assert manifest.training_tokens == total


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"layer": 99}, "layer 99: the base model has"),
        ({"data": ("missing.jsonl",)}, "no file matches missing.jsonl"),
    ],
)
def test_an_impossible_recipe_is_refused_before_training(
    home: Path, recipe: CrosscoderRecipe, change: dict[str, Any], sentence: str
):
    if "data" in change:
        change = {"data": (replace(recipe.data[0], path=change["data"][0]),)}
    with pytest.raises(ValueError, match=sentence):
        make_crosscoder(replace(recipe, **change), workspace(home), silent)


def test_layer_and_token_policy_reach_every_part_of_a_job(home: Path, recipe: CrosscoderRecipe):
    """Without the first tokens there are fewer to train on, to analyse and to splice; another layer gives others."""
    quick = replace(
        recipe,
        training=replace(recipe.training, epochs=1, max_steps=6),
        analysis=replace(recipe.analysis, max_tokens=300, spliced_tokens=200, uselessness_steps=1),
    )
    changes: dict[str, dict[str, Any]] = {
        "plain": {},
        "layer": {"layer": 2},
        "skip_first": {"tokens": replace(quick.tokens, skip_first=4)},
    }
    found: dict[str, tuple[CrosscoderManifest, Crosscoder, list[list[int]]]] = {}
    for name, change in changes.items():
        manifest = make_crosscoder(replace(quick, name=name, **change), workspace(home, name), silent)
        folder = version_folder(home, manifest)
        positions = pq.read_table(folder / "examples")["positions"].to_pylist()
        found[name] = manifest, load_crosscoder(folder), positions
    plain, weights, positions = found["plain"]
    assert (plain.layer, found["layer"][0].layer) == (1, 2)
    assert min(map(min, positions)) == 1
    for name in ("layer", "skip_first"):
        manifest, other, _ = found[name]
        assert not torch.isclose(other.W_dec, weights.W_dec).all(), "trained on other activations"
        for figure in ("fve_base", "ce_spliced_base", "ce_zero_chat", "kl_base_all"):
            assert manifest.metrics[figure] != plain.metrics[figure], figure
    assert found["layer"][0].metrics["ce_clean_base"] == pytest.approx(plain.metrics["ce_clean_base"], rel=1e-5)
    assert min(map(min, found["skip_first"][2])) == 4


def test_a_crosscoder_that_cannot_be_measured_is_kept_and_can_be_measured_later(
    home: Path, recipe: CrosscoderRecipe, monkeypatch: pytest.MonkeyPatch
):
    def run_out(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB")

    with monkeypatch.context() as patched:
        patched.setattr("crosscope_worker.recipes.measure.conclude", run_out)
        with pytest.raises(AnalysisError, match=r"memory ran out .* analysis.num_shards from 4 to 2") as refused:
            make_crosscoder(recipe, workspace(home), silent)
    assert refused.value.__notes__ == [
        "The trained crosscoder is kept: a recipe of kind published with path jobs/job-1/trained measures it."
    ]
    document = {name: value for name, value in recipe_dict(recipe).items() if name not in ("crosscoder", "training")}
    text = json.dumps(document | {"kind": "published", "path": "jobs/job-1/trained"})
    later = parse_recipe(text)
    assert isinstance(later, PublishedRecipe)
    kept = load_crosscoder(version_folder(home, make_published(later, workspace(home, "job-2"), silent)))
    whole = load_crosscoder(version_folder(home, make_crosscoder(recipe, workspace(home, "job-3"), silent)))
    assert torch.equal(kept.W_dec, whole.W_dec)
    assert kept.keep == whole.keep


@pytest.mark.parametrize(
    "error",
    [
        HarvestError("web.jsonl, line 9, token 3: the chat model's activation is not finite"),
        ReadTimeout("The read operation timed out"),
        zlib.error("Error -3 while decompressing data"),
        KeyError("text"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_failed_training_keeps_the_crosscoder_of_its_last_checkpoint(
    home: Path, recipe: CrosscoderRecipe, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    step = Trainer.step

    def fail_at_ten(trainer: Trainer, x: torch.Tensor, lr: float) -> Any:
        if trainer.counters.step == 10:
            raise error
        return step(trainer, x, lr)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", fail_at_ten)
        with pytest.raises(type(error)) as refused:
            make_crosscoder(recipe, workspace(home), silent)
    [note] = refused.value.__notes__
    assert note.startswith("The crosscoder as of step 7, the last checkpoint, is kept: a recipe of kind published with")
    kept = load_crosscoder(home / "jobs" / "job-1" / "trained")
    assert kept.num_latents == recipe.crosscoder.num_latents
    if not isinstance(error, HarvestError):
        return  # The same weights whatever the error was.
    seven = make_crosscoder(
        replace(recipe, training=replace(recipe.training, max_steps=7)), workspace(home, "job-2"), silent
    )
    assert torch.equal(kept.W_dec, load_crosscoder(version_folder(home, seven)).W_dec)
    assert read_manifest(home / "jobs" / "job-1" / "trained").training_tokens == 7 * 128


@pytest.mark.parametrize("damage", ["none", "cut"])
def test_a_training_that_fails_without_a_whole_checkpoint_says_only_why(
    home: Path, recipe: CrosscoderRecipe, damage: str
):
    class Full(OSError):
        pass

    def fail(stage: str, *_: Any, step: int = 0, **__: Any) -> None:
        if step == 8 - (damage == "none") * 5:
            while damage == "cut" and not list(home.glob("jobs/*/checkpoints/step-*7/latents-*.safetensors")):
                time.sleep(0.01)  # A thread writes it.
            for tensors in home.glob("jobs/*/checkpoints/*/latents-*.safetensors"):
                tensors.write_bytes(tensors.read_bytes()[:-9])
            raise Full("no room")

    with pytest.raises(Full) as refused:
        make_crosscoder(recipe, workspace(home), fail)
    notes = getattr(refused.value, "__notes__", [])
    assert [note.partition(" as a crosscoder: ")[0] for note in notes] == (
        ["The last checkpoint could not be kept"] if damage == "cut" else []
    )
    assert not (home / "jobs" / "job-1" / "trained").exists()


def test_an_attempt_after_a_death_in_the_analysis_trains_no_step_again(
    home: Path, recipe: CrosscoderRecipe, monkeypatch: pytest.MonkeyPatch
):
    def die(*_: Any) -> Any:
        raise Stop

    with monkeypatch.context() as patched:
        patched.setattr("crosscope_worker.recipes.measure.conclude", die)
        with pytest.raises(Stop):
            make_crosscoder(recipe, workspace(home), silent)
    stages: list[str] = []

    def note(stage: str, *_: Any, **__: Any) -> None:
        stages.append(stage)

    manifest = make_crosscoder(recipe, workspace(home), note)
    assert "train" not in stages
    assert manifest.training_tokens > 0


def test_the_manifest_counts_what_a_job_leaves_out(home: Path, recipe: CrosscoderRecipe):
    """Every seventh conversation has other roles; training reads two epochs, the analysis what is held out."""
    rows = [json.loads(line) for line in (home / "chat.jsonl").read_text().splitlines()]
    for row in rows[::7]:
        row["turns"][0]["role"] = "human"
    (home / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chats = replace(recipe.data[1], skip_refused=True)
    quick = replace(recipe, data=(recipe.data[0], chats), analysis=replace(recipe.analysis, spliced_tokens=0))
    manifest = make_crosscoder(quick, workspace(home), silent)
    refused = [index for index in range(90) if index % 7 == 0]
    held_out = sum(index % 5 == 4 for index in refused)
    expected = 2 * (len(refused) - held_out) + held_out
    assert manifest.skipped_texts == expected
    ((reason, count),) = manifest.skipped["chat"].items()
    assert (count, reason) == (
        expected,
        "a turn: the role is 'human'; it must be one of system, developer, user, assistant, tool",
    )
    assert (manifest.texts["chat"]["read"], manifest.texts["web"]["read"]) == (2 * 72 + 18, 2 * 96 + 24)
    assert manifest.texts["web"]["cut"] > 0
    with pytest.raises(DataError, match=r"'chat': .* texts were refused, more than max_refused_share 0\.1 allows"):
        make_crosscoder(
            replace(quick, data=(recipe.data[0], replace(chats, max_refused_share=0.1))), workspace(home, "2"), silent
        )


@pytest.mark.parametrize("part", ["data", "pair"])
def test_forbidden_files_are_reported_before_models_are_loaded(
    home: Path, recipe: CrosscoderRecipe, tmp_path_factory: pytest.TempPathFactory, part: str
):
    stages: list[str] = []

    def note(stage: str, *_: object, **__: object) -> None:
        stages.append(stage)

    outside = tmp_path_factory.mktemp("outside")
    if part == "data":
        recipe = replace(recipe, data=(replace(recipe.data[0], path=f"{outside}/*"),))
    else:
        recipe = replace(recipe, pair=replace(recipe.pair, base=str(outside)))
    with pytest.raises(ValueError, match=rf"{outside} .*outside the folders that jobs may read"):
        make_crosscoder(recipe, workspace(home), note)
    assert stages == ["load"]
