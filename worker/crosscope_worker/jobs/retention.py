"""The retention of checkpoints: those of a failed or cancelled job stay for a while, so that it can be retried.

A job that has succeeded needs none. The job's record says whether the job has ended, and in the same step notes that it
can no longer be retried. Knows nothing about RQ or the content of a checkpoint.
"""

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

from crosscope_proto.folders import bytes_of
from crosscope_worker.work import ANSWERS, CHECKPOINTS

_STEP = "step-"
"""Prefix of a training checkpoint's name; a number follows (training/checkpoint.py)."""

Expire = Callable[[str, float], str]
"""The answer of job_record.EXPIRE for a job's id and the time before which the job must have ended."""


def newest_step(checkpoints: Path) -> int | None:
    """The step of the newest whole checkpoint of a training; None without one."""
    steps = [int(path.name.removeprefix(_STEP)) for path in checkpoints.glob(f"{_STEP}[0-9]*")]
    return max(steps, default=None)


def retry_hint(folder: Path) -> str:
    """The end of the message of a failed or cancelled job: where a retry continues; empty without a checkpoint."""
    if (folder / CHECKPOINTS / ANSWERS).exists():
        return f"crosscope retry {folder.name} asks only what was not answered."
    step = newest_step(folder / CHECKPOINTS)
    return "" if step is None else f"crosscope retry {folder.name} continues from step {step}."


def sweep(jobs: Path, expire: Expire, keep_s: float, keep_bytes: float, now: float) -> list[str]:
    """Removes checkpoints that no job will continue from; returns the ids of their jobs.

    Removed are the checkpoints of jobs that succeeded or that ended more than `keep_s` before `now` (seconds since
    1970), then the oldest until the rest takes at most `keep_bytes`. A job without a record counts by the age of its
    folder.
    """
    removed: list[str] = []
    kept: list[tuple[float, int, Path]] = []
    for folder in sorted(jobs.glob(f"*/{CHECKPOINTS}")):
        found = expire(folder.parent.name, now - keep_s)
        with contextlib.suppress(FileNotFoundError):  # another worker sweeps at the same time
            changed_at = folder.stat().st_mtime
            if found == "gone" or (found == "unknown" and changed_at < now - keep_s):
                _remove(folder, removed)
            elif found == "kept":
                kept.append((changed_at, bytes_of(folder), folder))
    total = sum(size for _, size, _ in kept)
    for _, size, folder in sorted(kept):
        if total > keep_bytes and expire(folder.parent.name, now + 1) == "gone":
            total -= size
            _remove(folder, removed)
    return removed


def _remove(folder: Path, removed: list[str]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    removed.append(folder.parent.name)
