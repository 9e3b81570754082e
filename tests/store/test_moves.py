"""A home's things moved to a store and back, and what uploads that died have left there."""

import time
from pathlib import Path

import pytest
from fixtures_artefacts import write_crosscoder
from fixtures_looks import write_look
from fixtures_store import files_below

from crosscope_proto.artefacts import STORE_NOTE, PairManifest
from crosscope_store.entries import Key, new_id, stamp
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
    after = {file: (two / file).read_bytes() for file in files_below(two) if not file.endswith(STORE_NOTE)}
    assert after == before


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
