"""How large folders are. Reads names and sizes, never contents."""

import contextlib
from pathlib import Path


def bytes_of(path: Path) -> int:
    """The bytes of a file, or of all files below a folder. What goes away meanwhile counts nothing."""
    total = 0
    for each in path.rglob("*") if path.is_dir() else (path,):
        with contextlib.suppress(FileNotFoundError):
            total += each.lstat().st_size if each.is_file() else 0
    return total
