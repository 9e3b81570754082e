"""What lies in a home and is of no use any more: found by rules with a stated age, and removed. Knows no process.

Every rule is safe while processes run: what they may still read is no garbage, or they make it again.
"""

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from crosscope_proto import artefacts
from crosscope_proto.folders import bytes_of
from crosscope_store.moves import leftovers
from crosscope_store.remote import Store

_PARTIAL_AFTER_S = 3600.0
"""What a process writes appears by a rename; what is older than this and was never renamed has been left behind."""
_DAY_S = 86_400.0
_HELD = ("checkpoints", "trained")
"""Folders of a job that a retry, or a person, may still want. The job worker removes checkpoints by their own rule."""


@dataclass(frozen=True)
class Keep:
    """What stays."""

    versions: int = 2
    """Versions of each crosscoder, the one that counts among them."""
    jobs_days: float = 90
    """Logs, recipes and results of jobs that have ended, and labels that were refused."""
    activations_days: float = 30
    """Activations that were made for trainings."""


@dataclass(frozen=True)
class Garbage:
    """A file or folder that may go."""

    path: Path | str
    """In the home; of a store, below its root."""
    kind: str
    """Why it may go, as a part of a sentence."""
    bytes: int
    store: Store | None = None
    """Where it lies, if not in the home."""


def find(home: Path, keep: Keep, now: float | None = None) -> list[Garbage]:
    """Everything in a home that may go, the largest first. `now` in seconds since 1970, by default the clock's."""
    now = time.time() if now is None else now
    kinds = dict(
        [
            *_left_behind(home, now),
            *_versions(home, keep.versions),
            *_indices(home),
            *_older(
                home, "activations/*", now - keep.activations_days * _DAY_S, "activations that jobs can make again"
            ),
            *_older(home, "labels/*.refused", now - keep.jobs_days * _DAY_S, "labels that the server refused"),
            *_jobs(home, now - keep.jobs_days * _DAY_S),
        ]
    )
    outermost = [path for path in kinds if not any(parent in kinds for parent in path.parents)]
    found = [Garbage(path, kinds[path], bytes_of(path)) for path in outermost]
    return sorted(found, key=lambda each: -each.bytes)


def find_in_store(store: Store, now: float | None = None) -> list[Garbage]:
    """What uploads that died have left in a store. Raises StoreError, EntryError."""
    found = leftovers(store, time.time() if now is None else now)
    return [Garbage(path, "uploads to the store that died", size, store) for path, size in sorted(found.items())]


def remove(garbage: Garbage) -> str | None:
    """Removes it; returns why that failed, or None."""
    try:
        if garbage.store is not None:
            garbage.store.remove_all(str(garbage.path))
            return None
        path = Path(garbage.path)
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    except OSError as error:
        return f"{garbage.path}: {error.strerror or error}"
    return None


def _left_behind(home: Path, now: float) -> Iterator[tuple[Path, str]]:
    for part in ("pairs", "crosscoders", "jobs", "looks", "labels", "activations"):
        for name in (".partial-*", ".tmp-*"):
            for path in (home / part).rglob(name):
                if _newest(path) < now - _PARTIAL_AFTER_S:
                    yield path, "half-written by a process that died"


def _versions(home: Path, keep: int) -> Iterator[tuple[Path, str]]:
    for crosscoder in sorted((home / "crosscoders").glob("*")):
        try:
            current = (crosscoder / "CURRENT").read_text("utf-8").strip()
        except OSError:
            continue  # nothing says which one counts, so all stay
        versions = [path for path in (crosscoder / "versions").glob("[!.]*") if path.name != current]
        versions = [
            path for path in versions if not (path / artefacts.STORE_NOTE).exists()
        ]  # the store's own rule holds
        newest_first = sorted(versions, reverse=True)  # ids begin with their time; folders' times change in a copy
        for path in newest_first[max(keep, 1) - 1 :]:
            yield path, "versions that newer ones replaced"


def _indices(home: Path) -> Iterator[tuple[Path, str]]:
    for path in (home / artefacts.SEARCH).glob("*/*.arrow"):
        version = path.stem.rpartition("-")[0]
        if not Path(artefacts.version_folder(home, path.parent.name, version)).is_dir():
            yield path, "search indices of versions that are gone"


def _older(home: Path, pattern: str, before: float, kind: str) -> Iterator[tuple[Path, str]]:
    for path in sorted(home.glob(pattern)):
        if max(_newest(path), _read(path)) < before:
            yield path, kind


def _jobs(home: Path, before: float) -> Iterator[tuple[Path, str]]:
    for folder in sorted((home / "jobs").glob("*")):
        if any((folder / each).exists() for each in _HELD) or not _has_ended(folder):
            continue
        if _newest(folder) < before:
            yield folder, "logs, recipes and results of old jobs"


def _has_ended(folder: Path) -> bool:
    """Whether the last line of a job's log is the job's end."""
    try:
        last = (folder / artefacts.JOB_LOG).read_bytes().splitlines()[-1]
        return bool(json.loads(last).get("event") == "end")
    except (OSError, ValueError, IndexError, AttributeError):
        return False


def _read(path: Path) -> float:
    """When a file, or one in a folder, was last read, as far as the disk says so: a training may read it now."""
    files = path.rglob("*") if path.is_dir() else (path,)
    try:
        return max((each.stat().st_atime for each in files if each.is_file()), default=0.0)
    except FileNotFoundError:
        return float("inf")


def _newest(path: Path) -> float:
    """When a file, or anything in a folder, was last changed."""
    files = path.rglob("*") if path.is_dir() else ()
    try:
        return max([path.stat().st_mtime, *(each.lstat().st_mtime for each in files)])
    except FileNotFoundError:  # somebody else removes it
        return float("inf")
