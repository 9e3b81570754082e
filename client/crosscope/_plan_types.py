"""What a job would take, and what its log says: plain values, which ask nobody."""

from dataclasses import dataclass

from crosscope._public import public
from crosscope._types import JobInfo


@public
@dataclass(frozen=True)
class PlanEntry:
    """An amount that a job takes or makes, as far as it is known before the job runs."""

    name: str
    value: float | None
    """None: not known; the note says why."""
    unit: str
    """"", "share", "tokens", "bytes" or "seconds"."""
    note: str
    """A remark on how it was found or what it means; may be empty."""


@public
@dataclass(frozen=True)
class DevicePlan:
    """What a job takes on one device."""

    name: str
    memory_bytes: int | None
    """All of its memory; None if unknown."""
    free_bytes: int | None
    """What of the memory is free now; None if unknown."""
    memory: tuple[PlanEntry, ...]
    """What the job needs of it, by what it is for; empty if unknown."""
    fits: bool | None
    """Whether the job fits into its memory; None if unknown."""
    ways_out: tuple[str, ...]
    """What would fit, in sentences; empty where the job fits."""
    times: tuple[PlanEntry, ...]
    """How long stages take there, and the "whole job"."""
    rates: str = ""
    """Where the rates come from that times are scaled from; empty where none were measured on such a device."""

    @property
    def needed_bytes(self) -> float | None:
        """The memory that the job needs; None if unknown."""
        return sum(entry.value or 0 for entry in self.memory) if self.memory else None


@public
@dataclass(frozen=True)
class Download:
    """Something that a job reads from the hub."""

    field: str
    """The recipe's field that names it."""
    source: str
    size_bytes: int | None
    """None if unknown."""
    gated: bool | None
    """Whether one must ask for access on the hub first; None if unknown."""


@public
@dataclass(frozen=True)
class DiskPlan:
    """What a job writes to the disk of the home."""

    entries: tuple[PlanEntry, ...] = ()
    """What, in bytes at most, with how long it stays."""
    peak_bytes: int = 0
    """Most of it that lies there at one time, as far as sizes are known."""
    kept_bytes: int = 0
    """What of it stays after the job, as far as sizes are known."""
    free_bytes: int | None = None
    """What is free where the home lies; None if unknown."""
    left_bytes: int | None = None
    """What the home may still take in; None without a limit."""
    fits: bool | None = None
    """Whether there is room for it now; None if unknown."""


@public
@dataclass(frozen=True)
class Plan:
    """A checked recipe: what its job would take, and warnings."""

    job: JobInfo
    """The job that the recipe describes; it has no id."""
    entries: tuple[PlanEntry, ...]
    """Amounts that are the same on every device."""
    warnings: tuple[str, ...]
    devices: tuple[DevicePlan, ...] = ()
    """The same job on each device: those of the job workers that listen now, or the one that was asked for."""
    downloads: tuple[Download, ...] = ()
    """What it reads from the hub, as far as that is not in the hub's cache of the server."""
    disk: DiskPlan = DiskPlan()
    """What it writes to the disk."""


@public
@dataclass(frozen=True)
class LogLine:
    """A line of a job's log."""

    at: float
    """Seconds since 1970."""
    attempt: int
    event: str
    """"start", "stage", "say", "error" or "end"."""
    text: str


@public
@dataclass(frozen=True)
class JobLog:
    """The end of a job's log. What looks like a secret is masked in it."""

    lines: tuple[LogLine, ...]
    """Oldest first."""
    num_before: int
    """Lines before these that the server read and did not send."""
    has_more: bool
    """Whether the log has more before what the server read."""
