"""The published things of a home: by itself, or as a copy of a store that several machines share.

A home has the same folders and files either way, and readers open them as ever. With a store, manifests come when
`refresh` looks, and other files when they are first needed. Knows no gRPC and no job.
"""

import contextlib
import itertools
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from typing_extensions import override

from crosscope_proto.artefacts import CURRENT, STORE_NOTE, crosscoder_folder
from crosscope_store.copies import GRACE_S, PARTIAL, Copies, write_whole, written_beside
from crosscope_store.entries import (
    MANIFESTS,
    Entry,
    FileFact,
    Key,
    Kind,
    age_s,
    entry_text,
    new_id,
    stamp,
    stamp_after,
    upload_path,
)
from crosscope_store.errors import EntryError, StoreAway, StoreError, StoreGone, StoreRefused, StoreTaken
from crosscope_store.files import Tick, files_of, idle

if TYPE_CHECKING:
    from crosscope_store.remote import Store

LIMIT_BYTES = 200_000_000_000
"""Bytes that copies may take if nothing is set."""
KEPT_VERSIONS = 2
"""The newest versions of a crosscoder that stay in a store; of looks and pairs one stays."""
_MAX_TOLD = 20


@dataclass(frozen=True)
class Standing:
    """How a store and its copies stand."""

    url: str
    is_up: bool
    """Whether it answered when it was last asked."""
    sentence: str
    """What is wrong; empty if nothing is."""
    num_published: int
    """What it held when it last answered."""
    copies_bytes: int
    limit_bytes: int
    fetched_bytes: int
    """Since the process started."""
    evicted_bytes: int


@dataclass(frozen=True)
class Upload:
    """Files that were written to a store, and that nobody sees yet."""

    id: str = ""
    files: tuple[tuple[str, int, str], ...] = ()
    """Path, size, SHA-256."""


class Shelf:
    """The published things of a home that shares them with nobody: all is here, so nothing is to be done."""

    is_shared = False

    def standing(self) -> Standing | None:
        """How the store stands; None without one."""
        return None

    def check_rights(self) -> None:
        """Raises StoreRefused or StoreAway unless things can be published."""

    def refresh(self) -> None:
        """Brings the manifests of what was published. Raises StoreError."""

    def need(self, path: Path) -> None:
        """Brings a published file that is not here. Raises StoreError, OSError, and what the shelf's tick raises."""

    def need_all(self, folder: Path, but: Sequence[str] = ()) -> None:
        """Brings all files of a published folder, except those whose names match a pattern of `but`; else as `need`."""

    def sizes(self, folder: Path) -> dict[str, int]:
        """Bytes of the files of a published folder that need not be here, by their path below it."""
        return {}

    def stamp_for(self, kind: Kind, name: str, now: float) -> str:
        """With what the id of something that is published now begins. Raises StoreError."""
        return stamp(now)

    def upload(self, kind: Kind, name: str, folder: Path, tick: Tick = idle) -> Upload:
        """Writes the files of a folder, which nobody sees yet. Raises StoreError, and what `tick` raises."""
        return Upload()

    def commit(self, upload: Upload, key: Key, folder: Path) -> None:
        """Publishes what was uploaded, with the manifest as it lies in `folder` now.

        Raises StoreTaken where somebody else has published under this key, else StoreError.
        """

    def retire(self, kind: Kind, name: str) -> None:
        """Removes what newer publications have replaced, a while after that. Raises StoreError."""


ALONE = Shelf()


