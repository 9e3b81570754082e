"""The folders that jobs may read for a recipe. Nobody can read the rest of the machine by submitting a recipe.

A path is resolved before it is judged: symlinks and `..` are followed. Opens no file; knows no recipe.
"""

from collections.abc import Sequence
from pathlib import Path

SETTING = "CROSSCOPE_WORKER_DATA_ROOTS"
"""Environment variable of the job worker that names more folders."""
_NEVER = tuple(map(Path, ("/proc", "/sys", "/dev")))
"""Folders of the system. They hold no data, so nothing below them is read, whatever the roots are."""


class RootError(ValueError):
    """A path that jobs may not read. The sentence names the path and the setting that would allow it."""


class Roots:
    """The folders below which jobs may read."""

    def __init__(self, folders: Sequence[Path], closed: Sequence[Path] = ()) -> None:
        """`closed` are folders that are never read, even where they lie in one of `folders`."""
        self.folders = tuple(dict.fromkeys(folder.expanduser().resolve() for folder in folders))
        """Absolute, without symlinks."""
        self._closed = tuple(folder.resolve() for folder in closed)

    def allows(self, path: Path) -> bool:
        """Whether `path` leads into one of the folders. It need not exist."""
        try:
            self.check(path)
        except RootError:
            return False
        return True

    def check(self, path: Path) -> Path:
        """The place that a path leads to, absolute and without symlinks.

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
        """A path that a person wrote; a relative one starts at `folder`. Raises RootError like `check`."""
        try:
            found = folder / Path(path).expanduser()
        except RuntimeError as error:  # no such user
            raise RootError(f"{path[:200]!r} is no path: {error}") from error
        self.check(found)
        return found

    def advice(self) -> str:
        """The end of a message: which folders are allowed, and how to add one."""
        return (
            f"they are {', '.join(map(str, self.folders))}; whoever runs the job worker adds one with {SETTING} or "
            "`crosscope up --data-root`"
        )


def _resolved(path: Path) -> Path:
    try:
        return path.expanduser().resolve()
    except (ValueError, OSError, RuntimeError) as error:  # a NUL, a name too long, links in a circle, no such user
        raise RootError(f"{str(path)[:200]!r} is no path: {error}") from error
