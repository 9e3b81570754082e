"""Held-out texts measured in parts: the tables of one pass, whoever measures the parts and whatever is killed."""

import functools
import json
import math
import os
import random
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from crosscope_proto.recipe import PublishedRecipe, parse_recipe
from crosscope_worker.analysis import Analysis, HeldOut, accumulators, analyse, conclude, uselessness
from crosscope_worker.analysis.accumulators import Accumulators
from crosscope_worker.data.harvest import harvest_windows, windows_of
from crosscope_worker.data.texts import Text
from crosscope_worker.dictionary.crosscoder import Crosscoder
from crosscope_worker.dictionary.keep import AboveThreshold
from crosscope_worker.models.activations import PairActivations
from crosscope_worker.models.norms import NormFilter
from crosscope_worker.phases import Following
from crosscope_worker.recipes import passes
from crosscope_worker.recipes.material import Material
from crosscope_worker.recipes.measure import Trained, measure_and_publish
from crosscope_worker.recipes.parts import PARTS, PLAN, PartTask, equip, load_part, measure_part, result
from crosscope_worker.recipes.publish import Provenance, manifest_of
from crosscope_worker.work import LostClaim, Workspace, silent

NAMES = ("web", "chat")
WORDS = ["the", "small", "red", "fox", "cat", "bird", "sees", "likes", "finds", "house", "one", "two", "and", "not"]
WINDOW = 60
"""Tokens of a window of texts here, so that a few texts make many parts."""


