"""A plan says what a job writes to the disk and what the demo's texts take, and warns where there is no room for it."""

import shutil
from pathlib import Path

import pytest

from crosscope_proto.recipe import parse_recipe
from crosscope_server.jobs.check import check
from crosscope_server.jobs.disk import DiskPlan, Written, no_room_for, of_downloads
from crosscope_server.jobs.hub import Download
from crosscope_server.jobs.plan import Planned, plan

WRITTEN = (
    Written("checkpoint", 3e9, "job"),
    Written("next checkpoint", 3e9, "training"),
    Written("cache", 1e9, "kept"),
    Written("parts", 2e9, "job", "3 parts", is_late=True),
    Written("version", 5e8, "kept", is_late=True),
)


def planned(recipe_yaml: str, home: Path) -> Planned:
    recipe = parse_recipe(recipe_yaml)
    return plan(recipe, check(recipe, home, after_others=True), home)


def free(monkeypatch: pytest.MonkeyPatch, folder: Path, size_bytes: int) -> None:
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=size_bytes))


def test_a_demo_pair_of_very_many_texts_is_said_to_be_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sysconf", lambda name: {"SC_PHYS_PAGES": 2_000_000, "SC_PAGE_SIZE": 4000}[name])
    free(monkeypatch, tmp_path, 4_500_000_000)
    for documents, num_warnings in ((6000, 0), (10_000_000, 1)):
        found = planned(f"kind: demo-pair\nname: a\ndocuments: {documents}\nconversations: 4000\n", tmp_path)
        assert {each.name: each.value for each in found.entries} == {
            "texts": documents + 4000,
            "memory of texts": (documents + 4000) * 4000,
        }
        # 135 bytes a document, 385 a conversation, and the tokenizer; two models stay, one is a checkpoint.
        texts = documents * 135 + 4000 * 385 + 280_000
        sizes = {each.name: each.value for each in found.disk.entries}
        assert sizes["texts"] == texts
        assert found.disk.kept_bytes == texts + sizes["models"]
        assert found.disk.peak_bytes == texts + 1.5 * sizes["models"]
        assert len(found.warnings) == num_warnings
    assert found.warnings == [
        "the texts take about 40.0 GB of memory, but this machine has 8.0 GB: give fewer documents or conversations"
    ]


def test_what_lies_there_at_one_time_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, tmp_path, 6_900_000_000)
    found = DiskPlan.of(WRITTEN, tmp_path)
    # Two checkpoints and the cache while training; one, the cache, the parts and the version afterwards.
    assert (found.peak_bytes, found.kept_bytes, found.fits) == (7_000_000_000, 1_500_000_000, False)
    [sentence] = found.too_little(tmp_path)
    assert sentence.startswith("the job takes up to 7.0 GB of disk, but 6.9 GB are free where ")
    without = DiskPlan.of([each for each in WRITTEN if each.name != "next checkpoint"], tmp_path)
    assert (without.peak_bytes, without.fits) == (6_500_000_000, True)
    assert list(without.too_little(tmp_path)) == []
    notes = {each.name: each.note for each in found.entries}
    assert notes["parts"] == "3 parts; removed once the job has succeeded"
    assert (notes["next checkpoint"], notes["version"]) == ("gone when training ends", "kept")


def test_what_is_not_known_leaves_open_whether_it_fits(tmp_path: Path) -> None:
    found = DiskPlan.of([Written("parts", None, "job", "nobody knows"), Written("version", 1.0, "kept")], tmp_path)
    assert (found.peak_bytes, found.fits) == (1, None)


def test_what_the_home_may_hold_counts(tmp_path: Path) -> None:
    written = [Written("version", 2e3, "kept")]
    assert list(DiskPlan.of(written, tmp_path, left_bytes=2000).too_little(tmp_path)) == []
    [sentence] = DiskPlan.of(written, tmp_path, left_bytes=1999).too_little(tmp_path)
    assert sentence.endswith("(CROSSCOPE_SERVER_HOME_GB): remove some with `crosscope gc`, or ask for less")


def test_downloads_count_where_the_cache_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))
    free(monkeypatch, tmp_path, 4_000_000_000)
    downloads = [Download("pair.base", "a/b", 5_000_000_000), Download("data.0.path", "c/d"), Download("path", "e/f")]
    assert [(each.name, each.size_bytes) for each in of_downloads(downloads, tmp_path)] == [
        ("download: pair.base", 5_000_000_000),
        ("download: path", None),
    ]
    assert list(no_room_for(downloads, tmp_path)) == []
    elsewhere = Path("/proc")  # another disk than that of the cache
    assert list(of_downloads(downloads, elsewhere)) == []
    [sentence] = no_room_for(downloads, elsewhere)
    assert sentence.startswith("the job downloads 5.0 GB, but 4.0 GB are free where the hub's cache ")


def test_jobs_without_a_training_say_what_they_write(tmp_path: Path) -> None:
    version = tmp_path / "crosscoders" / "c" / "versions" / "v1"
    version.mkdir(parents=True)
    (version / "latents.parquet").write_bytes(bytes(1234))
    (version.parent.parent / "CURRENT").write_text("v1\n")
    causal = planned("kind: causal\nname: c\n", tmp_path)
    assert [(each.name, each.value) for each in causal.disk.entries] == [("version", 1234)]
