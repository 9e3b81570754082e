"""What is said of a store that is not there, lets nobody in, or is away."""

import re
import shutil
import threading
from collections.abc import Generator
from pathlib import Path

import pytest
import s3fs
from fixtures_store import S3Server

from crosscope_proto.settings import SettingsError, read_settings
from crosscope_store.errors import StoreAway, StoreRefused
from crosscope_store.following import Following
from crosscope_store.remote import Store, shown
from crosscope_store.settings import StoreSettings
from crosscope_store.shelf import SharedShelf


@pytest.fixture
def keys(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Generator[S3Server]:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()  # an instance keeps the keys that it began with
    yield s3
    s3fs.S3FileSystem.clear_instance_cache()


def test_no_bucket(keys: S3Server) -> None:
    with pytest.raises(StoreRefused, match=r"s3://nowhere-at-all/x is not there .*: make the bucket, or name another"):
        Store("s3://nowhere-at-all/x").check_rights()


def test_no_key(keys: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    url = keys.bucket()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(StoreRefused, match=r"does not let this process list .*credentials.*AWS_ACCESS_KEY_ID"):
        Store(f"{url}/unused").published()


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch, keys: S3Server, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    shelf = SharedShelf(tmp_path, Store("s3://bucket/x"))
    with pytest.raises(StoreAway, match="the store s3://bucket/x does not answer: Could not connect"):
        shelf.refresh()
    assert not shelf.standing().is_up
    assert "does not answer" in shelf.standing().sentence


def test_a_disk_that_is_not_mounted_is_away_and_comes_back(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shelf = SharedShelf(tmp_path / "home", Store(shared.as_uri()))
    with pytest.raises(StoreAway, match=re.escape(f"{shared}/ is no folder: mount it, or make it")):
        shelf.refresh()
    shared.mkdir()
    shelf.refresh()
    assert shelf.standing().is_up
    shutil.rmtree(shared)
    with pytest.raises(StoreAway):
        shelf.check_rights()


def test_a_folder_without_rights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "published").mkdir()
    monkeypatch.setattr("os.link", _refuses)
    with pytest.raises(StoreRefused, match=r"does not let this process write \(.*Permission denied.*give its key"):
        Store(tmp_path.as_uri()).check_rights()


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StoreAway, match=r"is full \(.*No space left on device\): free some room there"):
        Store(tmp_path.as_uri()).check_rights()


def test_a_disk_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("os.link", link)
    with pytest.raises(StoreRefused, match="takes no hard links"):
        Store(tmp_path.as_uri()).check_rights()


def test_a_store_that_replaces_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "create", lambda store, path, data: (tmp_path / path).parent.mkdir(exist_ok=True)
                        or (tmp_path / path).write_bytes(data))  # fmt: skip
    with pytest.raises(StoreRefused, match="lets a second writer replace"):
        Store(tmp_path.as_uri()).check_rights()
    assert list((tmp_path / "probes").iterdir()) == []


def test_what_no_other_process_sees_is_no_shared_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSCOPE_STORE", "memory://x")
    with pytest.raises(SettingsError, match="CROSSCOPE_STORE: no other process sees a store at memory://"):
        read_settings(StoreSettings)


def test_a_look_that_fails_in_an_unknown_way_is_not_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shelf = SharedShelf(tmp_path / "home", Store(tmp_path.as_uri()))
    looks, looked_again = [RuntimeError("secret words of a library")], threading.Event()

    def refresh() -> None:
        if looks:
            raise looks.pop()
        looked_again.set()

    monkeypatch.setattr(shelf, "refresh", refresh)
    following = Following(shelf, every_s=0.01)
    following.start()
    assert looked_again.wait(30)
    following.stop()
    assert "a look at it failed with RuntimeError" in caplog.text


def _refuses(*_: object, **__: object) -> None:
    raise PermissionError(13, "Permission denied")


def test_a_wrong_setting_is_named_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSCOPE_STORE", "nonsense://x")
    with pytest.raises(SettingsError, match="CROSSCOPE_STORE: nonsense:// is no kind of store that fsspec knows"):
        read_settings(StoreSettings)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("s3://bucket/x", "s3://bucket/x"),
        ("sftp://ann:secret@host/x", "sftp://host/x"),
        ("http://host/x?key=secret", "http://host/x"),
    ],
)
def test_secrets_of_a_url_are_not_shown(given: str, expected: str) -> None:
    assert shown(given) == expected
