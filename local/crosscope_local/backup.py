"""Backups of a home: one tar file with everything that cannot be made again. Starts and stops no process.

Left out is what can be made again (LEFT_OUT), and, while an installation runs, the queue and the folders of jobs, which
change all the time. A database is copied by SQLite, so that the copy is whole while a server writes. The last member of
the file, INDEX, has the checksum of each file; a restore compares them before anything appears in the home.
"""

import fcntl
import hashlib
import io
import json
import os
import shutil
import sqlite3
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from crosscope_local.preflight import HomeLock, PreflightError
from crosscope_proto import __version__
from crosscope_proto.artefacts import SCHEMA_VERSION

INDEX = "backup.json"
LEFT_OUT = ("activations", "search", "cache", "logs", "supervisor.lock", "supervisor.json")
"""What of a home is made again by itself."""
OF_RUNNING = ("queue", "jobs")
"""What is copied only while nothing runs."""
_DATABASE = ".sqlite3"
_BESIDE_DATABASES = ("-wal", "-shm", "-journal")
_CHUNK = 1 << 20


class BackupError(Exception):
    """A backup that cannot be made or used; the text is one sentence that says what to do."""


@dataclass(frozen=True)
class Made:
    """What a backup or a restore did."""

    num_files: int
    num_bytes: int
    left_out: tuple[str, ...]
    """Folders that are not in the backup because the installation ran."""
    num_vanished: int
    """Files that were removed while they were to be copied: versions that were superseded long ago."""


def back_up(home: Path, target: Path) -> Made:
    """Writes a backup of a home to `target`, which must not exist. The file is its owner's alone: it holds tokens.

    Raises BackupError and OSError; nothing half-written is left.
    """
    if not home.is_dir():
        raise BackupError(f"There is no home at {home}; name it with --home.")
    if target.exists():
        raise BackupError(f"{target} exists; choose another name, or remove it first.")
    try:
        lock = HomeLock(home, "a backup")
    except PreflightError:
        return _write(home, target, OF_RUNNING)
    with lock:
        return _write(home, target, OF_RUNNING if _is_locked(home / "queue" / "lock") else ())


def restore(source: Path, home: Path) -> Made:
    """Puts a backup where no home is yet. The home appears by one rename, once every checksum has been compared.

    Raises BackupError and OSError; nothing half-written is left.
    """
    if home.exists() and (not home.is_dir() or any(home.iterdir())):
        raise BackupError(f"{home} is not empty; stop what runs there and move it away, or choose another with --home.")
    home.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{home.name}-restore-", dir=home.parent))
    try:
        made = _unpack(source, folder)
        if home.exists():
            home.rmdir()
        folder.rename(home)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return made


def _is_locked(path: Path) -> bool:
    """Whether a process holds the lock of a file, as a queue that runs without a supervisor does."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _write(home: Path, target: Path, left_out: tuple[str, ...]) -> Made:
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    index: dict[str, str] = {}
    num_bytes = num_vanished = 0
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w") as tar:  # noqa: PTH123
            for path in _files(home, left_out):
                name = path.relative_to(home).as_posix()
                try:
                    index[name] = _add_database(tar, path, name) if path.suffix == _DATABASE else _add(tar, path, name)
                except FileNotFoundError:
                    num_vanished += 1
                    continue
                num_bytes += path.stat().st_size
            facts = {"version": __version__, "schema_version": SCHEMA_VERSION, "made_at": time.time()}
            _add_bytes(tar, INDEX, json.dumps(facts | {"left_out": left_out, "files": index}).encode())
            tar.close()
            file.flush()
            os.fsync(file.fileno())
        partial.rename(target)
    finally:
        partial.unlink(missing_ok=True)
    return Made(len(index), num_bytes, tuple(name for name in left_out if (home / name).exists()), num_vanished)


def _files(home: Path, left_out: tuple[str, ...]) -> Iterator[Path]:
    """The files of a home that a backup holds. CURRENT comes before the versions of which it names one."""
    for path in sorted(home.rglob("*")):
        first = path.relative_to(home).parts[0]
        if first in LEFT_OUT or first in left_out or ".partial" in path.name or path.name == "lock":
            continue
        if path.name.endswith(tuple(f"{_DATABASE}{end}" for end in _BESIDE_DATABASES)):
            continue
        if path.is_file() and not path.is_symlink():
            yield path


def _add(tar: tarfile.TarFile, path: Path, name: str) -> str:
    """Adds a file; returns the checksum of what was added."""
    with path.open("rb") as file:
        info = tar.gettarinfo(name=path, arcname=name, fileobj=file)
        reader = _Hashing(file, info.size)
        tar.addfile(info, reader)  # pyright: ignore[reportArgumentType] (it only reads)
    return reader.digest.hexdigest()


def _add_database(tar: tarfile.TarFile, path: Path, name: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as of, closing(sqlite3.connect(copy)) as into:
            of.backup(into)
        copy.chmod(path.stat().st_mode & 0o777)
        return _add(tar, copy, name)


def _add_bytes(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


class _Hashing:
    """A file of a fixed size that is hashed while it is read; one that has become shorter ends in an OSError."""

    def __init__(self, file: io.BufferedReader, size: int) -> None:
        self._file, self._left = file, size
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(min(size, self._left) if size >= 0 else self._left)
        self._left -= len(data)
        self.digest.update(data)
        return data


def _unpack(source: Path, folder: Path) -> Made:
    try:
        with tarfile.open(source, mode="r:") as tar:
            tar.extractall(folder, filter="data")  # no links out of it, no absolute names, no devices
    except (tarfile.TarError, EOFError) as error:
        raise BackupError(f"{source} is no whole backup ({error}); use another copy.") from error
    try:
        facts = json.loads((folder / INDEX).read_bytes())
        files, schema, left_out = dict(facts["files"]), int(facts["schema_version"]), tuple(facts["left_out"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BackupError(f"{source} has no {INDEX} that can be read: it is no backup, or not whole.") from error
    if schema > SCHEMA_VERSION:
        raise BackupError(f"{source} was made by crosscope {facts['version']}, which is newer; install that one first.")
    (folder / INDEX).unlink()
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    if found.keys() != files.keys():
        raise BackupError(f"{source} lacks {len(files.keys() - found.keys())} of its files; use another copy.")
    for name, path in found.items():
        if _hash(path) != files[name]:
            raise BackupError(f"{name} in {source} is damaged: its checksum is another one; use another copy.")
    return Made(len(files), sum(path.stat().st_size for path in found.values()), left_out, 0)


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
