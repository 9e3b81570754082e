"""The folders that jobs may read: whoever may submit a recipe must not read the rest of the machine by it.

Paths are resolved before they are judged, symlinks and `..` included, and files are judged again once they are open.
Knows neither recipes nor what is read.
"""

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from crosscope_proto.artefacts import PairManifest

SETTING = "CROSSCOPE_WORKER_DATA_ROOTS"
"""Environment variable of the job worker that names more folders."""
_NEVER = tuple(map(Path, ("/proc", "/sys", "/dev")))
"""What lies below them is no data, whatever the roots are."""
_WILD = frozenset("*?[")


class RootError(ValueError):
    """A path that jobs may not read; the sentence names it and the setting that would allow it."""


class Roots:
    """The folders below which jobs may read."""

    def __init__(self, folders: Sequence[Path], closed: Sequence[Path] = ()) -> None:
        """`closed` are folders that are never read, whatever the others are."""
        self.folders = tuple(dict.fromkeys(folder.expanduser().resolve() for folder in folders))
        """Absolute, without symlinks."""
        self._closed = tuple(folder.resolve() for folder in closed)

    def allows(self, path: Path) -> bool:
        """Whether what `path` leads to lies in one of the folders. It need not exist."""
        try:
            self.check(path)
        except RootError:
            return False
        return True

    def check(self, path: Path) -> Path:
        """What a path leads to, absolute and without symlinks.

        Raises RootError unless it lies in one of the folders.
        """
        found = _resolved(path)
        if any(found.is_relative_to(never) for never in _NEVER):
            raise RootError(f"{path} is never read: what lies below {', '.join(map(str, _NEVER))} is no data")
        if any(map(found.is_relative_to, self._closed)):
            raise RootError(f"{path} is never read: {', '.join(map(str, self._closed))} are crosscope's own, no data")
        if not any(map(found.is_relative_to, self.folders)):
            leads = "" if found == path else f" (it leads to {found})"
            raise RootError(f"{path}{leads} lies outside the folders that jobs may read; {self.advice()}")
        return found

    def check_below(self, folder: Path, path: str) -> Path:
        """A path that a person wrote, a relative one below `folder`. Raises RootError as `check`."""
        try:
            found = folder / Path(path).expanduser()
        except RuntimeError as error:  # no such user
            raise RootError(f"{path[:200]!r} is no path: {error}") from error
        self.check(found)
        return found

    def advice(self) -> str:
        """What allows more, for messages."""
        return (
            f"they are {', '.join(map(str, self.folders))}; whoever runs the job worker adds one with {SETTING} or "
            "`crosscope up --data-root`"
        )

    def files(self, folder: Path, pattern: str) -> list[Path]:
        """The regular files below `folder` that match a glob, sorted by name, as they were found.

        Raises RootError if the part of the pattern that has no wildcards, or a file, lies outside the folders.
        """
        parts = Path(pattern).parts
        first = next((i for i, part in enumerate(parts) if _WILD.intersection(part)), len(parts))
        if ".." in parts[first:]:
            raise RootError(f"{pattern} leaves a folder behind a wildcard; write it without '..'")
        # Judged before anything is listed, so that a refusal does not tell what exists.
        start = folder.joinpath(*parts[:first])
        self.check(start)
        if first == len(parts):
            found = [start] if start.exists() else []
        else:
            found = sorted(start.glob(str(Path(*parts[first:]))))
        return [path for path in found if self.check(path).is_file()]

    def open(self, path: Path) -> BinaryIO:
        """Opens a regular file for reading. Raises RootError if it is none or lies outside, OSError if it cannot."""
        found = self.check(path)
        # Without waiting: a FIFO that took the file's place is refused below, not waited for.
        descriptor = os.open(found, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            opened = os.fstat(descriptor)
            if not stat.S_ISREG(opened.st_mode):
                raise RootError(f"{path} is no regular file")
            if self.check(path) != found or not os.path.samestat(opened, found.stat()):
                raise RootError(f"{path} was replaced while it was opened; submit the job again")
            return os.fdopen(descriptor, "rb")
        except BaseException:
            os.close(descriptor)
            raise


def _resolved(path: Path) -> Path:
    try:
        return path.expanduser().resolve()
    except (ValueError, OSError, RuntimeError) as error:  # a NUL, a name too long, links in a circle, no such user
        raise RootError(f"{str(path)[:200]!r} is no path: {error}") from error


def check_pair_folders(manifest: PairManifest, roots: Roots) -> None:
    """Raises RootError if a model, adapter or tokenizer of a pair is a folder that jobs may not read. Hub ids pass.

    A folder of the current one that has the name of a hub id counts as a folder, for that is what would be loaded.
    """
    for source in dict.fromkeys((manifest.base, manifest.chat, manifest.tokenizer, manifest.adapter)):
        if source is not None and (Path(source).is_absolute() or Path(source).exists()):
            try:
                roots.check(Path(source))
            except RootError as error:
                raise RootError(f"pair {manifest.name!r}: {error}") from error
