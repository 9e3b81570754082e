"""A home's things moved to a store and back, and what uploads that died have left there."""

import shutil
import time
from pathlib import Path

import pytest
from fixtures_artefacts import write_crosscoder
from fixtures_looks import write_look
from fixtures_store import files_below

from crosscope_proto.artefacts import STORE_LOCK, STORE_NOTE, PairManifest
from crosscope_store.entries import Key, new_id, stamp
from crosscope_store.errors import EntryError
from crosscope_store.moves import LEFT_BEHIND_S, leftovers, pull, push
from crosscope_store.remote import Store


@pytest.mark.stores("memory", "file")
def test_a_home_is_pushed_once_and_pulled_whole(tmp_path: Path, url: str) -> None:
    one, two, store = tmp_path / "one", tmp_path / "two", Store(url)
    manifest = write_crosscoder(one, "demo", 64)
    write_look(one, "first", PairManifest("demo", "/models/base", "/models/chat", "/models/chat"))
    before = {file: (one / file).read_bytes() for file in files_below(one)}

    moved = list(push(one, store))
    assert [(each.key.kind, each.key.name, each.sentence) for each in moved] == [
        ("pairs", "demo", "published"),
        ("looks", "first", "published"),
        ("crosscoders", "demo", "published"),
    ]
    assert moved[2].key.id == manifest.version_id
    assert list(push(one, store)) == []
    (one / "crosscoders/demo/versions" / manifest.version_id / STORE_NOTE).unlink()
    assert [each.sentence for each in push(one, store)] == ["was there"]

    assert sum(each.bytes for each in pull(two, store)) > 10_000
    pulled = [file for file in files_below(two) if not file.endswith((STORE_NOTE, STORE_LOCK))]
    after = {file: (two / file).read_bytes() for file in pulled}
    assert after == before


def test_what_is_wrong_with_one_thing_is_told_and_the_others_are_moved(tmp_path: Path, url: str) -> None:
    one, two, store = tmp_path / "one", tmp_path / "two", Store(url)
    manifest = write_crosscoder(one, "demo", 64)
    pair = PairManifest("demo", "/models/base", "/models/chat", "/models/chat")
    write_look(one, "first", pair)
    shutil.copytree(one / "looks/first", one / "looks/My look")
    shutil.copytree(one / "looks/first", one / "looks/odd-file")
    (one / "looks/odd-file/a b.txt").write_text("x")
    moved = {each.key.name: each for each in push(one, store) if each.key.kind == "looks"}
    assert {name: each.is_wrong for name, each in moved.items()} == {"My look": True, "first": False, "odd-file": True}
    assert "a name has a-z" in moved["My look"].sentence
    assert "a b.txt cannot be published" in moved["odd-file"].sentence
    assert [key.name for key in store.published()] == ["demo", "first", "demo"]

    store.create(f"published/looks/half/{new_id()}.json", b"{half")
    file = next(path for path in store._find("files") if path.endswith("latents.parquet"))
    (tmp_path / "other").write_bytes(b"other")
    store.put(tmp_path / "other", file)
    pulled = {(each.key.kind, each.key.name): each for each in pull(two, store)}
    wrong = {key for key, each in pulled.items() if each.is_wrong}
    assert wrong == {("looks", "half"), ("crosscoders", "demo")}
    assert "cannot be used" in pulled["looks", "half"].sentence
    assert "is damaged" in pulled["crosscoders", "demo"].sentence
    assert (two / "looks/first/texts.parquet").exists()
    assert (two / "crosscoders/demo/versions" / manifest.version_id / "crosscoder.json").exists()


def test_what_is_no_upload_stays(tmp_path: Path, url: str) -> None:
    store = Store(url)
    (tmp_path / "file").write_bytes(b"mine")
    for path in ("files/README", "files/crosscoders/demo/by-hand/x", "files/other/demo/20200101t000000000-x/x"):
        store.put(tmp_path / "file", path)
    assert leftovers(store, time.time()) == {}


def test_an_entry_that_cannot_be_read_is_named_and_keeps_all_uploads(url: str) -> None:
    store = Store(url)
    path = f"published/looks/half/{new_id()}.json"
    store.create(path, b"{half")
    with pytest.raises(EntryError, match=rf"{path} of .* cannot be used: .*take it out of the store first"):
        leftovers(store, time.time())


@pytest.mark.stores("memory", "file")
def test_what_a_dead_upload_left_is_found_after_a_day(tmp_path: Path, url: str) -> None:
    store = Store(url)
    write_crosscoder(tmp_path / "one", "demo", 64)
    list(push(tmp_path / "one", store))
    (tmp_path / "file").write_bytes(b"twelve bytes")
    young, old = new_id(), f"{stamp(time.time() - LEFT_BEHIND_S - 60)}-dead"
    for upload in (young, old):
        store.put(tmp_path / "file", f"files/crosscoders/demo/{upload}/latents.parquet")
    assert leftovers(store, time.time()) == {f"files/crosscoders/demo/{old}": 12}
    store.remove_all(f"files/crosscoders/demo/{old}")
    assert leftovers(store, time.time()) == {}
    assert leftovers(store, time.time() + LEFT_BEHIND_S + 60) == {f"files/crosscoders/demo/{young}": 12}
    assert Key("crosscoders", "demo", young) not in store.published()
