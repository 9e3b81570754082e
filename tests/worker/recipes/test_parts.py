"""Held-out texts measured in parts: the tables of one pass, whoever measures the parts and whatever is killed."""

import functools
import json
import os
import random
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from crosscope_proto.recipe import PublishedRecipe, parse_recipe
from crosscope_proto.specs import AnalysisSpec
from crosscope_worker.analysis import Analysis, HeldOut, accumulators, analyse, conclude, uselessness
from crosscope_worker.analysis.accumulators import Accumulators
from crosscope_worker.data.harvest import harvest_windows, windows_of
from crosscope_worker.dictionary.crosscoder import Crosscoder
from crosscope_worker.dictionary.keep import AboveThreshold
from crosscope_worker.models.norms import NormFilter
from crosscope_worker.phases import Following
from crosscope_worker.recipes import passes
from crosscope_worker.recipes.material import Material
from crosscope_worker.recipes.measure import Trained, measure_and_publish
from crosscope_worker.recipes.parts import PARTS, PLAN, PartTask, load_part, measure_part, result
from crosscope_worker.work import LostClaim, Workspace, silent

NAMES = ("web", "chat")
WORDS = "the a small red fox cat bird sees likes finds house one two and not".split()
WINDOW = 60
"""Tokens of a window of texts here, so that a few texts make many parts."""