def small_windows(texts: Iterable[Text], activations: PairActivations) -> Iterator[list[Text]]:
    return windows_of(texts, activations, WINDOW // 8)


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
    monkeypatch.setattr(passes, "windows_of", small_windows)
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
        provenance = Provenance(pair=material.pair.manifest, layer=material.recipe.layer, recipe={})
        crosscoder.save(folder, manifest_of("theirs", crosscoder, provenance))

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
    elif one != one:
        assert other != other, where
    elif isinstance(one, float) and not exactly:
        assert math.isclose(one, other, rel_tol=rel, abs_tol=1e-12), (where, one, other)
    else:
        assert one == other, where


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
        patch.setattr(passes, "windows_of", small_windows)
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


def test_outliers_are_the_same_ones_in_every_part(material: Material, crosscoder: Crosscoder):
    """No training has said what an outlier is: parts are told what the first window says."""
    jobs = [in_job(material, f"outliers-{parts}", parts=parts) for parts in (1, 4)]
    strict = [replace(job, recipe=replace(job.recipe, tokens=replace(job.recipe.tokens, max_norm_ratio=1.05)))
              for job in jobs]  # fmt: skip
    found = [passed(job, crosscoder) for job in strict]
    assert found[0][1].state() == found[1][1].state()
    assert found[0][1].num_left_out > 20
    one, other = (tables(job, crosscoder, sums) for job, (sums, _) in zip(strict, found, strict=True))
    assert_same(one, other)
    assert one.metrics["outlier_share"] == other.metrics["outlier_share"]


def test_parts_merge_in_any_grouping(measured: Material, crosscoder: Crosscoder, whole: Callable[[], Analysis]):
    recipe = measured.recipe
    equipment = passes.Equipment(recipe, measured.activations, crosscoder)
    one, two, three, four, five = (load_part(equipment, folder_of(measured), part)[0] for part in range(5))
    four.merge(five)
    three.merge(four)
    two.merge(three)
    one.merge(two)
    assert_same(tables(measured, crosscoder, one), whole())


def test_two_sets_of_sums_are_in_memory_at_a_time(
    measured: Material, crosscoder: Crosscoder, monkeypatch: pytest.MonkeyPatch
):
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most = 0

    class Watched(accumulators.Moments):
        def __init__(self, *given: Any) -> None:
            nonlocal most
            super().__init__(*given)
            alive.add(self)
            most = max(most, len(alive))

    monkeypatch.setattr(accumulators, "Moments", Watched)
    passed(measured, crosscoder)[0].close()
    assert most == 2


def test_a_part_that_is_damaged_is_measured_again_and_said(
    measured: Material, crosscoder: Crosscoder, whole: Callable[[], Analysis], monkeypatch: pytest.MonkeyPatch
):
    asked: list[int] = []
    measure = passes.measure
    monkeypatch.setattr(passes, "measure", lambda *given: asked.append(given[3]) or measure(*given))
    told: list[str] = []

    def listen(_: str, __: float, message: str = "", **___: Any) -> None:
        told.append(message)

    for part, name in ((1, "entries"), (2, "sums.safetensors"), (4, "state.json")):
        path = result(folder_of(measured), part) / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 255
        path.write_bytes(content)
    (folder_of(measured) / ".partial-003-left").mkdir()
    found, _ = passed(measured, crosscoder, listen)
    assert asked == [1, 2, 4]
    said = [message for message in told if "is measured again" in message]
    assert [message[:13] for message in said] == ["part 2 of 5 o", "part 3 of 5 o", "part 5 of 5 o"]
    assert "entries is not what was written" in said[0]
    assert not list(folder_of(measured).glob(".partial-*"))
    assert_same(tables(measured, crosscoder, found), whole())


def test_what_was_measured_of_something_else_is_not_used(
    material: Material, crosscoder: Crosscoder, monkeypatch: pytest.MonkeyPatch
):
    asked: list[int] = []
    measure = passes.measure
    monkeypatch.setattr(passes, "measure", lambda *given: asked.append(given[3]) or measure(*given))
    job = in_job(material, "changed", parts=2)
    passed(job, crosscoder)[0].close()
    moved = replace(crosscoder, W_enc=crosscoder.W_enc + 0.01)
    passed(job, moved)[0].close()
    texts = folder_of(job) / PLAN / "texts.arrow"
    texts.write_bytes(texts.read_bytes()[:-9])
    told: list[str] = []
    passed(job, moved, lambda _, __, message="", **___: told.append(message))[0].close()
    assert asked == [0, 1] * 3
    assert any("measured again" in message and "texts.arrow is not what was written" in message for message in told)


ELSEWHERE = """
import json, sys, time
import torch
torch.set_num_threads(1)
from crosscope_worker.recipes.publish import Provenance, manifest_of
from crosscope_worker.recipes.parts import PartTask, measure_part

seen = 0

def stop_in_the_second(stage, fraction, message="", **_):
    global seen
    if message.endswith("measured") and task.part == 3:
        seen += 1
        if seen == 2:
            print("in the middle", flush=True)
            time.sleep(600)

for task in [PartTask(**each) for each in json.load(sys.stdin)]:
    measure_part(task, "cpu", stop_in_the_second)
    print("measured", task.part, flush=True)
"""


def test_a_part_whose_process_is_killed_is_measured_again_alone(
    material: Material, crosscoder: Crosscoder, whole: Callable[[], Analysis], monkeypatch: pytest.MonkeyPatch
):
    """A process loads models and weights, measures a part, and is killed in the middle of the next."""
    job = in_job(material, "killed", parts=5)
    runs: list[list[int]] = []

    def elsewhere(tasks: Sequence[PartTask], progress: Any) -> None:
        runs.append([task.part for task in tasks])
        given = json.dumps([asdict(task) for task in tasks if task.part >= 2])
        with subprocess.Popen(
            [sys.executable, "-c", ELSEWHERE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(given)
            process.stdin.close()
            lines = [process.stdout.readline().strip() for _ in range(2)]
            os.kill(process.pid, signal.SIGKILL)
        assert lines == ["measured 2", "in the middle"]
        assert process.returncode == -signal.SIGKILL
        raise LostClaim

    with pytest.raises(LostClaim):
        passed(job, crosscoder, runner=elsewhere)
    left = {path.name.split("-")[0] or path.name[:12] for path in folder_of(job).iterdir()}
    assert left == {"plan", "weights", "002", ".partial"}, "the part before is whole, the next is half"

    def in_turn(tasks: Sequence[PartTask], progress: Any) -> None:
        runs.append([task.part for task in tasks])
        equipment = equip(tasks[0])
        for task in reversed(tasks):
            measure_part(task, equipment=equipment)

    found, _ = passed(job, crosscoder, runner=in_turn)
    assert runs == [[0, 1, 2, 3, 4], [0, 1, 3, 4]]
    assert_same(tables(job, crosscoder, found), whole())


def test_a_job_that_is_tried_again_repeats_no_pass(
    material: Material, crosscoder: Crosscoder, monkeypatch: pytest.MonkeyPatch
):
    asked: list[int] = []
    measure = passes.measure
    monkeypatch.setattr(passes, "measure", lambda *given: asked.append(given[3]) or measure(*given))
    job = in_job(material, "again")
    fences = iter([LostClaim, None])

    def fence() -> None:
        if (error := next(fences)) is not None:
            raise error

    job = replace(job, workspace=replace(job.workspace, fence=fence))
    with pytest.raises(LostClaim):
        measure_and_publish(job, Trained(crosscoder))
    manifest = measure_and_publish(job, Trained(crosscoder))
    assert asked == [0], "one part for less than 2 million tokens, and it is kept"
    assert manifest.texts["web"]["read"] > 0
    assert manifest.analysis_tokens > 0
