"""A plan says what the demo's texts take, and warns where disk or memory cannot hold it."""

import shutil
from pathlib import Path

import pytest

from crosscope_proto.recipe import parse_recipe
from crosscope_server.jobs.check import check
from crosscope_server.jobs.estimate import Entry
from crosscope_server.jobs.plan import plan
from crosscope_server.jobs.room import too_little


def test_a_demo_pair_of_very_many_texts_is_said_to_be_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sysconf", lambda name: {"SC_PHYS_PAGES": 2_000_000, "SC_PAGE_SIZE": 4000}[name])
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=4_500_000_000))
    for documents, num_warnings in ((6000, 0), (10_000_000, 1)):
        recipe = parse_recipe(f"kind: demo-pair\nname: a\ndocuments: {documents}\nconversations: 4000\n")
        planned = plan(recipe, check(recipe, tmp_path), tmp_path)
        assert {each.name: each.value for each in planned.entries} == {
            "texts": documents + 4000,
            "memory of texts": (documents + 4000) * 4000,
            "files of texts": (documents + 4000) * 230,
        }
        assert len(planned.warnings) == num_warnings
    assert planned.warnings == [
        "the texts take about 40.0 GB of memory, but this machine has 8.0 GB: give fewer documents or conversations"
    ]


def test_all_that_lies_on_the_disk_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=2_500_000_000))
    entries = [
        Entry("version", 1e9, "bytes", "disk, kept"),
        Entry("cache", 2e9, "bytes", "disk, at most"),
        Entry("models", 9e9, "bytes", "memory of both"),
        Entry("checkpoint", None, "bytes", "the widths are not known"),
    ]
    [sentence] = too_little(entries, tmp_path)
    assert sentence.startswith("the job takes up to 3.0 GB of disk, but 2.5 GB are free")
    assert list(too_little(entries[:1], tmp_path)) == []


def test_what_the_home_may_hold_counts(tmp_path: Path) -> None:
    entries = [Entry("version", 2e3, "bytes", "disk, kept")]
    assert list(too_little(entries, tmp_path, left_bytes=2000)) == []
    [sentence] = too_little(entries, tmp_path, left_bytes=1999)
    assert sentence.endswith("(CROSSCOPE_SERVER_HOME_GB): remove some with `crosscope gc`, or ask for less")
