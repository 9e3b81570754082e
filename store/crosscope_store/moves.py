"""Moves between a home and a store: everything at once, and what dead uploads have left. Knows no process."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from crosscope_proto.artefacts import STORE_NOTE
from crosscope_store.copies import write_whole
from crosscope_store.entries import (
    KINDS,
    MANIFESTS,
    MAX_BYTES,
    Key,
    Kind,
    age_s,
    is_name,
    is_upload,
    new_id,
    upload_path,
)
from crosscope_store.errors import EntryError, StoreGone, StoreTaken
from crosscope_store.files import Tick, bytes_behind, idle
from crosscope_store.remote import Store
from crosscope_store.shelf import SharedShelf

LEFT_BEHIND_S = 86_400.0
"""Age beyond which files of a store that nothing names were left by an upload that died."""


@dataclass(frozen=True)
class Moved:
    """Something that was published, and what became of it."""

    key: Key
    bytes: int
    sentence: str
    is_wrong: bool = False
    """Whether it was left where it is because something is wrong with it, as the sentence says."""


def push(home: Path, store: Store, tick: Tick = idle) -> Iterator[Moved]:
    """Publishes everything of a home that is not in the store; what is done is told one by one. Raises StoreError.

    What cannot be published is told, and the others are.
    """
    shelf, there = SharedShelf(home, store), set(store.published())
    for kind, name, folder in _own(home):
        stamp = shelf.stamp_for(kind, name, time.time())
        key = Key(kind, name, folder.name if kind == "crosscoders" else f"{stamp}-{new_id()[-12:]}")
        try:
            yield _pushed(shelf, store, key, folder, key in there, tick)
        except EntryError as error:
            yield Moved(key, 0, str(error), is_wrong=True)


def _pushed(shelf: SharedShelf, store: Store, key: Key, folder: Path, is_there: bool, tick: Tick) -> Moved:
    """Publishes a folder, unless it is there. Raises StoreError."""
    if not (is_name(key.name) and is_name(key.id)):
        raise EntryError(f"{folder} cannot be published: a name has a-z, 0-9, '.', '_' and '-', at most 100 of them")
    if is_there:
        write_whole(folder / STORE_NOTE, store.read(key.path, MAX_BYTES).decode())
        return Moved(key, 0, "was there")
    size = bytes_behind(folder)
    try:
        shelf.commit(shelf.upload(key.kind, key.name, folder, tick), key, folder)
    except StoreTaken:
        return Moved(key, 0, "was published by somebody else just now")
    return Moved(key, size, "published")


def pull(home: Path, store: Store, tick: Tick = idle) -> Iterator[Moved]:
    """Brings every file of everything that counts in the store. Raises StoreError, OSError.

    What cannot be used is told, and the others are brought.
    """
    shelf = SharedShelf(home, store, tick=tick)
    shelf.refresh()
    for key in store.published():
        folder = key.folder(home)
        try:
            if key in shelf.unusable:
                yield Moved(key, 0, shelf.unusable[key], is_wrong=True)
            elif sizes := shelf.sizes(folder):
                shelf.need_all(folder)
                yield Moved(key, sum(sizes.values()), "is here")
        except (EntryError, StoreGone) as error:
            yield Moved(key, 0, str(error), is_wrong=True)


def leftovers(store: Store, now: float) -> dict[str, int]:
    """Folders of uploads that nothing names and that began more than LEFT_BEHIND_S ago, each with its bytes.

    What lies there and is no upload stays. Raises StoreError, and EntryError for an entry that cannot be read: then
    nobody knows what it names.
    """
    named: set[str] = set()
    uploads = store.uploads()  # first: what is published meanwhile is named by then
    for key in store.published():
        try:
            entry = store.entry(key)
        except StoreGone:  # since the listing; its files go too
            continue
        except EntryError as error:
            raise EntryError(
                f"{error}; nobody knows which files are its own, so take it out of the store first"
            ) from error
        named.add(upload_path(entry.kind, entry.name, entry.upload))
    return {
        folder: size
        for folder, size in uploads.items()
        if folder not in named and is_upload(folder) and age_s(folder.rpartition("/")[2], now) > LEFT_BEHIND_S
    }


def _own(home: Path) -> Iterator[tuple[Kind, str, Path]]:
    """What lies in a home and is no copy: pairs first, since crosscoders name them."""
    for kind in reversed(KINDS):
        pattern = f"*/versions/[!.]*/{MANIFESTS[kind]}" if kind == "crosscoders" else f"[!.]*/{MANIFESTS[kind]}"
        for path in sorted((home / kind).glob(pattern)):
            folder = path.parent
            if not (folder / STORE_NOTE).exists():
                yield kind, folder.parent.parent.name if kind == "crosscoders" else folder.name, folder
