"""Whether the texts of a demo pair find room in this machine's memory.

Only warns: the job may run on another machine. Knows nothing about gRPC.
"""

import os
from collections.abc import Iterator

from crosscope_proto.recipe import DEMO_TEXT_MEMORY, DemoPairRecipe
from crosscope_server.jobs.estimate import Entry


def demo_entries(recipe: DemoPairRecipe) -> list[Entry]:
    """What a demo pair's texts take."""
    num = recipe.documents + recipe.conversations
    return [
        Entry("texts", num, "", "all of them lie in memory"),
        Entry("memory of texts", recipe.memory_bytes, "bytes", f"about {DEMO_TEXT_MEMORY} bytes a text"),
    ]


def too_little_memory(recipe: DemoPairRecipe) -> Iterator[str]:
    """A sentence where this machine's memory cannot hold the texts."""
    memory_bytes = _memory()
    if memory_bytes and recipe.memory_bytes > memory_bytes:
        yield (
            f"the texts take about {recipe.memory_bytes / 1e9:.1f} GB of memory, but this machine has "
            f"{memory_bytes / 1e9:.1f} GB: give fewer documents or conversations"
        )


def _memory() -> int:
    """Memory of this machine in bytes; 0 if unknown."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return 0