def write_data(home: Path) -> None:
    """Documents, every fifth of which repeats an earlier one, and chats, of which there are fewer."""
    draw = random.Random(0)

    def sentence() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(5, 30)))

    documents = [sentence() for _ in range(80)]
    documents = [documents[i // 3] if i % 5 == 4 else each for i, each in enumerate(documents)]
    asked = [{"role": "user", "content": "who are you ?"}]
    tags = [{"behaviour": "apology", "turn": 1, "start": 0, "end": 5}]
    answers = [{"role": "assistant", "content": f"sorry {sentence()}"} for _ in range(40)]
    chats = [{"turns": [*asked, answer], "tags": tags if i % 3 else []} for i, answer in enumerate(answers)]
    (home / "web.jsonl").write_text("".join(json.dumps({"text": each}) + "\n" for each in documents))
    (home / "chat.jsonl").write_text("".join(json.dumps(each) + "\n" for each in chats))


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory, tiny_pair_folder: Path) -> Material:
    home = tmp_path_factory.mktemp("parts")
    write_data(home)
    recipe = parse_recipe(f"""
kind: published
name: theirs
pair: {{name: tiny, base: {tiny_pair_folder / "base"}, chat: {tiny_pair_folder / "chat"}}}
layer: 1
path: theirs
data:
  - {{name: web, source: jsonl, path: web.jsonl, text_column: text}}
  - {{name: chat, source: jsonl, path: chat.jsonl, chat_column: turns, behaviours_column: tags}}
tokens: {{held_out_every: 2, max_norm_ratio: null}}
analysis: {{max_tokens: 900, num_shards: 5, top_examples: 3, examples_per_quantile: 2, uselessness_steps: 40,
            spliced_tokens: 0}}
""")
    assert isinstance(recipe, PublishedRecipe)
    (folder := home / "jobs" / "job-1").mkdir(parents=True)
    workspace = Workspace(home=home, folder=folder, fence=lambda: None, data_roots=(tiny_pair_folder,))
    return Material.load(recipe, workspace, silent)


@pytest.fixture(scope="module")
def crosscoder(material: Material) -> Crosscoder:
    """Latents that point where activations do, a third of them almost without base rows."""
    generator = torch.Generator().manual_seed(0)
    both = sum(material.pair.d_model)
    rows = torch.nn.functional.normalize(torch.randn(48, both, generator=generator), dim=1)
    encoder = rows.T.clone()
    rows[::3, : both // 2] *= 0.05
    bias, keep = torch.zeros(48), AboveThreshold(0.3)
    return Crosscoder(encoder, bias, rows, torch.zeros(both), material.pair.d_model, "batch_topk", keep=keep)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows, blocks and samples so small that all of them are cut."""
    monkeypatch.setattr(passes, "windows_of", lambda *given: windows_of(*given, WINDOW // 8))
    monkeypatch.setattr(accumulators, "CoActivation", functools.partial(accumulators.CoActivation, sample_entries=900))
    monkeypatch.setattr(uselessness, "RESERVOIR_BYTES", 0)
    monkeypatch.setattr(uselessness, "BATCH_TOKENS", 64)


def in_job(material: Material, job: str, **analysis: Any) -> Material:
    """The same material for a job of its own, with another recipe."""
    (folder := material.workspace.home / "jobs" / job).mkdir(exist_ok=True)
    recipe = replace(material.recipe, analysis=replace(material.recipe.analysis, **analysis))
    return replace(material, recipe=recipe, workspace=replace(material.workspace, folder=folder))


def folder_of(material: Material) -> Path:
    return material.workspace.checkpoints / PARTS


def passed(
    material: Material, crosscoder: Crosscoder, progress: Any = silent, runner: Any = None
) -> tuple[Accumulators, NormFilter]:
    norms = NormFilter(material.recipe.tokens.max_norm_ratio, crosscoder.d_model)
    following = Following(progress, "analyse")

    def save(folder: Path) -> None:
        from crosscope_worker.recipes.measure import _provenance, manifest_of

        crosscoder.save(folder, manifest_of("theirs", crosscoder, _provenance(material, Trained(crosscoder))))

    return passes.pass_over(material, crosscoder, norms, following, runner, save)[0], norms


def tables(material: Material, crosscoder: Crosscoder, found: Accumulators) -> Analysis:
    held_out = HeldOut((), NAMES, material.tokenizer)
    return conclude(crosscoder, held_out, material.recipe.analysis, silent, found)


def assert_same(one: Analysis, other: Analysis, *, exactly: bool = False) -> None:
    """Integers, choices and texts are equal, float64 figures to 1e-9, float32 columns to 1e-6."""
    for each in fields(Analysis):
        ours, theirs = getattr(one, each.name), getattr(other, each.name)
        if isinstance(ours, pa.Table):
            assert ours.schema == theirs.schema
            for name in ours.column_names:
                _assert_alike(ours[name].to_pylist(), theirs[name].to_pylist(), f"{each.name}.{name}", exactly, 1e-6)
        else:
            _assert_alike(ours, theirs, each.name, exactly, 1e-9)


def _assert_alike(one: Any, other: Any, where: str, exactly: bool, rel: float) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        one, other = list(one.values()), list(other.values())
    if isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for ours, theirs in zip(one, other, strict=True):
            _assert_alike(ours, theirs, where, exactly, rel)
    elif isinstance(one, float) and not exactly:
        assert other == pytest.approx(one, rel=rel, abs=1e-12, nan_ok=True), where
    else:
        assert one == other or (one != one and other != other), where


@pytest.fixture(scope="module")
def whole(material: Material, crosscoder: Crosscoder) -> Callable[[], Analysis]:
    """What one pass over all texts finds, without parts."""

    @functools.cache
    def found() -> Analysis:
        windows = windows_of(material.texts("held_out"), material.activations, WINDOW // 8)
        harvests = harvest_windows(windows, material.activations, material.recipe.tokens)
        return analyse(crosscoder, HeldOut(harvests, NAMES, material.tokenizer), material.recipe.analysis, silent)

    return found


@pytest.fixture(scope="module")
def measured(material: Material, crosscoder: Crosscoder) -> Iterator[Material]:
    """A job that has measured five parts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "windows_of", lambda *given: windows_of(*given, WINDOW // 8))
        job = in_job(material, "five", parts=5)
        passed(job, crosscoder)[0].close()
        yield job


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_parts_give_the_tables_of_one_pass(
    material: Material, crosscoder: Crosscoder, whole: Callable[[], Analysis], parts: int
):
    job = in_job(material, f"parts-{parts}", parts=parts)
    found, _ = passed(job, crosscoder)
    assert len(list(folder_of(job).glob("[0-9]*"))) == parts
    assert any(copies > 1 for copies in found.store.copies), "a text repeats one of another part"
    assert float(found.coactivation.state()["share"]) < 1
    assert_same(tables(job, crosscoder, found), whole(), exactly=parts == 1)
    assert whole().metrics["repeat_share"] > 0
    assert whole().behaviours.num_rows > 0
