"""A home as one archive, and back: also while it runs, since every file is copied in a state that counts.

What crosscope publishes appears by a rename and never changes, so it is copied as it is. Three things need care: which
version counts (copied before the versions), the words (copied by SQLite) and the queue (its files as one of its
manifests names them). The archive ends with a list of its files and their SHA-256, so one that is cut short or damaged
is not restored. Knows no process.
"""

import gzip
import hashlib
import io
import json
import lzma
import os
import shutil
import sqlite3
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from crosscope_local.room import RESERVE
from crosscope_local.run import PROCESSES
from crosscope_proto import artefacts
from crosscope_proto.access import FOLDER
from crosscope_proto.folders import bytes_of

LEFT_OUT = {
    "activations": "activations, which jobs make again",
    artefacts.SEARCH: "search indices, which the server makes again",
    "cache": "the cache's lock",
    "logs": "logs of processes",
    "huggingface": "files of the hub",
    "checkpoints": "checkpoints: a job that runs now would start anew",
}
"""Folders that are not copied, and what the person is told of them. A name counts at the top of the home, `checkpoints`
in a job's folder."""
_HALF = (".partial-", ".tmp-")
"""How what a process is writing is called until it is whole."""
_OF_A_PROCESS = (
    RESERVE,
    PROCESSES,
    "supervisor.lock",
    "supervisor.json",
    artefacts.STORE_LOCK,
    f"{artefacts.ANNOTATIONS}-wal",
    f"{artefacts.ANNOTATIONS}-shm",
)
_LIST = "crosscope-backup.json"
_SCHEMA = 1
_WHOLE_BELOW = 64 * 1024**2
"""Files below so many bytes are read whole before they are written, so one that grows meanwhile is copied as it was."""
_QUEUE_TRIES = 20
_DAMAGE = (
    *(tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile),
    *(ValueError, LookupError, TypeError, AttributeError, RecursionError),
)
"""What reading an archive raises that is cut short, damaged, or something else."""
_MODES = {".tar": ("w", "r"), ".gz": ("w:gz", "r:gz"), ".tgz": ("w:gz", "r:gz"), ".xz": ("w:xz", "r:xz")}


class BackupError(Exception):
    """An archive that cannot be written or restored; the message says why, and what to do."""


@dataclass
class Copied:
    """What an archive holds."""

    files: int = 0
    bytes: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    """Bytes of each kind of LEFT_OUT that is there."""
    gone: list[str] = field(default_factory=list)
    """Files that were removed while they were to be copied."""
    links: list[str] = field(default_factory=list)
    """Links that lead out of the home. They are copied as links, and not what they lead to."""


def back_up(home: Path, archive: Path) -> Copied:
    """Writes an archive of a home; it appears whole or not at all. Raises BackupError."""
    mode = _modes(archive)[0]
    if not home.is_dir():
        raise BackupError(f"{home} is not a folder; name the home with --home")
    if archive.exists():
        raise BackupError(f"{archive} is there already; choose another name or move it away")
    if archive.absolute().is_relative_to(home.absolute()):
        raise BackupError(f"{archive} lies in the home itself; choose a place outside of {home}")
    partial = archive.with_name(f".{archive.name}.partial")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as raw:
            with tarfile.open(fileobj=raw, mode=mode) as tar:
                copied = _Writer(home, tar).write()
            raw.flush()
            os.fsync(raw.fileno())
        partial.rename(archive)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise BackupError(f"{archive} could not be written: {error.strerror or error}{where}") from error
    finally:
        partial.unlink(missing_ok=True)
    return copied


