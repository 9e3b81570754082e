"""How long the checkpoints of a job that failed or was cancelled stay, so that it can be retried; and what is in them.

A job that has succeeded needs none. Whether a job has ended is asked of its record, in one step with the word that
nobody can retry it any more. Knows nothing about RQ, nor what a checkpoint holds.
"""

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

from crosscope_worker.work import CHECKPOINTS

_STEP = "step-"
"""Begins the name of a training's checkpoint, a number follows (training/checkpoint.py)."""

Expire = Callable[[str, float], str]
"""What job_record.EXPIRE says of a job's id and the time before which it must have ended."""


def newest_step(checkpoints: Path) -> int | None:
    """The step of the newest whole checkpoint of a training; None without one."""
    steps = [int(path.name.removeprefix(_STEP)) for path in checkpoints.glob(f"{_STEP}[0-9]*")]
    return max(steps, default=None)


def retry_hint(folder: Path) -> str:
    """What the message of a job that has failed or was cancelled says of its checkpoints, for the end of a sentence."""
    step = newest_step(folder / CHECKPOINTS)
    return "" if step is None else f"crosscope retry {folder.name} goes on from step {step}."


def sweep(jobs: Path, expire: Expire, keep_s: float, keep_bytes: float, now: float) -> list[str]:
    """Removes checkpoints that nobody will go on from; returns the ids of the jobs that had them.

    Those of jobs that have succeeded, that ended more than `keep_s` before `now` (seconds since 1970), and then the
    oldest until the rest takes at most `keep_bytes`. Those of jobs without a record go by the age of their folder.
    """
    removed: list[str] = []
    kept: list[tuple[float, int, Path]] = []
    for folder in sorted(jobs.glob(f"*/{CHECKPOINTS}")):
        found = expire(folder.parent.name, now - keep_s)
        with contextlib.suppress(FileNotFoundError):  # another worker sweeps too
            changed_at = folder.stat().st_mtime
            if found == "gone" or (found == "unknown" and changed_at < now - keep_s):
                _remove(folder, removed)
            elif found == "kept":
                kept.append((changed_at, _size(folder), folder))
    total = sum(size for _, size, _ in kept)
    for _, size, folder in sorted(kept):
        if total > keep_bytes and expire(folder.parent.name, now + 1) == "gone":
            total -= size
            _remove(folder, removed)
    return removed


def _remove(folder: Path, removed: list[str]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    removed.append(folder.parent.name)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
