"""What several homes promise each other over a store in memory, on a disk, and on a server that speaks S3."""

import errno
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures_store import files_below

from crosscope_proto.artefacts import CURRENT, STORE_NOTE, crosscoder_folder, version_folder
from crosscope_store import copies
from crosscope_store.copies import Copies
from crosscope_store.entries import MAX_BYTES, Entry, Key, stamp
from crosscope_store.errors import EntryError, StoreAway, StoreGone, StoreRefused, StoreTaken
from crosscope_store.remote import Store
from crosscope_store.shelf import SharedShelf, open_shelf

Shelves = Callable[..., SharedShelf]
NOW = 1_780_000_000.0


def written(folder: Path, **files: bytes) -> Path:
    """A folder of a version with these files, and a manifest."""
    (folder / "examples").mkdir(parents=True)
    (folder / "crosscoder.json").write_text(json.dumps({"of": folder.name}))
    (folder / "latents.parquet").write_bytes(files.get("latents", b"latents"))
    (folder / "examples" / "part-00.parquet").write_bytes(files.get("examples", b"examples"))
    return folder


def published(shelf: SharedShelf, folder: Path, identity: str, name: str = "demo") -> Key:
    key = Key("crosscoders", name, identity)
    shelf.commit(shelf.upload("crosscoders", name, folder), key, folder)
    return key


def current(home: Path, name: str = "demo") -> str:
    return (Path(crosscoder_folder(home, name)) / CURRENT).read_text().strip()


@pytest.mark.stores("memory", "file", "s3")
def test_a_version_comes_to_another_home_and_each_file_when_it_is_needed(tmp_path: Path, shelf_at: Shelves) -> None:
    identity = f"{stamp(NOW)}-a"
    published(shelf_at("one"), written(tmp_path / "made"), identity)
    two = shelf_at("two")
    two.refresh()

    folder = Path(version_folder(tmp_path / "two", "demo", identity))
    assert current(tmp_path / "two") == identity
    assert list(files_below(folder)) == [STORE_NOTE, "crosscoder.json"]
    two.need(folder / "examples" / "part-00.parquet")
    assert list(files_below(folder)) == [STORE_NOTE, "crosscoder.json", "examples/part-00.parquet"]
    assert (folder / "examples" / "part-00.parquet").read_bytes() == b"examples"
    assert two.standing().fetched_bytes == len(b"examples")
    two.need_all(folder, but=["latents.*"])
    assert not (folder / "latents.parquet").exists()
    two.need_all(folder)
    assert (folder / "latents.parquet").read_bytes() == b"latents"
    assert two.sizes(folder)["latents.parquet"] == len(b"latents")


def test_what_was_uploaded_and_not_published_is_nowhere(tmp_path: Path, shelf_at: Shelves) -> None:
    one, two = shelf_at("one"), shelf_at("two")
    one.upload("crosscoders", "demo", written(tmp_path / "made"))
    two.refresh()
    assert not (tmp_path / "two" / "crosscoders").exists()
    assert two.standing().num_published == 0