class _Writer:
    """Puts the files of a home into an archive."""

    def __init__(self, home: Path, tar: tarfile.TarFile) -> None:
        self._home, self._tar = home, tar
        self._listed: dict[str, tuple[int, str]] = {}
        self._copied = Copied()

    def write(self) -> Copied:
        # Right behind the name of the version that counts comes that version, before it can be retired.
        for current in sorted(self._home.glob(f"crosscoders/*/{artefacts.CURRENT}")):
            if not current.parent.is_symlink():
                self._add(current)
                self._add_version(current)
        self._add_words()
        self._add_queue()
        for path in self._walk(self._home):
            if path.relative_to(self._home).as_posix() not in self._listed:
                self._add(path)
        listing = {
            "schema": _SCHEMA,
            "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "files": self._listed,
            "left_out": self._copied.left_out,
            "gone": self._copied.gone,
            "links": self._copied.links,
        }
        self._add_bytes(_LIST, json.dumps(listing, indent=1).encode(), 0o600)
        return self._copied

    def _add_version(self, current: Path) -> None:
        """Adds the version that CURRENT names."""
        try:
            version = current.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return
        for path in self._walk(current.parent / "versions" / version):
            self._add(path)

    def _walk(self, folder: Path) -> Iterator[Path]:
        """Files and links below a folder that are copied as they are; counts what is left out."""
        try:
            entries = sorted(folder.iterdir())
        except FileNotFoundError:
            return
        for path in entries:
            where = path.relative_to(self._home).parts
            kind = where[0] if len(where) == 1 else where[-1] if where[0] == "jobs" and len(where) == 3 else ""
            if kind in LEFT_OUT and path.is_dir():
                size = bytes_of(path)
                self._copied.left_out[kind] = self._copied.left_out.get(kind, 0) + size
            elif where[0] in (*_OF_A_PROCESS, "queue", artefacts.ANNOTATIONS) or path.name.startswith(_HALF):
                continue
            elif path.is_symlink() or path.is_file():
                yield path
            elif path.is_dir():
                yield from self._walk(path)

    def _add(self, path: Path) -> None:
        """Adds a file or link of the home; one that has gone is counted."""
        name = path.relative_to(self._home).as_posix()
        try:
            if path.is_symlink():
                self._tar.add(path, name, recursive=False)
                if path.readlink().is_absolute() or not path.resolve().is_relative_to(self._home.resolve()):
                    self._copied.links.append(name)
                return
            with path.open("rb") as file:
                info = self._tar.gettarinfo(name, arcname=name, fileobj=file)
                if info.size < _WHOLE_BELOW:
                    self._put(info, file.read())
                    return
                hashed = _Hashed(file)
                self._tar.addfile(info, hashed)
                self._count(name, info.size, hashed.digest())
        except FileNotFoundError:
            self._copied.gone.append(name)

    def _add_words(self) -> None:
        """The words as SQLite copies them: whole, whoever writes meanwhile."""
        words = self._home / artefacts.ANNOTATIONS
        if not words.exists():
            return
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / artefacts.ANNOTATIONS
            try:
                with (
                    closing(sqlite3.connect(f"file:{words}?mode=rw", uri=True)) as source,
                    closing(sqlite3.connect(copy)) as target,
                ):
                    source.backup(target)
            except sqlite3.Error as error:
                raise BackupError(
                    f"{words} cannot be copied: {error}; free room in {folder}, or put a backup in its place first"
                ) from error
            self._add_bytes(artefacts.ANNOTATIONS, copy.read_bytes(), 0o600)

    def _add_queue(self) -> None:
        """The queue's append-only files, all as one manifest names them: a rewrite exchanges them with it."""
        folder = self._home / "queue" / "appendonlydir"
        for _ in range(_QUEUE_TRIES):
            manifests = sorted(folder.glob("*.manifest"))
            if not manifests:
                return
            before = manifests[0].read_bytes()
            names = [words[1] for line in before.decode().splitlines() if (words := line.split())[:1] == ["file"]]
            try:
                parts = {folder / name: (folder / name).read_bytes() for name in names}
            except FileNotFoundError:
                parts = {}
            if parts and manifests[0].read_bytes() == before:
                for path, data in {manifests[0]: before, **parts}.items():
                    self._add_bytes(path.relative_to(self._home).as_posix(), data, 0o600)
                return
            time.sleep(0.1)
        raise BackupError("the queue rewrites its file again and again; try again in a minute")

    def _add_bytes(self, name: str, data: bytes, mode: int) -> None:
        info = tarfile.TarInfo(name)
        info.mode, info.mtime = mode, int(time.time())
        self._put(info, data)

    def _put(self, info: tarfile.TarInfo, data: bytes) -> None:
        info.size = len(data)
        self._tar.addfile(info, io.BytesIO(data))
        if info.name != _LIST:
            self._count(info.name, len(data), hashlib.sha256(data).hexdigest())

    def _count(self, name: str, size: int, digest: str) -> None:
        self._listed[name] = (size, digest)
        self._copied.files += 1
        self._copied.bytes += size


