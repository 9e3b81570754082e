"""Plans in words: amounts, devices and downloads as rows and sentences. Knows no terminal and no page."""

from collections.abc import Sequence

from crosscope import _tables
from crosscope._plan_types import DevicePlan, DiskPlan, Download, PlanEntry

UNKNOWN = "unknown"


def amount(entry: PlanEntry) -> str:
    """How much an entry says, with its unit, or that it is unknown."""
    return UNKNOWN if entry.value is None else _tables.amount(entry.value, entry.unit)


def rows(entries: Sequence[PlanEntry]) -> list[tuple[str, str, str]]:
    """What, how much, and the note of each entry."""
    return [(entry.name, amount(entry), entry.note) for entry in entries]


def device_line(device: DevicePlan) -> str:
    """Whether a job fits on a device, in a sentence that begins with the device."""
    needed = device.needed_bytes
    parts = [] if needed is None else [f"needs {_tables.amount(needed, 'bytes')}"]
    if device.memory_bytes is not None:
        free = f", {_tables.amount(device.free_bytes, 'bytes')} free now" if device.free_bytes is not None else ""
        parts.append(f"has {_tables.amount(device.memory_bytes, 'bytes')}{free}")
    verdict = {True: "fits", False: "does not fit", None: "whether it fits is unknown"}[device.fits]
    return f"{device.name}: {verdict}" + (f" ({', '.join(parts)})" if parts else "")


def device_rows(device: DevicePlan) -> list[tuple[str, str, str]]:
    """Times and memory of a job on a device."""
    memory = [(f"memory, {entry.name}", amount(entry), entry.note) for entry in device.memory]
    return [*((f"time, {name}", much, note) for name, much, note in rows(device.times)), *memory]


def disk_line(disk: DiskPlan) -> str:
    """What a job takes of the disk at most, and whether there is room, in a sentence that begins with "disk"."""
    verdict = {True: "fits", False: "does not fit", None: "whether it fits is unknown"}[disk.fits]
    unknown = " and what is unknown" if any(entry.value is None for entry in disk.entries) else ""
    parts = [f"takes up to {_tables.amount(disk.peak_bytes, 'bytes')}{unknown} at one time"]
    parts.append(f"keeps {_tables.amount(disk.kept_bytes, 'bytes')}")
    if disk.free_bytes is not None:
        parts.append(f"{_tables.amount(disk.free_bytes, 'bytes')} free now")
    if disk.left_bytes is not None:
        parts.append(f"the home may take in {_tables.amount(disk.left_bytes, 'bytes')}")
    return f"disk: {verdict} ({', '.join(parts)})"


def download_line(download: Download) -> str:
    """What is read from the hub, with its size, and whether access must be asked for."""
    size = "size unknown" if download.size_bytes is None else _tables.amount(download.size_bytes, "bytes")
    gated = "; gated: ask for access on the hub" if download.gated else ""
    return f"{download.field} {download.source}: {size}{gated}"
