"""`crosscope store`, `gc --store` and `doctor --store` on a folder, through the command line."""

import json
import shutil
import time
from pathlib import Path

import pytest
from fixtures_artefacts import write_crosscoder

from crosscope.cli import run as run_command
from crosscope_local.doctor import Verdict, _store
from crosscope_store.entries import stamp


def run(words: list[str]) -> int:
    """The exit code of a command."""
    try:
        return run_command(words)
    except SystemExit as end:
        return int(end.code or 0)


@pytest.fixture
def url(tmp_path: Path) -> str:
    (tmp_path / "shared").mkdir()
    return (tmp_path / "shared").as_uri()


def test_a_home_is_pushed_and_pulled(tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = write_crosscoder(tmp_path / "one", "demo", 64)
    assert run(["store", "push", "--home", str(tmp_path / "one"), "--store", url, "--json"]) == 0
    moved = json.loads(capsys.readouterr().out)["moved"]
    assert [(each["kind"], each["what"]) for each in moved] == [("pairs", "published"), ("crosscoders", "published")]
    assert moved[1]["id"] == manifest.version_id
    assert run(["store", "pull", "--home", str(tmp_path / "two"), "--store", url]) == 0
    assert (tmp_path / "two/crosscoders/demo/versions" / manifest.version_id / "latents.parquet").exists()
    assert (tmp_path / "two/crosscoders/demo/CURRENT").read_text().strip() == manifest.version_id
    capsys.readouterr()
    assert run(["store", "push", "--home", str(tmp_path / "two"), "--store", url]) == 0
    assert "There is nothing to move." in capsys.readouterr().out


def test_what_is_wrong_is_a_sentence(tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    home = ["--home", str(tmp_path / "one")]
    (tmp_path / "one").mkdir()
    assert run(["store", "push", *home]) == 2
    assert "no store is named" in capsys.readouterr().out
    assert run(["up", *home, "--store", "nonsense://x"]) == 2
    assert "nonsense:// is no kind of store" in capsys.readouterr().err
    write_crosscoder(tmp_path / "one", "demo", 64)
    shutil.rmtree(tmp_path / "shared")
    assert run(["store", "push", *home, "--store", url]) == 1
    assert "does not answer" in capsys.readouterr().out
    assert _store(url).verdict is Verdict.BAD
    (tmp_path / "shared").mkdir()
    assert _store(url).verdict is Verdict.OK


def test_gc_removes_what_an_upload_left_that_died(tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    left = tmp_path / "shared/files/looks/first" / f"{stamp(time.time() - 90_000)}-dead"
    left.mkdir(parents=True)
    (left / "texts.parquet").write_bytes(b"twelve bytes")
    (tmp_path / "one").mkdir()
    given = ["gc", "--home", str(tmp_path / "one"), "--store", url, "--json"]
    assert run([*given, "--dry-run"]) == 0
    found = json.loads(capsys.readouterr().out)["garbage"]
    assert [(each["kind"], each["bytes"]) for each in found] == [("uploads to the store that died", 12)]
    assert run(given) == 0
    assert not (left / "texts.parquet").exists()
