"""Backups: what is in an archive, and which archives are not restored. That a restored home works is tests/e2e's."""

import io
import json
import os
import sqlite3
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from crosscope.cli import run
from crosscope_local.backup import BackupError, back_up, restore
from crosscope_local.redis import arguments, find_binary


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with something of every kind."""
    home = tmp_path / "home"
    files = {
        "pairs/p/pair.json": "{}",
        "crosscoders/c/CURRENT": "v2",
        "crosscoders/c/versions/v2/crosscoder.json": "{}",
        "jobs/1/log.jsonl": "ended\n",
        "jobs/1/checkpoints/step-1/weights": "x" * 500,
        "activations/key/shard": "x" * 700,
        "search/c/v2-abc.arrow": "x" * 30,
        "logs/server.log": "x" * 20,
        "something-new": "that this test did not know",
        "supervisor.lock": "",
        "store.lock": "",
    }
    for name, text in files.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)
    (home / "secret").write_text("hush")
    (home / "secret").chmod(0o600)
    with closing(sqlite3.connect(home / "annotations.sqlite3")) as words:
        words.execute("PRAGMA journal_mode=WAL")
        words.execute("CREATE TABLE labels (text)")
        words.commit()
    return home


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tar.xz"])
def test_what_counts_comes_back_and_what_is_made_again_is_counted(home: Path, tmp_path: Path, name: str) -> None:
    copied = back_up(home, tmp_path / name)
    assert copied.left_out == {"activations": 700, "checkpoints": 500, "search": 30, "logs": 20}
    assert restore(tmp_path / name, tmp_path / "new") == copied
    expected = {
        name: data
        for name, data in tree(home).items()
        if name.split("/")[0] not in ("activations", "search", "logs", "supervisor.lock", "store.lock")
        and "checkpoints" not in name
        and not name.startswith("annotations")
    }
    found = tree(tmp_path / "new")
    assert {name: data for name, data in found.items() if name != "annotations.sqlite3"} == expected
    assert copied.files == len(found)
    assert (tmp_path / "new/secret").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / name).stat().st_mode & 0o777 == 0o600  # it holds tokens
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, "home", "new"]


def test_words_are_whole_while_somebody_writes_them(home: Path, tmp_path: Path) -> None:
    stop = threading.Event()

    def write() -> None:
        with closing(sqlite3.connect(home / "annotations.sqlite3", isolation_level=None)) as words:
            number = 0
            while not stop.is_set():
                words.execute("BEGIN")
                words.executemany("INSERT INTO labels VALUES (?)", [(f"{number} {part}",) for part in range(10)])
                words.execute("COMMIT")
                number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for each in range(5):
            back_up(home, tmp_path / f"{each}.tar")
            restore(tmp_path / f"{each}.tar", tmp_path / f"home{each}")
            with closing(sqlite3.connect(tmp_path / f"home{each}" / "annotations.sqlite3")) as words:
                assert words.execute("PRAGMA integrity_check").fetchone() == ("ok",)
                assert words.execute("SELECT count(*) FROM labels").fetchone()[0] % 10 == 0
    finally:
        stop.set()
        writer.join()


@pytest.fixture
def queue(home: Path, tmp_path: Path) -> Iterator[Path]:
    """A running queue of the home; its socket."""
    (home / "queue").mkdir()
    socket = tmp_path / "q.sock"
    command = [str(find_binary()), *arguments("queue", home / "queue", socket)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        yield socket
        server.terminate()


def test_the_queue_is_copied_while_it_writes_and_rewrites(home: Path, queue: Path, tmp_path: Path) -> None:
    redis = pytest.importorskip("redis")
    client = redis.Redis(unix_socket_path=str(queue), retry=redis.retry.Retry(redis.backoff.ConstantBackoff(0.1), 50))
    for number in range(200):
        client.set(f"job:{number}", "x" * 100)
    client.bgrewriteaof()
    for number in range(200, 400):
        client.set(f"job:{number}", "x" * 100)
    back_up(home, tmp_path / "a.tar")
    restore(tmp_path / "a.tar", tmp_path / "new")
    socket = tmp_path / "new.sock"
    command = [str(find_binary()), *arguments("queue", tmp_path / "new/queue", socket)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        again = redis.Redis(
            unix_socket_path=str(socket), retry=redis.retry.Retry(redis.backoff.ConstantBackoff(0.1), 50)
        )
        assert again.dbsize() == 400
        server.terminate()


def cut_short(archive: Path) -> None:
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])


def changed(archive: Path) -> None:
    archive.write_bytes(archive.read_bytes().replace(b"that this test did not know", b"that somebody else has put "))


def of_others(archive: Path) -> None:
    with tarfile.open(archive, "w") as tar:
        tar.addfile(tarfile.TarInfo("file"), io.BytesIO(b""))


def of_the_future(archive: Path) -> None:
    with tarfile.open(archive, "w") as tar:
        data = json.dumps({"schema": 99}).encode()
        info = tarfile.TarInfo("crosscope-backup.json")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))


def that_climbs(archive: Path) -> None:
    with tarfile.open(archive, "w") as tar:
        tar.addfile(tarfile.TarInfo("../outside"), io.BytesIO(b""))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut_short, "its list of files is missing|is damaged"),
        (changed, "something-new is not what was put in"),
        (of_others, "its list of files is missing"),
        (of_the_future, "has the layout 99, and this crosscope reads 1"),
        (that_climbs, "is damaged or no backup of crosscope"),
        (lambda archive: archive.write_bytes(b"no tar"), "is damaged or no backup of crosscope"),
    ],
)
def test_a_wrong_archive_is_refused_and_leaves_nothing(
    home: Path, tmp_path: Path, damage: Callable[[Path], object], says: str
) -> None:
    archive = tmp_path / "a.tar"
    back_up(home, archive)
    damage(archive)
    with pytest.raises(BackupError, match=says):
        restore(archive, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "home"]


def damaged_in_the_middle(archive: Path) -> None:
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 0xFF
    archive.write_bytes(bytes(data))


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tar.xz"])
def test_a_compressed_archive_that_is_damaged_is_refused(home: Path, tmp_path: Path, name: str) -> None:
    (home / "noise").write_bytes(os.urandom(100_000))
    back_up(home, tmp_path / name)
    damaged_in_the_middle(tmp_path / name)
    with pytest.raises(BackupError, match="is damaged"):
        restore(tmp_path / name, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_links_come_back_as_links_and_those_that_lead_out_are_named(home: Path, tmp_path: Path) -> None:
    big = tmp_path / "big-disk"
    (big / "versions/v1").mkdir(parents=True)
    (big / "CURRENT").write_text("v1")
    (home / "crosscoders/big").symlink_to(big)
    (home / "pairs/q").symlink_to("p")
    copied = back_up(home, tmp_path / "a.tar")
    assert copied.links == ["crosscoders/big"]
    assert restore(tmp_path / "a.tar", tmp_path / "new").links == ["crosscoders/big"]
    assert (tmp_path / "new/crosscoders/big").readlink() == big
    assert (tmp_path / "new/pairs/q/pair.json").read_text() == "{}"
    assert (tmp_path / "new/pairs/q").is_symlink()


@pytest.mark.parametrize("name", ["../link", "dir/link/inside", "/link"])
def test_a_link_that_would_lie_outside_is_refused(home: Path, tmp_path: Path, name: str) -> None:
    back_up(home, tmp_path / "a.tar")
    (tmp_path / "out").mkdir()
    with tarfile.open(tmp_path / "a.tar", "a") as tar:
        for each in ("dir/link", name):
            info = tarfile.TarInfo(each)
            info.type, info.linkname = tarfile.SYMTYPE, str(tmp_path / "out")
            tar.addfile(info)
    with pytest.raises(BackupError):
        restore(tmp_path / "a.tar", tmp_path / "new")
    assert list((tmp_path / "out").iterdir()) == []
    assert not (tmp_path / "new").exists()


def test_what_is_half_written_is_not_copied(home: Path, tmp_path: Path) -> None:
    for name in (".tmp-1/weights", ".partial-1/weights"):
        (home / "crosscoders/c/versions" / name).parent.mkdir()
        (home / "crosscoders/c/versions" / name).write_text("half")
    back_up(home, tmp_path / "a.tar")
    restore(tmp_path / "a.tar", tmp_path / "new")
    assert [path.name for path in (tmp_path / "new/crosscoders/c/versions").iterdir()] == ["v2"]


def test_the_folder_of_tokens_stays_private(home: Path, tmp_path: Path) -> None:
    (home / "access").mkdir(mode=0o700)
    (home / "access/token").write_text("cs_")
    back_up(home, tmp_path / "a.tar")
    restore(tmp_path / "a.tar", tmp_path / "new")
    assert (tmp_path / "new/access").stat().st_mode & 0o777 == 0o700


def test_a_place_for_the_home_that_cannot_be_made_is_a_sentence(home: Path, tmp_path: Path) -> None:
    back_up(home, tmp_path / "a.tar")
    (tmp_path / "file").write_text("")
    with pytest.raises(BackupError, match=r"could not be restored to .*: File exists"):
        restore(tmp_path / "a.tar", tmp_path / "file" / "home")


def test_nothing_is_overwritten(home: Path, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_text("mine")
    with pytest.raises(BackupError, match=r"a\.tar is there already"):
        back_up(home, tmp_path / "a.tar")
    with pytest.raises(BackupError, match="lies in the home itself"):
        back_up(home, home / "b.tar")
    with pytest.raises(BackupError, match=r"must end in \.tar"):
        back_up(home, tmp_path / "b.zip")
    back_up(home, tmp_path / "b.tar")
    with pytest.raises(BackupError, match="home is not empty"):
        restore(tmp_path / "b.tar", home)


def test_a_disk_that_fills_leaves_no_half_archive(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SystemExit):
        run(["backup", str(tmp_path / "a.tar"), "--home", str(home)])
    assert "a.tar could not be written: No space left on device" in "".join(capsys.readouterr())
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