class SharedShelf(Shelf):
    """A home whose published things are copies of a store's. Its methods may be called from any thread."""

    is_shared = True

    def __init__(self, home: Path, store: "Store", limit_bytes: int = LIMIT_BYTES, tick: Tick = idle) -> None:
        """`tick` hears of bytes that are read for `need`."""
        self._home, self._store, self._limit_bytes, self._tick = home, store, limit_bytes, tick
        self._copies = Copies(home, limit_bytes)
        self._refreshing = threading.Lock()
        self._fetching: dict[Path, threading.Lock] = {}
        self._lock = threading.Lock()
        self._sentence = self._unread = ""
        self.unusable: dict[Key, str] = {}
        """What of the store could not be brought when it was last looked at, with the sentence."""
        self._is_up, self._num_published, self._fetched_bytes = True, 0, 0

    @override
    def standing(self) -> Standing:
        """How the store stood when it was last asked."""
        return Standing(
            url=self._store.url,
            is_up=self._is_up,
            sentence=self._sentence or self._unread,
            num_published=self._num_published,
            copies_bytes=self._copies.size_bytes,
            limit_bytes=self._limit_bytes,
            fetched_bytes=self._fetched_bytes,
            evicted_bytes=self._copies.evicted_bytes,
        )

    def _asked(self, call: Callable[[], object]) -> None:
        """Calls, and remembers how the store stands."""
        try:
            call()
        except EntryError:
            raise  # the store has answered
        except (StoreAway, StoreRefused) as error:
            self._is_up, self._sentence = False, str(error)
            raise
        self._is_up, self._sentence = True, ""

    @override
    def check_rights(self) -> None:
        self._asked(self._store.check_rights)

    @override
    def refresh(self) -> None:
        with self._refreshing:
            self._asked(self._refresh)

    def _refresh(self) -> None:
        began = time.time()
        keys = self._store.published()
        self._num_published = len(keys)
        self.unusable = {key: sentence for key in reversed(keys) if (sentence := self._bring(key, keys))}
        unread = [*self.unusable.values(), *self._copies.strangers(keys)]
        more = f"; and {len(unread) - _MAX_TOLD} more" if len(unread) > _MAX_TOLD else ""
        self._unread = "; ".join(unread[:_MAX_TOLD]) + more
        for name in {key.name for key in keys if key.kind == "crosscoders"}:
            self._point(name, [key.id for key in keys if key[:2] == ("crosscoders", name)])
        if keys:  # an empty listing is more likely a wrong URL than the end of everything
            self._copies.forget(set(keys), began)
        self._copies.count()

    def _bring(self, key: Key, keys: list[Key]) -> str:
        """Brings the manifest of something, unless it is here; returns what is wrong with it, for people."""
        folder = key.folder(self._home)
        if key.kind != "crosscoders" and key.id != max(each.id for each in keys if each[:2] == key[:2]):
            return ""  # replaced
        note = self._copies.note(folder)
        if note is None and folder.exists():
            return ""  # this home's own; `strangers` names it
        try:
            if note is not None and note.id == key.id:
                if not (folder / (manifest := MANIFESTS[key.kind])).exists():  # somebody has deleted it
                    self._fetch(note, manifest, folder)
                return ""
            self._lay(self._store.entry(key), folder)
        except StoreGone:
            return ""  # removed since the listing, or replaced by another process of this home
        except EntryError as error:
            return str(error)
        return ""

    def _lay(self, entry: Entry, folder: Path) -> None:
        """Puts a folder with an entry's manifest in its place. Raises StoreError, OSError."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        written = folder.parent / f"{PARTIAL}{folder.name}-{uuid.uuid4().hex[:8]}"
        try:
            written.mkdir()
            for file in entry.files:
                (written / file).parent.mkdir(parents=True, exist_ok=True)
            manifest = MANIFESTS[entry.kind]
            self._store.get(entry.path_of(manifest), written / manifest, entry.files[manifest])
            (written / STORE_NOTE).write_text(entry_text(entry), "utf-8")
            self._copies.place(written, folder, entry)
        finally:
            shutil.rmtree(written, ignore_errors=True)

    def _point(self, name: str, ids: list[str]) -> None:
        """Makes the newest version that is here the one that counts."""
        folder = Path(crosscoder_folder(self._home, name))
        try:
            current = (folder / CURRENT).read_text("utf-8").strip()
        except FileNotFoundError:
            current = ""
        newest = max((each for each in ids if (folder / "versions" / each).is_dir()), default="")
        if newest > current or (newest and not (folder / "versions" / current).is_dir()):
            write_whole(folder / CURRENT, f"{newest}\n")

    @override
    def need(self, path: Path) -> None:
        if self._copies.is_here(path) or (found := self._copies.entry_of(path)) is None:
            return
        folder, entry = found
        file = path.relative_to(folder).as_posix()
        if file in entry.files:
            self._fetch(entry, file, folder)
            self._copies.make_room(folder)

    @override
    def need_all(self, folder: Path, but: Sequence[str] = ()) -> None:
        if (entry := self._copies.note(folder)) is None:
            return
        for file in sorted(entry.files):
            path = folder / file
            if not any(fnmatch(path.name, pattern) for pattern in but) and not self._copies.is_here(path):
                self._fetch(entry, file, folder)
        self._copies.make_room(folder)

    @override
    def sizes(self, folder: Path) -> dict[str, int]:
        entry = self._copies.note(folder)
        return {} if entry is None else {file: fact.size for file, fact in entry.files.items()}

    def _fetch(self, entry: Entry, file: str, folder: Path) -> None:
        """Brings a file of a copy. Raises StoreGone if another process replaces the copy meanwhile, else as `need`."""
        path = folder / file
        with self._lock:
            lock = self._fetching.setdefault(path, threading.Lock())
        with lock:
            if path.exists():
                return
            written, fact = folder.parent / f"{PARTIAL}{uuid.uuid4().hex}", entry.files[file]
            try:
                with _opened(path.parent) as place:
                    self._check_same(folder, entry, file)
                    self._asked(lambda: self._store.get(entry.path_of(file), written, fact, self._tick))
                    os.replace(written, path.name, dst_dir_fd=place)  # never into a folder that has come instead
                    self._check_same(folder, entry, file)
            except (FileNotFoundError, NotADirectoryError):
                self._check_same(folder, entry, file)
                raise
            finally:
                written.unlink(missing_ok=True)
                with self._lock:
                    self._fetching.pop(path, None)
            with self._lock:
                self._fetched_bytes += fact.size

    def _check_same(self, folder: Path, entry: Entry, file: str) -> None:
        if self._copies.note(folder) != entry:
            raise StoreGone(f"{folder} was replaced while {file} was read")

    @override
    def stamp_for(self, kind: Kind, name: str, now: float) -> str:
        ids = [key.id for key in self._store.published() if key[:2] == (kind, name)]
        return stamp_after(max(ids, default=None), now)

    @override
    def upload(self, kind: Kind, name: str, folder: Path, tick: Tick = idle) -> Upload:
        upload, facts = new_id(), []
        there = upload_path(kind, name, upload)
        try:
            for file, path in files_of(folder):
                fact = self._store.put(path, f"{there}/{file}", tick)
                facts.append((file, fact.size, fact.sha256))
        except BaseException:
            with contextlib.suppress(StoreError):  # a store that is full would get fuller with every attempt
                self._store.remove_all(there)
            raise
        return Upload(upload, tuple(facts))

    @override
    def commit(self, upload: Upload, key: Key, folder: Path) -> None:
        files = {file: FileFact(size, sha256) for file, size, sha256 in upload.files}
        entry = Entry(*key, upload=upload.id, files=files, created_at=time.time())
        manifest = MANIFESTS[key.kind]
        fact = self._store.put(folder / manifest, entry.path_of(manifest))
        whole = replace(entry, files=files | {manifest: fact})
        with written_beside(folder / STORE_NOTE, entry_text(whole)) as note:  # first, since a disk may be full
            if (there := self._create(whole)) != whole:
                note.write_text(entry_text(there), "utf-8")

    def _create(self, entry: Entry) -> Entry:
        """Writes an entry; returns that of an earlier try whose answer was lost. Raises StoreTaken, StoreError."""
        try:
            self._store.create(entry.key.path, entry_text(entry).encode())
        except StoreTaken as taken:
            try:
                there = self._store.entry(entry.key)
            except (EntryError, StoreGone):
                raise taken from None
            if there.upload != entry.upload:
                raise
            return there
        return entry

    @override
    def retire(self, kind: Kind, name: str) -> None:
        newest_first = sorted((key for key in self._store.published() if key[:2] == (kind, name)), reverse=True)
        kept = KEPT_VERSIONS if kind == "crosscoders" else 1
        for newer, old in list(itertools.pairwise(newest_first))[kept - 1 :]:
            if age_s(newer.id, time.time()) > GRACE_S:
                with contextlib.suppress(EntryError):  # nobody knows which files are its own
                    self.remove(old)

    def remove(self, key: Key) -> None:
        """Removes something that was published. Raises StoreError."""
        entry = self._store.entry(key)
        self._store.remove(key.path)
        self._store.remove_all(upload_path(key.kind, key.name, entry.upload))


@contextlib.contextmanager
def _opened(folder: Path) -> Generator[int]:
    """A descriptor of a folder, which stays the same wherever the folder is moved."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def open_shelf(home: Path, url: str | None, limit_bytes: int | None = None, tick: Tick = idle) -> Shelf:
    """The published things of a home: copies of those of the store at `url`, or the home's own without one.

    Asks no store yet. Raises StoreRefused for a URL that this machine cannot open.
    """
    if url is None:
        return ALONE
    from crosscope_store.remote import Store

    return SharedShelf(home, Store(url), limit_bytes or LIMIT_BYTES, tick)