class _Hashed(io.RawIOBase):
    """A file that is hashed while it is read."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file, self._hash = file, hashlib.sha256()

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes."""
        data = self._file.read(size)
        self._hash.update(data)
        return data

    def digest(self) -> str:
        """SHA-256 of what has been read, in hexadecimal digits."""
        return self._hash.hexdigest()


def restore(archive: Path, home: Path) -> Copied:
    """Puts an archive's files into a home that is empty or not there; all of them or none. Raises BackupError."""
    mode = _modes(archive)[1]
    if home.exists() and (not home.is_dir() or any(home.iterdir())):
        raise BackupError(f"{home} is not empty; choose another folder with --home, or move it away")
    partial: Path | None = None
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{home.name}.partial-", dir=home.parent))
        copied = _unpack(archive, mode, partial)
        if home.exists():
            home.rmdir()
        partial.rename(home)
    except _DAMAGE as error:
        raise BackupError(f"{archive} is damaged or no backup of crosscope ({error}); use another one") from error
    except OSError as error:
        raise BackupError(f"{archive} could not be restored to {home}: {error.strerror or error}") from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
    return copied


def _unpack(archive: Path, mode: Any, folder: Path) -> Copied:
    """Unpacks into an empty folder and checks each file. Raises BackupError, and what a damaged archive raises."""
    listing: dict[str, Any] = {}
    links: list[tarfile.TarInfo] = []
    with tarfile.open(archive, mode) as tar:
        for member in tar:
            if member.name == _LIST and (file := tar.extractfile(member)) is not None:
                listing = json.load(file)
            elif member.issym():
                links.append(member)  # last, so that no file is written to where one leads
            else:
                tar.extract(member, folder, filter="data")
    if not listing:
        raise BackupError(f"{archive} is cut short or no backup of crosscope: its list of files is missing")
    if listing["schema"] != _SCHEMA:
        raise BackupError(f"{archive} has the layout {listing['schema']}, and this crosscope reads {_SCHEMA}")
    for name, (size, digest) in listing["files"].items():
        found = folder / name
        if not found.is_file() or found.stat().st_size != size or _sha256(found) != digest:
            raise BackupError(f"{archive} is damaged: {name} is not what was put in; use another backup")
    for member in links:
        _link(member, folder)
    if (folder / FOLDER).is_dir():
        (folder / FOLDER).chmod(0o700)
    total = sum(size for size, _ in listing["files"].values())
    return Copied(
        len(listing["files"]), total, listing["left_out"], listing["gone"], links=list(listing.get("links", []))
    )


def _link(member: tarfile.TarInfo, folder: Path) -> None:
    """Makes a link as it was, wherever it leads; it itself lies below the folder. Raises ValueError, OSError."""
    path = folder / member.name
    if not path.parent.resolve().is_relative_to(folder.resolve()) or path.name in ("", "..", "."):
        raise ValueError(f"{member.name} would lie outside of the home")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(member.linkname)


def _modes(archive: Path) -> tuple[Any, Any]:
    """How tarfile writes and reads an archive of this name. Raises BackupError."""
    if archive.suffix not in _MODES:
        raise BackupError(f"{archive.name} must end in .tar, .tar.gz, .tgz or .tar.xz")
    return _MODES[archive.suffix]


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
