"""Whether what a job takes finds room on this machine: its disk, and the memory of the demo pair's texts.

Only warns: the job may run on another machine, and room may be made until it runs. Knows nothing about gRPC.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from crosscope_proto.recipe import DEMO_TEXT_MEMORY, DemoPairRecipe
from crosscope_server.jobs.estimate import Entry


def demo_entries(recipe: DemoPairRecipe) -> list[Entry]:
    """What a demo pair takes, in bytes."""
    num = recipe.documents + recipe.conversations
    return [
        Entry("texts", num, "", "all of them lie in memory"),
        Entry("memory of texts", recipe.memory_bytes, "bytes", f"about {DEMO_TEXT_MEMORY} bytes a text"),
        Entry("files of texts", recipe.disk_bytes, "bytes", "disk, kept"),
    ]


def too_little(
    entries: Sequence[Entry], home: Path, memory_bytes: int | None = None, left_bytes: int | None = None
) -> Iterator[str]:
    """Sentences where the disk of `home`, or this machine's memory, cannot hold what a plan's entries say.

    `left_bytes` is what the home may still take in by its own limit.
    """
    needed = sum(each.value or 0 for each in entries if each.unit == "bytes" and each.note.startswith("disk"))
    try:
        free = shutil.disk_usage(home).free
    except OSError:
        free = None
    if free is not None and needed > free:
        yield (
            f"the job takes up to {_gb(needed)} of disk, but {_gb(free)} are free where {home} lies: free some, or ask "
            "for less"
        )
    if left_bytes is not None and needed > left_bytes:
        yield (
            f"the job takes up to {_gb(needed)} of disk, but the home may take in {_gb(left_bytes)} more "
            "(CROSSCOPE_SERVER_HOME_GB): remove some with `crosscope gc`, or ask for less"
        )
    memory_bytes = _memory() if memory_bytes is None else memory_bytes
    for each in entries:
        if each.name == "memory of texts" and each.value and memory_bytes and each.value > memory_bytes:
            yield (
                f"the texts take about {_gb(each.value)} of memory, but this machine has {_gb(memory_bytes)}: give "
                "fewer documents or conversations"
            )


def _memory() -> int:
    """Memory of this machine in bytes; 0 if unknown."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return 0


def _gb(size_bytes: float) -> str:
    return f"{size_bytes / 1e9:.1f} GB"
