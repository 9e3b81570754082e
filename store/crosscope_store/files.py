"""The files of a folder that are published, and what hears of their bytes. Knows no store."""

from collections.abc import Callable, Iterator
from pathlib import Path

from crosscope_store.entries import is_safe
from crosscope_store.errors import EntryError

Tick = Callable[[int], None]
"""Hears of bytes as they are read or written. What it raises ends the work."""


def idle(_num_bytes: int) -> None:
    """A Tick that does nothing."""


def files_of(folder: Path) -> Iterator[tuple[str, Path]]:
    """The files of a folder that are published, by their path with / between; hidden ones are ours and stay."""
    for path in sorted(folder.rglob("*")):
        file = path.relative_to(folder).as_posix()
        if path.is_file() and not any(part.startswith(".") for part in file.split("/")):
            if not is_safe(file):
                raise EntryError(f"{path} cannot be published: a name there has letters, digits, '.', '_' and '-'")
            yield file, path


def bytes_behind(folder: Path) -> int:
    """The bytes of all files below a folder; a link counts as what it leads to, because that is what is published."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
