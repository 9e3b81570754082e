"""Files and folders that are there whole or not at all, and their hashes. Knows nothing about what is written.

No other module of the worker renames. A half-written file lies beside its target under a name that begins with PARTIAL;
a killed process leaves it behind.
"""

import contextlib
import ctypes
import errno
import hashlib
import os
import shutil
import sys
import uuid
from collections.abc import Generator
from pathlib import Path

from safetensors import SafetensorError

from crosscope_worker.ticks import Tick, idle_tick

PARTIAL = ".partial-"
_CHUNK = 1 << 23
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
"""From Linux's fcntl.h and fs.h."""


def sync(path: Path) -> None:
    """Waits until a file's content, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Waits until everything in a folder is on the disk."""
    for path in sorted(folder.rglob("*"), reverse=True):
        sync(path)
    sync(folder)


def move(source: Path, target: Path) -> None:
    """Renames a written and synced `source` to `target`, over a file of that name, and waits for the disk."""
    source.replace(target)
    sync(target.parent)


def write_whole(path: Path, text: str) -> None:
    """Writes a text file that is there whole or as it was before. Raises OSError."""
    with whole(path) as partial:
        partial.write_text(text, "utf-8")


@contextlib.contextmanager
def whole(path: Path) -> Generator[Path]:
    """Gives an empty file to write; it is synced and takes the place of `path` when the block ends without an error.

    Until then `path` is as it was. Raises OSError, and what the block raises.
    """
    # In a folder of its own, since some libraries first write a file beside it under a name of their choice.
    folder = path.parent / f"{PARTIAL}{uuid.uuid4().hex}"
    folder.mkdir()
    partial = folder / path.name
    try:
        partial.touch()
        mode = partial.stat().st_mode
        yield partial
        partial.chmod(mode)  # These libraries make files that only the owner can read.
        sync(partial)
        move(partial, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def whole_folder(path: Path) -> Generator[Path]:
    """Gives an empty folder to fill; it is synced and renamed to `path` when the block ends without an error.

    Removes what a killed process had half written. Raises OSError, also where `path` is there and not empty, and what
    the block raises.
    """
    partial = path.with_name(f"{PARTIAL}{path.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        sync_tree(partial)
        move(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def first_folder(path: Path) -> Generator[Path]:
    """Gives an empty folder to fill; it is renamed to `path` when the block ends without an error.

    Several processes may fill one at once: the first to end counts, and what the others wrote goes. Nothing waits for
    the disk: who reads `path` after a power cut must tell by its files' hashes whether they are whole. A killed process
    leaves a folder whose name begins with PARTIAL. Raises OSError, and what the block raises.
    """
    partial = path.with_name(f"{PARTIAL}{path.name}-{uuid.uuid4().hex}")
    partial.mkdir(parents=True)
    try:
        yield partial
        try:
            partial.rename(path)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def replace_folder(target: Path, written: Path) -> None:
    """Moves a written folder to `target`. A folder that is there is exchanged for it, so that one always exists.

    Where the file system cannot exchange two folders, none exists between two renames; if the process is killed just
    then, none exists until the next attempt. Raises OSError; the old folder then stays.
    """
    if not target.exists():
        move(written, target)
    elif exchanged(target, written):
        sync(target.parent)
    else:
        replaced = written.with_suffix(".old")
        shutil.rmtree(replaced, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):  # another process of this home has moved it away just now
            target.rename(replaced)
        try:
            move(written, target)
        except OSError:
            with contextlib.suppress(FileNotFoundError):
                replaced.rename(target)
            raise
        shutil.rmtree(replaced, ignore_errors=True)


def exchanged(one: Path, other: Path) -> bool:
    """Exchanges two folders in one step. False where the system cannot; Linux can, on most file systems."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    return renameat2 is not None and not renameat2(
        _AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE
    )


def sha256(path: Path, tick: Tick = idle_tick) -> str:
    """Hash of a file's content; `tick` hears of the bytes as they are read, at least each second."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            tick(len(chunk))
    return digest.hexdigest()


def is_no_room(error: OSError | SafetensorError) -> bool:
    """Whether a write failed because the disk, a quota or the largest size of a file was reached."""
    if isinstance(error, OSError):
        return error.errno in _NO_ROOM
    return any(f"os error {code}" in str(error) for code in _NO_ROOM)
