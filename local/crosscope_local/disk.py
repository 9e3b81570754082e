"""Files that are replaced as a whole. Knows nothing about their content."""

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Replaces a file: writes beside it, syncs and renames. After a crash the old or the new text is there, whole."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("w", encoding="utf-8") as file:
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
