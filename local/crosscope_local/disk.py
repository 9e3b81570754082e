"""Files that are replaced as a whole. Knows nothing about their content."""

import contextlib
import os
from pathlib import Path


def make_home(home: Path) -> None:
    """Makes a home that nobody but its owner may look into, unless there is one. Raises OSError."""
    with contextlib.suppress(FileExistsError):
        home.mkdir(mode=0o700, parents=True)


def write_whole(path: Path, text: str, mode: int = 0o666) -> None:
    """Replaces a file: writes beside it, syncs and renames. After a crash the old or the new text is there, whole.

    `mode` is the file's, less what the umask takes away.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.unlink(missing_ok=True)
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
