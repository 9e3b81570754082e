"""Finds files below the roots, and judges them again once they are open. Knows neither recipes nor contents."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from crosscope_proto.artefacts import PairManifest
from crosscope_proto.roots import RootError, Roots

_WILD = frozenset("*?[")


def files_below(roots: Roots, folder: Path, pattern: str) -> list[Path]:
    """The regular files below `folder` that match a glob, sorted by name, as they were found.

    Raises RootError if the part of the pattern that has no wildcards, or a file, lies outside the folders.
    """
    parts = Path(pattern).parts
    first = next((i for i, part in enumerate(parts) if _WILD.intersection(part)), len(parts))
    if ".." in parts[first:]:
        raise RootError(f"{pattern} leaves a folder after a wildcard; write it without '..'")
    # Judged before anything is listed, so that a refusal does not tell what exists.
    start = folder.joinpath(*parts[:first])
    roots.check(start)
    if first == len(parts):
        found = [start] if start.exists() else []
    else:
        found = sorted(start.glob(str(Path(*parts[first:]))))
    return [path for path in found if roots.check(path).is_file()]


def open_file(roots: Roots, path: Path) -> BinaryIO:
    """Opens a regular file for reading. Raises RootError if it is none or lies outside, OSError if opening fails."""
    found = roots.check(path)
    # Without waiting: a FIFO that took the file's place is refused below, not waited for.
    descriptor = os.open(found, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        opened = os.fstat(descriptor)
        if not stat.S_ISREG(opened.st_mode):
            raise RootError(f"{path} is no regular file")
        if roots.check(path) != found or not os.path.samestat(opened, found.stat()):
            raise RootError(f"{path} was replaced while it was opened; submit the job again")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def check_pair_folders(manifest: PairManifest, roots: Roots) -> None:
    """Raises RootError if a model, adapter or tokenizer of a pair is a folder that jobs may not read. Hub ids pass.

    A folder in the current directory that is named like a hub id counts as a folder, for it is what would be loaded.
    """
    for source in dict.fromkeys((manifest.base, manifest.chat, manifest.tokenizer, manifest.adapter)):
        if source is not None and (Path(source).is_absolute() or Path(source).exists()):
            try:
                roots.check(Path(source))
            except RootError as error:
                raise RootError(f"pair {manifest.name!r}: {error}") from error
