"""Another author's crosscoder, from its own files to a published version that names its origin."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from crosscope_proto.recipe import PublishedRecipe, RecipeError, parse_recipe
from crosscope_proto.roots import RootError, Roots
from crosscope_worker.dictionary.crosscoder import CrosscoderError
from crosscope_worker.dictionary.load import load_crosscoder
from crosscope_worker.recipes.published import find_weights, make_published
from crosscope_worker.work import Workspace, silent

D_MODEL, NUM_LATENTS = 32, 48
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    rows = [{"text": " ".join(["the", "red", "fox", "sees", "a", "cat"][: 2 + i % 5])} for i in range(100)]
    (tmp_path / "web.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def write_published(folder: Path, d_model: int = D_MODEL) -> Path:
    """Writes a crosscoder as the forks of dictionary_learning write it to the hub."""
    folder.mkdir(parents=True)
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    save_file(
        {
            "encoder.weight": normal(2, d_model, NUM_LATENTS),
            "encoder.bias": normal(NUM_LATENTS),
            "decoder.weight": normal(2, NUM_LATENTS, d_model),
            "decoder.bias": normal(2, d_model),
        },
        folder / "model.safetensors",
    )
    (folder / "config.json").write_text(json.dumps({"activation_dim": d_model, "dict_size": NUM_LATENTS}))
    return folder


def cached_snapshot(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the hub's own cache, the only copy, keeps the files of someone/crosscoder."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = cache / "models--someone--crosscoder"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return repository / "snapshots" / COMMIT


@pytest.fixture
def recipe_of(tiny_pair_folder: Path) -> Callable[[str], PublishedRecipe]:
    def parsed(path: str, more: str = "") -> PublishedRecipe:
        recipe = parse_recipe(f"""{more}