@pytest.mark.stores("memory", "file")
def test_an_upload_that_is_broken_off_leaves_nothing(tmp_path: Path, url: str, shelf_at: Shelves) -> None:
    folder = written(tmp_path / "made")

    def cancel(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shelf_at("one").upload("crosscoders", "demo", folder, cancel)
    assert Store(url).uploads() == {}
    (folder / "zz odd name").write_text("x")
    with pytest.raises(EntryError, match="cannot be published"):
        shelf_at("one").upload("crosscoders", "demo", folder)
    assert Store(url).uploads() == {}


@pytest.mark.stores("memory", "file", "s3")
def test_two_publishers_of_one_id_get_one_version_each(tmp_path: Path, shelf_at: Shelves) -> None:
    identity = f"{stamp(NOW)}-a"
    shelves = [shelf_at("one"), shelf_at("two")]
    folders = [written(tmp_path / name, latents=name.encode()) for name in ("first", "second")]
    uploads = [shelf.upload("crosscoders", "demo", each) for shelf, each in zip(shelves, folders, strict=True)]
    barrier, won = threading.Barrier(2), []

    def commit(index: int) -> None:
        barrier.wait()
        try:
            shelves[index].commit(uploads[index], Key("crosscoders", "demo", identity), folders[index])
            won.append(index)
        except StoreTaken:
            later = f"{shelves[index].stamp_for('crosscoders', 'demo', NOW)}-b"
            assert later > identity
            shelves[index].commit(uploads[index], Key("crosscoders", "demo", later), folders[index])

    threads = [threading.Thread(target=commit, args=(index,)) for index in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(won) == 1
    three = shelf_at("three")
    three.refresh()
    versions = sorted((tmp_path / "three" / "crosscoders" / "demo" / "versions").iterdir())
    assert len(versions) == 2
    assert current(tmp_path / "three") == versions[1].name
    for folder, index in zip(versions, (won[0], 1 - won[0]), strict=True):
        three.need_all(folder)
        assert (folder / "latents.parquet").read_text() == ("first", "second")[index]


def test_the_last_published_counts_though_its_clock_is_behind(shelf_at: Shelves, tmp_path: Path) -> None:
    shelf = shelf_at("one")
    published(shelf, written(tmp_path / "made"), f"{stamp(NOW)}-a")
    assert shelf.stamp_for("crosscoders", "demo", NOW - 3600) == stamp(NOW + 0.001)
    assert shelf.stamp_for("crosscoders", "demo", NOW + 3600) == stamp(NOW + 3600)
    assert shelf.stamp_for("crosscoders", "other", NOW - 3600) == stamp(NOW - 3600)


def look_published(shelf: SharedShelf, folder: Path, number: int) -> None:
    """Publishes a look named first; a later number replaces an earlier one."""
    folder.mkdir()
    (folder / "look.json").write_text(f"look {number}")
    (folder / "texts.parquet").write_bytes(b"texts %d" % number)
    key = Key("looks", "first", f"{stamp(NOW + number)}-x")
    shelf.commit(shelf.upload("looks", "first", folder), key, folder)


def test_a_look_is_replaced_whole(tmp_path: Path, shelf_at: Shelves) -> None:
    one, two = shelf_at("one"), shelf_at("two")
    for number in (1, 2):
        look_published(one, tmp_path / f"look{number}", number)
        two.refresh()
        two.need(tmp_path / "two" / "looks" / "first" / "texts.parquet")
        assert (tmp_path / "two" / "looks" / "first" / "look.json").read_text() == f"look {number}"
        assert (tmp_path / "two" / "looks" / "first" / "texts.parquet").read_bytes() == b"texts %d" % number


def test_a_look_that_two_processes_bring_is_laid_once(
    tmp_path: Path, url: str, shelf_at: Shelves, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_published(shelf_at("one"), tmp_path / "look", 1)
    late, here = shelf_at("two"), tmp_path / "two" / "looks" / "first"
    laid: list[int] = []

    def get(store: Store, path: str, target: Path, *more: object) -> None:
        if not laid:  # the other process comes first, while this one reads the manifest
            laid.append(0)
            shelf_at("two").refresh()
            laid[0] = here.stat().st_ino
        read(store, path, target, *more)

    read = Store.get
    monkeypatch.setattr(Store, "get", get)
    late.refresh()
    assert here.stat().st_ino == laid[0]
    assert not list((tmp_path / "two" / "looks").glob(".partial-*"))


def test_a_look_that_two_processes_replace_is_laid_once(
    tmp_path: Path, shelf_at: Shelves, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, late, early = shelf_at("one"), shelf_at("two"), shelf_at("two")
    look_published(one, tmp_path / "look1", 1)
    late.refresh()
    look_published(one, tmp_path / "look2", 2)
    other, looked, laid = threading.Thread(target=early.refresh), list[Path](), list[Path]()

    def note(of: Copies, folder: Path) -> Entry | None:
        found = look(of, folder)
        if threading.current_thread() is not other:
            looked.append(folder)
            if len(looked) == 2:  # this one has the new look, and sees that an older one is there: now comes the other
                other.start()
                other.join(0.5)  # it waits for this one
        return found

    def put(written: Path, folder: Path) -> None:
        laid.append(folder)
        lay(written, folder)

    look, lay = Copies.note, copies._put
    monkeypatch.setattr(Copies, "note", note)
    monkeypatch.setattr(copies, "_put", put)
    late.refresh()
    other.join()
    here = tmp_path / "two" / "looks" / "first"
    assert (here / "look.json").read_text() == "look 2"
    assert laid == [here]
    assert not list(here.parent.glob(".partial-*"))


@pytest.mark.stores("memory", "file", "s3")
def test_a_publication_whose_answer_is_lost_is_not_taken_for_somebody_elses(
    tmp_path: Path, shelf_at: Shelves, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create_unheard(store: Store, path: str, data: bytes) -> None:
        create(store, path, data)
        raise StoreAway("the store does not answer: timed out")

    one, create = shelf_at("one"), Store.create
    folder, key = written(tmp_path / "made"), Key("crosscoders", "demo", f"{stamp(NOW)}-a")
    upload = one.upload("crosscoders", "demo", folder)
    with monkeypatch.context() as patched:
        patched.setattr(Store, "create", create_unheard)
        with pytest.raises(StoreAway):
            one.commit(upload, key, folder)
    assert not list(folder.glob(".*"))
    one.commit(upload, key, folder)
    two = shelf_at("two")
    two.refresh()
    note = Path(version_folder(tmp_path / "two", "demo", key.id)) / STORE_NOTE
    assert (folder / STORE_NOTE).read_text() == note.read_text()
    with pytest.raises(StoreTaken):
        one.commit(one.upload("crosscoders", "demo", folder), key, folder)


def test_nothing_is_published_that_a_full_disk_cannot_note(
    tmp_path: Path, shelf_at: Shelves, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(path: Path, text: str, *more: object) -> int:
        if path.parent == folder:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_text(path, text)

    one, folder, write_text = shelf_at("one"), written(tmp_path / "made"), Path.write_text
    upload = one.upload("crosscoders", "demo", folder)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", write)
        with pytest.raises(OSError, match="No space left"):
            one.commit(upload, Key("crosscoders", "demo", f"{stamp(NOW)}-a"), folder)
    two = shelf_at("two")
    two.refresh()
    standing = two.standing()
    assert standing is not None
    assert standing.num_published == 0


def test_a_file_whose_look_is_replaced_meanwhile_says_so(
    tmp_path: Path, url: str, shelf_at: Shelves, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = shelf_at("one"), shelf_at("two")
    look_published(one, tmp_path / "look1", 1)
    two.refresh()
    look_published(one, tmp_path / "look2", 2)
    asked: list[str] = []

    def get(store: Store, path: str, target: Path, *more: object) -> None:
        asked.append(path)
        if len(asked) == 1:  # another process of this home replaces the look, while this one reads
            shelf_at("two").refresh()
        read(store, path, target, *more)

    read = Store.get
    monkeypatch.setattr(Store, "get", get)
    texts = tmp_path / "two" / "looks" / "first" / "texts.parquet"
    with pytest.raises(StoreGone, match=r"first was replaced while texts\.parquet was read"):
        two.need(texts)
    two.need(texts)
    assert texts.read_bytes() == b"texts 2"
    assert not list(texts.parent.glob(".partial-*"))


def test_what_is_of_the_home_alone_stays_and_is_named(tmp_path: Path, shelf_at: Shelves) -> None:
    own = tmp_path / "two" / "looks" / "first"
    own.mkdir(parents=True)
    (own / "look.json").write_text("my own")
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "look.json").write_text("the store's")
    one, two = shelf_at("one"), shelf_at("two")
    one.commit(one.upload("looks", "first", folder), Key("looks", "first", f"{stamp(NOW)}-x"), folder)
    two.refresh()
    assert (own / "look.json").read_text() == "my own"
    assert f"{own} is not the store's" in two.standing().sentence


def test_copies_unused_for_longest_go_first(tmp_path: Path, shelf_at: Shelves) -> None:
    one, two = shelf_at("one"), shelf_at("two", limit_bytes=2500)
    ids = [f"{stamp(NOW + number)}-x" for number in range(3)]
    for identity in ids:
        published(one, written(tmp_path / identity, latents=b"x" * 1000, examples=b""), identity)
    two.refresh()
    files = [Path(version_folder(tmp_path / "two", "demo", each)) / "latents.parquet" for each in ids]
    for path, hours in zip(files[:2], (1, 2), strict=True):
        two.need(path)
        os.utime(path, (time.time() - hours * 3600,) * 2)
    two.need(files[2])
    assert [path.exists() for path in files] == [True, False, True]
    assert (two.standing().copies_bytes, two.standing().evicted_bytes) == (2000, 1000)
    two.need(files[1])
    assert files[1].read_bytes() == b"x" * 1000
    assert files[2].exists(), "it was used a moment ago"


@pytest.mark.stores("memory", "file", "s3")
def test_what_a_store_no_longer_holds_goes_after_a_while(tmp_path: Path, shelf_at: Shelves) -> None:
    one, two = shelf_at("one"), shelf_at("two")
    old, new = (published(one, written(tmp_path / each), f"{stamp(NOW)}-{each}") for each in ("a", "b"))
    two.refresh()
    one.remove(old)
    two.refresh()
    folder = old.folder(tmp_path / "two")
    assert folder.exists()
    with pytest.raises(StoreGone, match="is gone"):
        two.need(folder / "latents.parquet")
    os.utime(folder / STORE_NOTE, (time.time() - 3600,) * 2)
    two.refresh()
    assert not folder.exists()
    assert new.folder(tmp_path / "two").exists()


def test_older_versions_are_retired(tmp_path: Path, shelf_at: Shelves) -> None:
    one = shelf_at("one")
    for age_s in (9000, 8000, 7000, 6000):
        published(one, written(tmp_path / f"of-{age_s}"), f"{stamp(time.time() - age_s)}-x")
    one.retire("crosscoders", "demo")
    two = shelf_at("two")
    two.refresh()
    assert two.standing().num_published == 2


@pytest.mark.stores("file")
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, url: str, shelf_at: Shelves) -> None:
    key = published(shelf_at("one"), written(tmp_path / "made"), f"{stamp(NOW)}-a")
    store, two = Store(url), shelf_at("two")
    entry = json.loads(store.read(key.path, 10_000))
    changed = tmp_path / "changed"
    changed.write_bytes(b"LATENTS")
    store.put(changed, f"files/crosscoders/demo/{entry['upload']}/latents.parquet")
    two.refresh()
    path = key.folder(tmp_path / "two") / "latents.parquet"
    with pytest.raises(EntryError, match=r"latents\.parquet is damaged"):
        two.need(path)
    assert not path.exists()
    assert two.standing().is_up, "it has answered"


def test_an_entry_that_cannot_be_read_harms_no_other(tmp_path: Path, url: str, shelf_at: Shelves) -> None:
    one, two = shelf_at("one"), shelf_at("two")
    key = published(one, written(tmp_path / "made"), f"{stamp(NOW)}-a")
    text = json.loads(Store(url).read(key.path, 10_000))
    text["files"]["../../../escaped"] = text["files"]["latents.parquet"]
    Store(url).create(
        f"published/crosscoders/demo/{stamp(NOW)}-b.json", json.dumps(text | {"id": f"{stamp(NOW)}-b"}).encode()
    )
    Store(url).create(f"published/crosscoders/demo/{stamp(NOW)}-c.json", b"{half")
    two.refresh()
    assert current(tmp_path / "two") == key.id
    assert "escaped' is no path below a folder" in two.standing().sentence
    assert f"{stamp(NOW)}-c.json" in two.standing().sentence


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"a": 1, "a/b": 1}, "'a' is a file and a folder"),
        ({"crosscoder.json/x": 1}, "'crosscoder.json' is a file and a folder"),
        ({"crosscoder.json": MAX_BYTES + 1}, f"crosscoder.json has {MAX_BYTES + 1} bytes"),
    ],
)
def test_files_that_cannot_lie_in_one_folder_harm_no_other(
    tmp_path: Path, url: str, shelf_at: Shelves, files: dict[str, int], says: str
) -> None:
    one, two = shelf_at("one"), shelf_at("two")
    key = published(one, written(tmp_path / "made"), f"{stamp(NOW)}-a")
    entry = json.loads(Store(url).read(key.path, 10_000))
    entry["files"] |= {file: {"size": size, "sha256": "0" * 64} for file, size in files.items()}
    wrong = Key("crosscoders", "demo", f"{stamp(NOW)}-b")
    Store(url).create(wrong.path, json.dumps(entry | {"id": wrong.id}).encode())
    two.refresh()
    assert current(tmp_path / "two") == key.id
    assert says in two.standing().sentence
    assert wrong.path in two.standing().sentence


def test_a_manifest_that_was_deleted_in_a_copy_comes_again(tmp_path: Path, shelf_at: Shelves) -> None:
    two = shelf_at("two")
    key = published(shelf_at("one"), written(tmp_path / "made"), f"{stamp(NOW)}-a")
    two.refresh()
    manifest = key.folder(tmp_path / "two") / "crosscoder.json"
    before = manifest.read_bytes()
    manifest.unlink()
    two.refresh()
    assert manifest.read_bytes() == before


def test_processes_of_one_home_bring_the_same_things_at_once(tmp_path: Path, shelf_at: Shelves) -> None:
    one = shelf_at("one")
    for number in range(20):
        published(one, written(tmp_path / f"made{number}"), f"{stamp(NOW)}-{number}")
    for number in range(20):
        folder = tmp_path / f"look{number}"
        folder.mkdir()
        (folder / "look.json").write_text("{}")
        key = Key("looks", f"look{number}", f"{stamp(NOW)}-x")
        one.commit(one.upload("looks", key.name, folder), key, folder)
    barrier, failures = threading.Barrier(4), list[BaseException]()

    def look() -> None:
        shelf = shelf_at("two")
        barrier.wait()
        try:
            shelf.refresh()
        except OSError as error:
            failures.append(error)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert failures == []
    assert len(list((tmp_path / "two/crosscoders/demo/versions").iterdir())) == 20
    assert len(list((tmp_path / "two/looks").iterdir())) == 20


def test_an_old_entry_that_cannot_be_read_keeps_no_other(tmp_path: Path, url: str, shelf_at: Shelves) -> None:
    one = shelf_at("one")
    Store(url).create(f"published/crosscoders/demo/{stamp(time.time() - 9500)}-x.json", b"{half")
    for age_s in (9000, 8000, 7000, 6000):
        published(one, written(tmp_path / f"of-{age_s}"), f"{stamp(time.time() - age_s)}-x")
    one.retire("crosscoders", "demo")
    assert len(Store(url).published()) == 3


@pytest.mark.stores("memory", "file", "s3")
def test_a_file_of_several_blocks_comes_as_it_was(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crosscope_store.remote.BLOCK_BYTES", 5 << 20)
    data, seen = os.urandom(12_000_000), list[int]()
    (tmp_path / "one").write_bytes(data)
    store = Store(url)
    fact = store.put(tmp_path / "one", "files/x", seen.append)
    assert (fact.size, fact.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    store.get("files/x", tmp_path / "two", fact, seen.append)
    assert (tmp_path / "two").read_bytes() == data
    assert seen == [5 << 20, 5 << 20, len(data) - (10 << 20)] * 2


@pytest.mark.stores("memory", "file", "s3")
def test_rights_are_tried(shelf_at: Shelves, url: str) -> None:
    shelf_at("one").check_rights()
    assert Store(url).uploads() == {}
    assert Store(url)._find("probes") == {}


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ("/mnt/x", "'/mnt/x' is no URL of fsspec; write file:///FOLDER or s3://BUCKET/FOLDER"),
        ("nonsense://x", "nonsense:// is no kind of store that fsspec knows"),
        ("file://shared", "'file://shared' names no folder from the root; write file:///FOLDER"),
    ],
)
def test_wrong_urls_are_named(tmp_path: Path, wrong: str, sentence: str) -> None:
    with pytest.raises(StoreRefused, match=sentence):
        open_shelf(tmp_path, wrong)
