"""How large folders are. Reads names and sizes, never contents."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path


def bytes_of(path: Path) -> int:
    """The bytes of a file, or of all files below a folder.

    What goes away meanwhile, or may not be looked at, counts nothing; neither does what links lead to.
    """
    return sum(_sizes(path)) if path.is_dir() else _size(path)


def _sizes(folder: Path) -> Iterator[int]:
    for where, _, names in os.walk(folder):
        for name in names:
            yield _size(f"{where}/{name}")


def _size(path: str | Path) -> int:
    try:
        found = os.lstat(path)
    except OSError:
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0
