"""What of a store lies in a home: folders with a note of what was published, and those of its files that were needed.

Copies may go at any time, the longest unused first, and come again. What has no note is the home's own and is never
touched. Asks no store.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import threading
import time
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path

from crosscope_proto.artefacts import CURRENT, STORE_LOCK, STORE_NOTE
from crosscope_store.entries import MANIFESTS, Entry, Key, parse_entry
from crosscope_store.errors import EntryError

PARTIAL = ".partial-"
GRACE_S = 600.0
"""Seconds for which what was replaced, or used last, stays for those who read it."""
_DEPTH = 6
"""How deep below its folder a published file may lie."""


@contextlib.contextmanager
def written_beside(path: Path, text: str) -> Generator[Path]:
    """A small text file beside `path`, which takes its place when the block ends without an error. Raises OSError."""
    written = path.with_name(f"{PARTIAL}{uuid.uuid4().hex}")
    try:
        written.write_text(text, "utf-8")
        yield written
        written.replace(path)
    finally:
        written.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Writes a small text file that is there whole or as it was before. Raises OSError."""
    with written_beside(path, text):
        pass


def _put(written: Path, folder: Path) -> None:
    """Renames a folder to a place where nothing is, or leaves what somebody else has put there just now."""
    try:
        written.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


class Copies:
    """The copies in a home. For any thread."""

    def __init__(self, home: Path, limit_bytes: int) -> None:
        """Looks at nothing yet."""
        self._home, self._limit_bytes = home, limit_bytes
        self._notes: dict[Path, tuple[tuple[int, int], Entry]] = {}
        self._making_room = threading.Lock()
        self.size_bytes = 0
        """Bytes of all copies but manifests, when they were last counted."""
        self.evicted_bytes = 0
        """Bytes that went for want of room since the process started."""

    def note(self, folder: Path) -> Entry | None:
        """What was published as a folder; None for a folder that is no copy."""
        path = folder / STORE_NOTE
        try:
            found = path.stat()
            state = found.st_mtime_ns, found.st_ino
            if (known := self._notes.get(folder)) is not None and known[0] == state:
                return known[1]
            entry = parse_entry(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError, EntryError):
            self._notes.pop(folder, None)
            return None
        self._notes[folder] = state, entry
        return entry

    def entry_of(self, path: Path) -> tuple[Path, Entry] | None:
        """The folder of a published file that is not here, and what was published with it; None for no such file."""
        for folder in path.parents[:_DEPTH]:
            if (entry := self.note(folder)) is not None:
                return folder, entry
            if folder == self._home:
                return None
        return None

    def is_here(self, path: Path) -> bool:
        """Whether a file is here; then it counts as used now."""
        try:
            found = path.stat()
        except FileNotFoundError:
            return False
        if time.time() - found.st_atime > GRACE_S / 10:
            with contextlib.suppress(OSError):  # somebody else's file may be read and not changed
                os.utime(path, ns=(time.time_ns(), found.st_mtime_ns))
        return True

    def place(self, written: Path, folder: Path, entry: Entry) -> None:
        """Puts a written folder in the place of a copy of something else. A copy of the same never changes, and stays.

        Several processes of a home do this at once. Whoever comes second leaves what the first has put there.
        """
        hidden = self._hidden(folder)
        with self._changing():
            earlier = self.note(folder)
            if (earlier is None and folder.exists()) or (earlier is not None and earlier.key == entry.key):
                return
            if earlier is not None:
                with contextlib.suppress(FileNotFoundError):  # a job of this home replaces it just now
                    folder.rename(hidden)
            _put(written, folder)
        shutil.rmtree(hidden, ignore_errors=True)

    @contextlib.contextmanager
    def _changing(self) -> Generator[None]:
        """Keeps all other processes and threads from moving folders of copies."""
        descriptor = os.open(self._home / STORE_LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def strangers(self, keys: list[Key]) -> list[str]:
        """A sentence for each thing of this home alone that has the name of something in the store."""
        found = dict.fromkeys(key.folder(self._home) for key in keys if key.kind != "crosscoders")
        return [
            f"{folder} is not the store's: move it away, or publish it with `crosscope store push`"
            for folder in found
            if folder.exists() and self.note(folder) is None
        ]

    def forget(self, keys: set[Key], began: float) -> None:
        """Removes copies of what the store no longer holds, by a listing that began then, after a while."""
        for folder, entry in list(self._all()):
            if entry.key in keys or (entry.kind != "crosscoders" and any(key[:2] == entry.key[:2] for key in keys)):
                continue
            with contextlib.suppress(FileNotFoundError):
                hidden = self._hidden(folder)
                with self._changing():
                    if self.note(folder) != entry or began - (folder / STORE_NOTE).stat().st_mtime < GRACE_S:
                        continue
                    folder.rename(hidden)
                shutil.rmtree(hidden, ignore_errors=True)
                if entry.kind == "crosscoders" and not any(folder.parent.glob("[!.]*")):
                    (folder.parent.parent / CURRENT).unlink(missing_ok=True)

    def count(self) -> None:
        """Counts the bytes of all copies."""
        self.size_bytes = sum(size for _, size, _ in self._files())

    def make_room(self, keep: Path) -> None:
        """Removes the copies that were unused for longest, as far as all take more than the limit.

        None of the folder `keep`, and none that was used a moment ago.
        """
        with self._making_room:
            self.count()
            for used_at, size, path in sorted(self._files()):
                if self.size_bytes <= self._limit_bytes:
                    return
                if keep in path.parents or time.time() - used_at < GRACE_S:
                    continue
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
                    self.size_bytes -= size
                    self.evicted_bytes += size

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """When each copied file was last used, its bytes, and where it is; without manifests."""
        for folder, entry in self._all():
            for file in entry.files:
                with contextlib.suppress(FileNotFoundError):
                    found = (folder / file).stat()
                    if file != MANIFESTS[entry.kind]:
                        yield max(found.st_atime, found.st_mtime), found.st_size, folder / file

    def _all(self) -> Iterator[tuple[Path, Entry]]:
        for pattern in ("crosscoders/*/versions/[!.]*", "looks/[!.]*", "pairs/[!.]*"):
            for folder in self._home.glob(pattern):
                if (entry := self.note(folder)) is not None:
                    yield folder, entry

    @staticmethod
    def _hidden(folder: Path) -> Path:
        return folder.with_name(f"{PARTIAL}{folder.name}-{uuid.uuid4().hex[:8]}")
