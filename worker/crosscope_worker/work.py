"""What a job is given: a workspace to write in and a way to report. Knows nothing about queues, Redis or gRPC.

A job is a plain function `(recipe, workspace, progress) -> manifest` (see jobs/kinds.py).
"""

import datetime
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from crosscope_proto.artefacts import OWN_PATHS, CrosscoderManifest, PairManifest
from crosscope_proto.labels import MadeLabels
from crosscope_proto.looks import LookManifest
from crosscope_proto.roots import Roots
from crosscope_store.shelf import ALONE, Shelf
from crosscope_worker.disk import write_whole

Manifest = CrosscoderManifest | PairManifest | LookManifest | MadeLabels

CHECKPOINTS = "checkpoints"
"""Folder below a job's own, from which a later attempt goes on. Removed once the job has ended."""
ANSWERS = "answers.jsonl"
"""File below the checkpoints of a job that labels: every answer that came."""
FIRST_DAY = "first-day"
"""File below a job's folder: the day of its first attempt, YYYY-MM-DD."""

_OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""What torch's allocator on the CPU, CUDA's driver and cuBLAS say in a RuntimeError."""


class Stopped(Exception):
    """Ends an attempt though nothing is wrong with its job. A job cleans up and lets it pass."""


class Cancelled(Stopped):
    """Someone asked the job to stop. Raised by Progress."""


class LostClaim(Stopped):
    """Another attempt has taken over this job; this one must publish nothing."""


class RankError(ValueError):
    """The error of one of the processes that train together, which is its cause: it names the rank."""

    def __init__(self, rank: int, num_ranks: int, error: BaseException) -> None:
        """Takes over the notes of `error`."""
        self.where = f"rank {rank} of {num_ranks}"
        super().__init__(f"{self.where}: {error}")
        self.__cause__ = error
        for note in getattr(error, "__notes__", ()):
            self.add_note(note)


class Progress(Protocol):
    """Reports how far a job is. Cheap enough to call every step."""

    def __call__(
        self,
        stage: str,
        fraction: float,
        message: str = "",
        *,
        step: int = 0,
        metrics: Mapping[str, float] | None = None,
        rel_norms: Sequence[int] = (),
    ) -> None:
        """Reports that `fraction` (0 to 1) of `stage` is done.

        `rel_norms` are numbers of latents in bins of relative norm, from 0 to 1.

        Raises Cancelled when the job was asked to stop, and LostClaim when another attempt has taken over.
        """
        ...


@dataclass(frozen=True)
class Workspace:
    """Where a job reads and writes."""

    home: Path
    """The artefact folder (crosscope_proto.artefacts)."""
    folder: Path
    """The job's own folder, kept over attempts."""
    fence: Callable[[], None]
    """Called right before anything is published; raises LostClaim or Cancelled if this attempt no longer may."""
    device: str = "cpu"
    """Where models and training run, a torch device."""
    data_roots: tuple[Path, ...] = ()
    """Folders besides the home from which recipes may have files read."""
    label_addresses: tuple[str, ...] = ()
    """Addresses besides those of this machine that recipes may have called (addresses.check_address)."""
    submitted_from: Path | None = None
    """Folder from which the job was submitted, where relative paths of data are looked up too."""
    beat_s: float = 60
    """How long a process of the job may stand still before it counts as hung."""
    silent_s: float = 1800
    """How long the job may go without a report of progress."""
    ray_address: str | None = None
    """The Ray cluster on which trainings on several devices run; None: they run on this machine."""
    shelf: Shelf = ALONE
    """The published things of the home, and the store that they come from and go to."""

    @property
    def roots(self) -> Roots:
        """What a recipe may have read."""
        return Roots((self.home, *self.data_roots), [self.home / name for name in OWN_PATHS])

    @property
    def checkpoints(self) -> Path:
        """Folder from which a later attempt goes on; it need not exist."""
        return self.folder / CHECKPOINTS

    def first_day(self) -> str:
        """The day (UTC) on which the job's first attempt asked for it, YYYY-MM-DD; later attempts get the same.

        Raises OSError if it cannot be written down.
        """
        path = self.folder / FIRST_DAY
        try:
            return datetime.date.fromisoformat(path.read_text("utf-8").strip()).isoformat()
        except (FileNotFoundError, ValueError):
            pass  # none yet, or a machine that died while it was written
        self.folder.mkdir(parents=True, exist_ok=True)
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        write_whole(path, f"{today}\n")
        return today


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine ran out of memory: by the error's type, or by what it says."""
    says_so = any(phrase in str(error) for phrase in _OUT_OF_MEMORY)
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or says_so


def exhausted(error: BaseException) -> str:
    """Which device's memory ran out, in torch's words, for a sentence; "the device" where the error does not say."""
    told = re.search(r"GPU (\d+) has a total capacity", str(error))
    if told is not None:
        return f"cuda:{told[1]}"
    is_cpu = isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)
    return "this machine" if is_cpu else "the device"


def silent(
    stage: str,
    fraction: float,
    message: str = "",
    *,
    step: int = 0,
    metrics: Mapping[str, float] | None = None,
    rel_norms: Sequence[int] = (),
) -> None:
    """A Progress that reports nothing."""