kind: published
name: theirs
pair: {{name: tiny, base: {tiny_pair_folder / "base"}, chat: {tiny_pair_folder / "chat"}}}
layer: 1
path: {path}
data: [{{name: web, source: jsonl, path: web.jsonl, text_column: text}}]
tokens: {{held_out_every: 2}}
analysis: {{max_tokens: 400, num_shards: 2, uselessness_steps: 3}}
""")
        assert isinstance(recipe, PublishedRecipe)
        return recipe

    return parsed


@pytest.fixture
def workspace(tiny_pair_folder: Path) -> Callable[[Path], Workspace]:
    def made(home: Path) -> Workspace:
        (folder := home / "jobs" / "job-1").mkdir(parents=True, exist_ok=True)
        return Workspace(home=home, folder=folder, fence=lambda: None, data_roots=(tiny_pair_folder,))

    return made


def test_a_published_crosscoder_is_measured_and_published_as_it_is(
    home: Path, recipe_of: Callable, workspace: Callable
):
    write_published(home / "theirs")
    manifest = make_published(recipe_of("theirs"), workspace(home), silent)
    folder = home / "crosscoders" / "theirs" / "versions" / manifest.version_id
    theirs, ours = load_crosscoder(home / "theirs"), load_crosscoder(folder)
    x = torch.randn(7, 2 * D_MODEL)
    assert torch.equal(ours.encode(x), theirs.encode(x))
    assert torch.equal(ours.decode(ours.encode(x)), theirs.decode(theirs.encode(x)))
    assert (manifest.variant, manifest.training_tokens, manifest.layer) == ("l1", 0, 1)
    assert manifest.recipe["path"] == "theirs"
    assert manifest.analysis_tokens > 0
    assert {"fve_base", "ce_recovered_chat"} <= manifest.metrics.keys()
    assert pq.read_table(folder / "latents.parquet").num_rows == NUM_LATENTS
    assert pq.read_table(folder / "metrics.parquet").num_rows == 0
    again = make_published(recipe_of("theirs"), workspace(home), silent)
    assert again.version_id == manifest.version_id, "an attempt that comes late publishes nothing twice"


def test_a_top_k_crosscoder_whose_model_0_is_chat(home: Path, recipe_of: Callable, workspace: Callable):
    folder = write_published(home / "theirs")
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"k": 4}))
    said: list[str] = []

    def progress(stage: str, fraction: float, message: str = "", **more: Any) -> None:
        said.append(message)

    manifest = make_published(recipe_of("theirs", "swap: true"), workspace(home), progress)
    assert (manifest.variant, manifest.token_k, manifest.metrics["l0"]) == ("topk", 4, 4.0)
    note = "No configuration says an activation rule, but k is 4: the 4 largest of each token are kept."
    assert manifest.notes == (note,)
    assert f"note: {note}" in said
    ours = load_crosscoder(home / "crosscoders" / "theirs" / "versions" / manifest.version_id)
    theirs = load_crosscoder(folder)
    x = torch.randn(7, 2, D_MODEL)
    torch.testing.assert_close(ours.scaled(x), theirs.scaled(x.flip(1)))
    assert ours.notes == (note,)


def test_a_dictionary_of_chat_alone_says_nothing_of_base(home: Path, recipe_of: Callable, workspace: Callable):
    draw = torch.Generator().manual_seed(0)
    (home / "theirs").mkdir()
    save_file(
        {
            "encoder.weight": torch.randn(NUM_LATENTS, D_MODEL, generator=draw),
            "encoder.bias": torch.zeros(NUM_LATENTS),
            "decoder.weight": torch.randn(D_MODEL, NUM_LATENTS, generator=draw) / D_MODEL**0.5,
            "b_dec": torch.zeros(D_MODEL),
            "k": torch.tensor(5),
        },
        home / "theirs" / "model.safetensors",
    )
    (home / "theirs" / "config.json").write_text(json.dumps({"dict_class": "AutoEncoderTopK"}))
    manifest = make_published(recipe_of("theirs", "reads: chat"), workspace(home), silent)
    assert (manifest.variant, manifest.metrics["l0"]) == ("chat_sae", 5.0)
    assert {"fve_chat", "ce_recovered_chat", "kl_spliced_chat"} <= manifest.metrics.keys()
    assert not {name for name in manifest.metrics if "base" in name or "patch" in name}
    folder = home / "crosscoders" / "theirs" / "versions" / manifest.version_id
    table = pq.read_table(folder / "latents.parquet").to_pydict()
    living = [j for j in range(NUM_LATENTS) if table["num_active"][j]]
    assert len(living) > 5
    for name in ("rel_norm", "nu_err", "nu_rec", "beta_err_base", "base_uselessness_single"):
        assert all(math.isnan(table[name][j]) for j in living), name
    assert all(math.isfinite(table[name][j]) for name in ("beta_act_base", "beta_err_chat") for j in living)
    assert set(table["latent_class"]) <= {"other", "dead"}
    assert all(norm == 0 for norm in table["norm_base"])


def test_a_crosscoder_of_other_widths_is_refused(home: Path, recipe_of: Callable, workspace: Callable):
    write_published(home / "theirs", d_model=8)
    with pytest.raises(
        CrosscoderError, match="reads models of width 8 and 8, but those of the pair tiny have 32 and 32"
    ):
        make_published(recipe_of("theirs"), workspace(home), silent)
    assert not (home / "crosscoders").exists()


def test_a_hub_id_is_taken_from_the_hubs_own_cache(
    home: Path, recipe_of: Callable, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
):
    snapshot = cached_snapshot(tmp_path_factory.mktemp("hub"), monkeypatch)
    written = write_published(snapshot)
    assert find_weights(recipe_of("someone/crosscoder"), home, Roots([home])) == written


def test_a_hub_id_may_name_a_folder_inside_the_repository(
    home: Path, recipe_of: Callable, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
):
    snapshot = cached_snapshot(tmp_path_factory.mktemp("hub"), monkeypatch)
    written = write_published(snapshot / "blocks.14" / "run")
    assert find_weights(recipe_of("someone/crosscoder/blocks.14/run"), home, Roots([home])) == written
    assert find_weights(recipe_of("someone/crosscoder/blocks.14/run/"), home, Roots([home])) == written
    with pytest.raises(CrosscoderError, match=r"crosscoder at the hub has no folder blocks\.15/run with weights"):
        find_weights(recipe_of("someone/crosscoder/blocks.15/run"), home, Roots([home]))


@pytest.mark.parametrize(
    ("path", "repository", "prefix"), [("someone/cc", "someone/cc", ""), ("someone/cc/a/b", "someone/cc", "a/b/")]
)
def test_only_the_named_folder_is_asked_of_the_hub(
    home: Path, recipe_of: Callable, monkeypatch: pytest.MonkeyPatch, path: str, repository: str, prefix: str
):
    asked: list[Any] = []

    def download(*arguments: str, **options: Any) -> str:
        asked.append((arguments, options))
        (home / "snapshot" / prefix).mkdir(parents=True)
        return str(home / "snapshot")

    monkeypatch.setattr("crosscope_worker.recipes.published.snapshot_download", download)
    find_weights(recipe_of(path), home, Roots([home]))
    kinds = "*.json", "*.yaml", "*.safetensors", "*.pt", "*.pth", "pytorch_model*.bin"
    patterns = [f"{prefix}{pattern}" for pattern in kinds]
    assert asked == [((repository,), {"revision": None, "allow_patterns": patterns})]


def test_a_folder_of_this_machine_has_no_revision(home: Path, recipe_of: Callable):
    write_published(home / "theirs")
    with pytest.raises(CrosscoderError, match="theirs is on this machine and has no revisions; drop revision"):
        find_weights(replace(recipe_of("theirs"), revision="main"), home, Roots([home]))


@pytest.mark.parametrize(
    ("path", "says"),
    [("{home}/theirs", "there is no crosscoder /.*/theirs"), ("./theirs", "there is no crosscoder .*theirs")],
)
def test_a_crosscoder_that_is_not_there_is_named(home: Path, recipe_of: Callable, path: str, says: str):
    with pytest.raises(CrosscoderError, match=says):
        find_weights(recipe_of(path.format(home=home)), home, Roots([home]))


def test_the_home_of_an_unknown_user_is_no_path(home: Path, recipe_of: Callable):
    with pytest.raises(RootError, match="'~nobody-of-this-name/theirs' is no path"):
        find_weights(recipe_of("~nobody-of-this-name/theirs"), home, Roots([home]))


@pytest.mark.parametrize("path", ["/nowhere/theirs", "../theirs", "link"])
def test_a_crosscoder_outside_the_roots_is_not_read_and_nothing_is_said_about_it(
    home: Path, recipe_of: Callable, workspace: Callable, tmp_path_factory: pytest.TempPathFactory, path: str
):
    """The same sentence whether there is such a file or not."""
    outside = tmp_path_factory.mktemp("outside")
    write_published(outside / "theirs")
    (home / "link").symlink_to(outside / "theirs")
    with pytest.raises(RootError, match=r"lies outside the folders that jobs may read.*CROSSCOPE_WORKER_DATA_ROOTS"):
        make_published(recipe_of(path), workspace(home), silent)


def test_neither_here_nor_at_the_hub(home: Path, recipe_of: Callable, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CrosscoderError, match="and the hub gave no someone/nothing: "):
        find_weights(recipe_of("someone/nothing"), home, Roots([home]))


def test_one_model_has_nothing_to_swap():
    with pytest.raises(RecipeError, match="swap exchanges two models, but reads says chat alone"):
        parse_recipe(
            "{kind: published, name: x, pair: {name: p}, layer: 1, path: x, swap: true, reads: chat,"
            " data: [{name: web, source: text, path: x}]}"
        )


def test_a_recipe_of_one_takes_no_training(recipe_of: Callable):
    with pytest.raises(RecipeError) as refused:
        parse_recipe(
            "{kind: published, name: x, pair: {name: p}, layer: 1, path: x, training: {lr: 1},"
            " data: [{name: web, source: text, path: x}, {name: web, source: text, path: y}]}"
        )
    assert refused.value.violations == [("training", "no such key; check its spelling")]
