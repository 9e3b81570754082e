"""What writing files whole, and knowing them again, needs from the disk. Knows nothing about what is written."""

import errno
import hashlib
import os
from pathlib import Path

from safetensors import SafetensorError

from crosscope_worker.ticks import Tick, idle_tick

_CHUNK = 1 << 23
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def sync(path: Path) -> None:
    """Waits until a file's content, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, text: str) -> None:
    """Writes a file beside, syncs it, and renames it into place: it is there whole or as it was before."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, "utf-8")
    sync(beside)
    beside.replace(path)


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
