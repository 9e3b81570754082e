"""A checkpoint that is damaged on the disk is reported before any training."""

import gc
import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures_training import PlantedSource, make_recipe, run

from crosscope_worker.training.checkpoint import SHARED, STATE, Checkpoint, CheckpointError, load_checkpoint
from crosscope_worker.training.checkpoint import save_checkpoint as save

RECIPE = make_recipe(checkpoint_every=4)
ROWS, STREAM, SOURCE = "latents-0-24.safetensors", "stream-0.safetensors", "stream-0.json"


@pytest.fixture
def newest(tmp_path: Path) -> Path:
    """The only checkpoint of a training that was stopped at its tenth step."""

    def stop(*_: Any, step: int = 0, **__: Any) -> None:
        if step == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(RECIPE, tmp_path, progress=stop)
    (folder,) = tmp_path.iterdir()
    return folder


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    path.write_bytes(b"\xff" * 400)


def without(key: str) -> Callable[[Path], None]:
    def remove(path: Path) -> None:
        document = json.loads(path.read_text())
        del document[key]
        path.write_text(json.dumps(document))

    return remove


def a_list(path: Path) -> None:
    path.write_text("[1, 2]")


DAMAGES = [
    (ROWS, cut_short),
    (ROWS, emptied),
    (ROWS, garbage),
    (ROWS, Path.unlink),
    (SHARED, cut_short),
    (STREAM, garbage),
    (STREAM, Path.unlink),
    (SOURCE, cut_short),
    (SOURCE, Path.unlink),
    (STATE, cut_short),
    (STATE, emptied),
    (STATE, garbage),
    (STATE, a_list),
    (STATE, Path.unlink),
    (STATE, without("step")),
    (STATE, without("counters")),
    (STATE, without("latents")),
    (STATE, without("streams")),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_a_damaged_checkpoint_is_named(newest: Path, name: str, damage: Callable[[Path], None]):
    damage(newest / name)
    read = PlantedSource()
    with pytest.raises(CheckpointError, match=rf"{newest.name}/{name} .*(cut short|damaged|missing|lacks)"):
        run(RECIPE, newest.parent, read)
    assert read.next == 0
    assert newest.is_dir(), "nothing is thrown away"


def test_the_newest_whole_checkpoint_is_taken(tmp_path: Path):
    for step in (9, 10):
        save(
            tmp_path / f"of-{step}",
            Checkpoint(step, {"a": torch.full((2,), float(step))}, recipe={}, counters={}, streams={}),
        )
    for step in (9, 10):
        (folder,) = (tmp_path / f"of-{step}").iterdir()
        folder.rename(tmp_path / folder.name)
    (tmp_path / ".partial-step-000000011").mkdir()
    found = load_checkpoint(tmp_path, {})
    assert found is not None
    assert found.step == 10
    assert found.tensors(frozenset(), slice(0, 0))["a"].tolist() == [10, 10]


def test_a_finished_training_is_not_written_again(tmp_path: Path):
    recipe = make_recipe(checkpoint_every=40)
    first = run(recipe, tmp_path)
    (end,) = tmp_path.iterdir()
    assert end.name == "step-000000063"
    written = (end / ROWS).stat()
    again = run(recipe, tmp_path)
    assert torch.equal(again.crosscoder.W_dec, first.crosscoder.W_dec)
    assert list(tmp_path.iterdir()) == [end]
    assert ((end / ROWS).stat().st_ino, (end / ROWS).stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)


def test_a_full_disk_is_reported_and_leaves_the_previous_checkpoint(tmp_path: Path):
    save(tmp_path, Checkpoint(1, {"a": torch.ones(2)}, recipe={}, counters={}, streams={}))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"no room for the checkpoint of step 2 in .*: it takes 0\.4 MB, and .* free"):
            save(tmp_path, Checkpoint(2, {"a": torch.zeros(100_000)}, recipe={}, counters={}, streams={}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not say which files are mapped")
def test_a_resumed_training_gives_the_checkpoint_up(newest: Path):
    seen: list[bool] = []

    def look(*_: object, step: int = 0, **__: object) -> None:
        if step == 9:
            gc.collect()
            seen.append(newest.name in Path("/proc/self/maps").read_text())

    run(RECIPE, newest.parent, progress=look)
    assert seen == [False]


@pytest.mark.parametrize(
    ("made_with", "says"),
    [
        ({"training": {"lr": 1}}, "another version of crosscope made it, without training.new"),
        ({"training": {"lr": 1, "new": 2, "old": 3}}, "another version of crosscope made it, with training.old"),
    ],
)
def test_a_checkpoint_of_another_version_says_so(tmp_path: Path, made_with: dict[str, Any], says: str):
    save(tmp_path, Checkpoint(1, {"a": torch.ones(2)}, made_with, counters={}, streams={}))
    with pytest.raises(CheckpointError, match=says):
        load_checkpoint(tmp_path, {"training": {"lr": 1, "new": 2}})


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([{"path": "a"}], r"another version of crosscope made it, without data\[0\]\.format"),
        ([{"path": "b", "format": "x"}], r"data\[0\]\.path was 'b' and is 'a'"),
        ([], r"data was \[\] and is"),
    ],
)
def test_a_data_set_that_differs_is_named(tmp_path: Path, data: list[dict[str, str]], says: str):
    save(tmp_path, Checkpoint(1, {"a": torch.ones(2)}, {"data": data}, counters={}, streams={}))
    with pytest.raises(CheckpointError, match=says):
        load_checkpoint(tmp_path, {"data": [{"path": "a", "format": "x"}]})


def test_a_checkpoint_of_another_recipe_is_refused_and_stays(newest: Path):
    other = make_recipe({"variant": "batch_topk", "num_latents": 32, "k": 2}, checkpoint_every=4)
    with pytest.raises(CheckpointError, match=rf"{newest.name} was .* crosscoder.num_latents was 24 and is 32"):
        run(other, newest.parent)
    assert newest.is_dir()


def test_null_fields_of_other_dictionaries_do_not_matter(tmp_path: Path):
    before = {"crosscoder": {"variant": "diff_sae", "k": 2, "mu": None, "cross_term": 0.0}}
    save(tmp_path, Checkpoint(1, {"a": torch.ones(2)}, before, counters={}, streams={}))
    assert load_checkpoint(tmp_path, {"crosscoder": {"variant": "diff_sae", "k": 2}}) is not None
    save(tmp_path / "b", Checkpoint(1, {}, {"crosscoder": {"mu": 1.0}}, counters={}, streams={}))
    with pytest.raises(CheckpointError, match=r"with crosscoder\.mu"):
        load_checkpoint(tmp_path / "b", {"crosscoder": {}})
