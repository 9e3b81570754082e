"""Backup and restore of a home, while nothing runs and while it is in use."""

import fcntl
import hashlib
import json
import sqlite3
import stat
import tarfile
from pathlib import Path

import pytest
from fixtures_artefacts import write_crosscoder
from fixtures_server import run_front

from crosscope import AsyncClient
from crosscope.cli import run
from crosscope_local.backup import BackupError, back_up, restore
from crosscope_local.preflight import HomeLock


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    write_crosscoder(folder, "demo", 8)
    for name in (
        "queue/appendonlydir/one.aof",
        "jobs/j1/recipe.yaml",
        "logs/server.log",
        "activations/k/a",
        "search/x",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "queue/lock").touch()
    (folder / "tokens.json").write_text("secret")
    (folder / "tokens.json").chmod(0o600)
    return folder


def tree(folder: Path) -> dict[str, str]:
    """Files and their checksums."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


MADE_AGAIN = {"logs/server.log", "activations/k/a", "search/x", "queue/lock", "supervisor.lock"}


def test_what_cannot_be_made_again_comes_back_as_it_was(home: Path, tmp_path: Path) -> None:
    made = back_up(home, tmp_path / "b.tar")
    assert stat.S_IMODE((tmp_path / "b.tar").stat().st_mode) == 0o600
    restored = restore(tmp_path / "b.tar", tmp_path / "other" / "home")
    expected = {name: digest for name, digest in tree(home).items() if name not in MADE_AGAIN}
    assert tree(tmp_path / "other" / "home") == expected
    assert made.num_files == restored.num_files == len(expected)
    assert (made.left_out, made.num_vanished) == ((), 0)
    assert stat.S_IMODE((tmp_path / "other/home/tokens.json").stat().st_mode) == 0o600


def test_while_crosscope_runs_the_queue_and_jobs_are_left_out_and_that_is_said(home: Path, tmp_path: Path) -> None:
    with HomeLock(home, "127.0.0.1:1"):
        made = back_up(home, tmp_path / "b.tar")
    assert made.left_out == ("queue", "jobs")
    restore(tmp_path / "b.tar", tmp_path / "new")
    assert {Path(name).parts[0] for name in tree(tmp_path / "new")} == {"crosscoders", "pairs", "tokens.json"} & {
        Path(name).parts[0] for name in tree(home)
    }


def test_a_queue_that_runs_without_a_supervisor_is_left_out_too(home: Path, tmp_path: Path) -> None:
    with (home / "queue/lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert back_up(home, tmp_path / "b.tar").left_out == ("queue", "jobs")


async def test_words_that_a_server_is_just_writing_are_whole(home: Path, tmp_path: Path) -> None:
    async with run_front(home=home) as front, AsyncClient(front.address) as client:
        crosscoder = await client.crosscoder("demo")
        await crosscoder.annotations.label(3, "bread")
        back_up(home, tmp_path / "b.tar")
    restore(tmp_path / "b.tar", tmp_path / "new")
    assert not list((tmp_path / "new").glob("annotations.sqlite3-*"))
    async with run_front(home=tmp_path / "new") as front, AsyncClient(front.address) as client:
        crosscoder = await client.crosscoder("demo")
        assert (await crosscoder.latent(3)).label == "bread"


def test_the_commands_say_what_they_did(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, new = str(tmp_path / "b.tar"), str(tmp_path / "new")
    assert run(["backup", file, "--home", str(home)]) == 0
    assert "files," in capsys.readouterr().out
    assert run(["restore", file, "--home", new, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_files"] > 3
    with pytest.raises(SystemExit) as ended:
        run(["restore", file, "--home", new])
    assert ended.value.code == 1
    assert "is not empty" in capsys.readouterr().err


def test_a_damaged_backup_changes_nothing(home: Path, tmp_path: Path) -> None:
    whole = tmp_path / "b.tar"
    back_up(home, whole)
    data = whole.read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[: len(data) // 2])
    at = data.index(b"secret")
    (tmp_path / "changed.tar").write_bytes(data[:at] + b"SECRET" + data[at + 6 :])
    (tmp_path / "none.tar").write_bytes(b"no backup")
    for name, said in (
        ("cut", "whole|lacks|backup.json"),
        ("changed", "tokens.json.*damaged"),
        ("none", "no whole backup"),
    ):
        with pytest.raises(BackupError, match=said):
            restore(tmp_path / f"{name}.tar", tmp_path / "new")
    assert not list(tmp_path.glob("*new*"))


def test_a_member_that_points_elsewhere_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        info = tarfile.TarInfo("../evil")
        tar.addfile(info)
    with pytest.raises(BackupError):
        restore(tmp_path / "evil.tar", tmp_path / "new")
    assert not (tmp_path / "evil").exists()


def test_nothing_is_overwritten(home: Path, tmp_path: Path) -> None:
    back_up(home, tmp_path / "b.tar")
    with pytest.raises(BackupError, match="exists"):
        back_up(home, tmp_path / "b.tar")
    with pytest.raises(BackupError, match="not empty"):
        restore(tmp_path / "b.tar", home)
    with pytest.raises(BackupError, match="no home"):
        back_up(tmp_path / "nowhere", tmp_path / "c.tar")


def test_a_backup_of_a_newer_crosscope_is_refused_by_its_version(home: Path, tmp_path: Path) -> None:
    back_up(home, tmp_path / "b.tar")
    with tarfile.open(tmp_path / "b.tar") as tar:
        member = tar.extractfile("backup.json")
        assert member is not None
        facts = json.loads(member.read()) | {"schema_version": 99, "version": "9.0"}
    (tmp_path / "backup.json").write_text(json.dumps(facts))
    with tarfile.open(tmp_path / "newer.tar", "w") as tar:
        tar.add(tmp_path / "backup.json", "backup.json")
    with pytest.raises(BackupError, match=r"9\.0, which is newer"):
        restore(tmp_path / "newer.tar", tmp_path / "new")


def test_the_copy_of_a_database_is_a_database(home: Path, tmp_path: Path) -> None:
    sqlite3.connect(home / "some.sqlite3").executescript("create table t (a); insert into t values (7)").close()
    back_up(home, tmp_path / "b.tar")
    restore(tmp_path / "b.tar", tmp_path / "new")
    assert sqlite3.connect(tmp_path / "new/some.sqlite3").execute("select a from t").fetchall() == [(7,)]
