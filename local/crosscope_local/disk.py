"""Files that are written whole. Knows nothing about what is written."""

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Writes a file beside, syncs it and renames it into place: after a crash the old text is there or the new one."""
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
