"""What `submit --check` and `plan` say of a recipe, from small folders of files."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from fixtures_labelled import write_planted

from crosscope_proto.footprint import SPEEDS
from crosscope_proto.recipe import CrosscoderRecipe, Recipe, parse_recipe
from crosscope_proto.training_memory import COPY, needed
from crosscope_server.jobs.check import Findings, check
from crosscope_server.jobs.estimate import NO_WORKER
from crosscope_server.jobs.plan import plan
from crosscope_server.jobs.planning import named_target

RECIPE: dict[str, Any] = {
    "kind": "crosscoder",
    "name": "toy",
    "pair": {"name": "p", "base": "models/base", "chat": "models/chat"},
    "layer": 1,
    "data": [
        {"name": "web", "source": "jsonl", "path": "data/web.jsonl", "text_column": "text"},
        {"name": "chat", "source": "jsonl", "path": "data/chat.jsonl", "chat_column": "turns"},
        {"name": "table", "source": "parquet", "path": "data/*.parquet", "text_column": "body"},
    ],
    "tokens": {"held_out_every": 10},
    "crosscoder": {"variant": "batch_topk", "num_latents": 64, "k": 4},
    "training": {"batch_size": 100, "warmup_steps": 3, "dead_after_tokens": 1000, "buffer_tokens": 500},
}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    for name, layers in (("base", 4), ("chat", 4)):
        folder = home / "models" / name
        folder.mkdir(parents=True)
        config = {"num_hidden_layers": layers, "hidden_size": 32, "dtype": "bfloat16"}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "model.safetensors").write_bytes(bytes(1000))
    data = home / "data"
    data.mkdir()
    turns = [{"role": "user", "content": "x" * 196}, {"role": "assistant", "content": "y" * 187}]
    (data / "web.jsonl").write_text(100 * (json.dumps({"text": "z" * 396}) + "\n"))
    (data / "chat.jsonl").write_text(100 * (json.dumps({"turns": turns}) + "\n"))
    pq.write_table(pa.table({"body": ["w" * 396] * 100}), data / "table.parquet")
    return home


def changed(**parts: Any) -> CrosscoderRecipe:
    """RECIPE with parts of it replaced; a dict goes into what is there."""
    document = json.loads(json.dumps(RECIPE))
    for name, part in parts.items():
        if name.startswith("data_"):
            document["data"][int(name[5:])] |= part
        else:
            document[name] = document[name] | part if isinstance(part, dict) else part
    recipe = parse_recipe(yaml.safe_dump(document))
    assert isinstance(recipe, CrosscoderRecipe)
    return recipe


def said(found: Findings) -> str:
    return " | ".join(f"{each.field}: {each.sentence}" for each in found.violations)


def test_a_sound_recipe(home: Path) -> None:
    found = check(changed(), home)
    assert (said(found), found.warnings) == ("", [])
    planned = plan(changed(), found, home)
    assert planned.warnings == []
    value = {entry.name: entry.value for entry in planned.entries}
    # 100 texts of 396 characters a set: 100 tokens each, a tenth held out; 98.75 of a conversation with its roles.
    assert value["training tokens"] == pytest.approx(3 * 9000, rel=0.02)
    assert value["steps"] == pytest.approx(270, abs=3)
    assert value["warm-up"] == pytest.approx(3 / 270, rel=0.02)
    assert value["models"] == 2 * 1000 * 4 // 2  # bfloat16 files, loaded in float32
    recipe = changed()
    device = planned.devices[0]
    memory = {entry.name: entry.value for entry in device.memory}
    parts = needed(recipe.crosscoder, recipe.training, (32, 32), "cuda")  # here more than on a CPU
    assert value["copy of a checkpoint"] == parts.pop(COPY)
    assert memory == {"both models": 4000, **{name.partition(", ")[0]: size for name, size in parts.items()}}
    assert (device.name, device.fits) == (NO_WORKER, None)
    disk = {entry.name: entry.value for entry in planned.disk.entries}
    assert disk["version: weights"] == 4 * (2 * 64 * 64 + 64 + 64) + 8192
    assert "next checkpoint" not in disk  # 270 steps, and one checkpoint at their end
    soon = changed(training={"checkpoint_every": 200})
    disk = {entry.name: entry.value for entry in plan(soon, found, home).disk.entries}
    assert disk["checkpoint"] == disk["next checkpoint"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"layer": 4}, "layer: the base model has 4 layers, 0 to 3, but the recipe says 4"),
        ({"pair": {"chat": "./models/none"}}, "pair.chat: there is no folder "),
        ({"pair": {"base": "a/b/c"}}, "pair.base: there is no folder "),
        ({"pair": {"base": "data"}}, "pair.base: there is no config.json in "),
        ({"pair": {"revision_base": "main"}}, "pair.revision_base: "),
        ({"pair": {"base": None, "chat": None}}, "pair.name: there is no pair 'p' (there: none)"),
        ({"data_0": {"path": "data/web"}}, "data.0.path: no file matches data/web in "),
        ({"data_0": {"text_column": "body"}}, "data.0.text_column: there is no column 'body'; there are text"),
        ({"data_0": {"path": "data/chat.jsonl", "text_column": "turns"}}, "data.0.text_column: 'turns' holds list"),
        ({"data_1": {"chat_column": "text"}}, "data.1.chat_column: there is no column 'text'; there are turns"),
        ({"data_1": {"role_key": "from"}}, "data.1.role_key: 'from' must be a text in every message; the first"),
        ({"data_1": {"behaviours_column": "tags"}}, "data.1.behaviours_column: there is no column 'tags'"),
        ({"data_2": {"text_column": "text"}}, "data.2.text_column: there is no column 'text'; there are body"),
        ({"data_2": {"source": "jsonl"}}, "data.2.path: "),
        ({"data_2": {"source": "hub", "path": "a//b"}}, "data.2.path: 'a//b' is not a hub id; write owner/name"),
        ({"tokens": {"held_out_every": 101}}, "data.0.path: "),
    ],
)
def test_what_cannot_be_is_named_by_its_field(home: Path, change: dict[str, Any], sentence: str) -> None:
    found = check(changed(**change), home)
    assert sentence in said(found)


@pytest.mark.parametrize(
    ("training", "sentence"),
    [
        (
            {"max_steps": 20, "warmup_steps": 1000},
            "never reaches training.lr, training ends after 20",
        ),
        ({"warmup_steps": 1000}, "the learning rate never reaches training.lr, training ends after about 2"),
        ({"max_steps": 20, "warmup_steps": 10, "decay_share": 0.6}, "overlap"),
        ({"max_steps": 20, "sparsity_warmup_steps": 30, "k_start": 8}, "k never reaches its value"),
        ({"dead_after_tokens": 10_000_000}, "no latent can be found dead and revived, the training has about 2"),
        ({"max_steps": 5000}, "because the texts end before training.max_steps 5000"),
        ({"max_steps": 20, "log_every": 50}, "there will be no curves"),
    ],
)
def test_what_cannot_do_what_it_is_meant_for_is_warned_of(home: Path, training: dict[str, Any], sentence: str) -> None:
    recipe = changed(training=training)
    assert sentence in " | ".join(plan(recipe, check(recipe, home), home).warnings)


def test_nothing_is_said_of_what_the_processes_keep_for_themselves(home: Path) -> None:
    (home / "logs").mkdir()
    (home / "logs" / "server.log").write_text('{"secret": "here"}\n')
    for path in ("logs/server.log", "logs/none.log", "logs/*"):
        found = check(changed(data_0={"path": path}), home)
        assert found.violations == []
        assert [f"data.0.path is not checked: {path} lies outside the folders that the server may look into"] == [
            warning for warning in found.warnings if "data.0" in warning
        ]


def test_nothing_is_said_of_what_lies_elsewhere(home: Path, tmp_path: Path) -> None:
    """Neither that it exists nor that it does not, however it is reached."""
    private = tmp_path / "private"
    private.mkdir()
    (private / "web.jsonl").write_text('{"secret": "here"}\n')
    (home / "link").symlink_to(private)
    for path in (str(private / "web.jsonl"), str(private / "none.jsonl"), "../private/web.jsonl", "link/web.jsonl"):
        found = check(changed(data_0={"path": path}, pair={"base": str(private), "chat": str(private / "none")}), home)
        assert found.violations == []
        place = "lies outside the folders that the server may look into"
        assert found.warnings == [
            f"pair.base is not checked: {private} {place}",
            f"pair.chat is not checked: {private / 'none'} {place}",
            f"data.0.path is not checked: {path} {place}",
        ]
    found = check(changed(data_0={"path": str(private / "web.jsonl")}), home, [private])
    assert said(found).startswith("data.0.text_column: there is no column 'text'; there are secret")


def test_what_a_job_before_makes_need_not_be_there(home: Path) -> None:
    recipe = changed(pair={"base": None, "chat": None}, data_0={"path": "data/later.jsonl"})
    found = check(recipe, home, after_others=True)
    assert found.violations == []
    assert [warning.partition(" yet;")[0] for warning in found.warnings] == [
        "there is no pair 'p'",
        "data.0.path: no file matches data/later.jsonl",
    ]


def test_a_measured_speed_gives_the_time(home: Path) -> None:
    line = {"pair": "p", "layer": 1, "variant": "batch_topk", "num_latents": 64, "batch_size": 100}
    line |= {"dtype": "float32", "device": "cpu", "tokens_per_second": 900.0, "note": "bfloat16 is faster"}
    other = line | {"num_latents": 65, "tokens_per_second": 1.0}
    (home / SPEEDS).write_text("".join(json.dumps(each) + "\n" for each in (line, other)) + "cut sho")
    recipe = changed()
    planned = plan(recipe, check(recipe, home), home)
    assert planned.warnings == ["measured on cpu: bfloat16 is faster"]
    assert planned.devices[0].times[0].value == pytest.approx(30, rel=0.02)
    # A named device is not the one that was measured here.
    elsewhere = plan(recipe, check(recipe, home), home, [named_target("h100")])
    assert elsewhere.warnings == []
    assert elsewhere.devices[0].times[0].value is None  # these models say no vocabulary, so no size of a layer


def test_a_crosscoder_to_measure_must_be_there(home: Path) -> None:
    recipe = parse_recipe("{kind: causal, name: toy}")
    assert said(check(recipe, home)) == (
        "name: there is no crosscoder 'toy' (there: none); train it, or import it as published"
    )
    waiting = check(recipe, home, after_others=True)
    assert not waiting.violations
    assert waiting.warnings == ["there is no crosscoder 'toy' yet; a job before this one must make it"]
    (folder := home / "crosscoders" / "toy").mkdir(parents=True)
    (folder / "CURRENT").write_text("1\n")
    found = check(recipe, home)
    assert (found.violations, found.warnings) == ([], [])
    planned = plan(recipe, found, home)
    assert (planned.entries, planned.devices, planned.downloads, planned.warnings) == ([], (), [], [])
    assert [each.name for each in planned.disk.entries] == ["version"]


def test_a_recipe_that_labels_says_what_it_takes_at_most(home: Path) -> None:
    manifest = write_planted(home)

    def found(rest: str = "") -> Findings:
        return check(label_recipe(rest), home)

    def label_recipe(rest: str) -> Recipe:
        by = "by: endpoint, address: http://127.0.0.1:1, model: m, per_request: 4"
        return parse_recipe(f"{{kind: label, name: planted, explainer: {{{by}}}, {rest}}}")

    assert (found().violations, found().warnings) == ([], [])
    assert said(found("latents: {ids: [5]}")) == ""
    assert said(found("latents: {ids: [0, 6]}")) == "latents.ids: there is no latent 6: 'planted' has 6, 0 to 5"
    wrong = f"version: there is no version 'v9' of 'planted' (there: {manifest.version_id})"
    assert said(found("version: v9")) == wrong
    recipe = label_recipe("latents: {ids: [1, 2]}, examples: {shown: 3, held_out: 6, context: 2}")
    entries = plan(recipe, check(recipe, home), home).entries
    # A label, three requests for 12 texts and two for 6 markings, of 5 tokens each and 12 for marks.
    label, judgements = 400 + 3 * 17, 5 * (400 + 50) + 18 * 17
    assert {entry.name: entry.value for entry in entries} == {
        "latents": 2,
        "requests": 2 * 6,
        "prompt tokens": 2 * (label + judgements),
        "answer tokens": 2 * 6 * 400,
    }
    limited = found("latents: {ids: [1, 2]}, budget: {requests: 10}, examples: {held_out: 6}")
    (warning,) = limited.warnings
    assert warning.startswith("budget.requests 10: labelling 2 latents takes up to 12 requests; the job counts exactly")
