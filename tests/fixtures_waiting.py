"""How tests wait: for what happens, never for a time that should be enough.

The limit only ends a test that waits for what never happens; no machine is so busy that it comes to it.
"""

import asyncio
import time
from collections.abc import Callable

PATIENCE_S = 120.0


def until(happens: Callable[[], object], patience_s: float = PATIENCE_S, *, seen: Callable[[], object] = str) -> None:
    """Returns as soon as `happens` holds, for facts without an event. What was `seen` stands in the error."""
    ends_at = time.monotonic() + patience_s
    while not happens():
        assert time.monotonic() < ends_at, f"it has not happened within {patience_s:g} s {seen()}"
        time.sleep(0.02)


async def happening(happens: Callable[[], object]) -> None:
    """Returns as soon as `happens` holds; the event loop goes on meanwhile."""
    async with asyncio.timeout(PATIENCE_S):
        while not happens():
            await asyncio.sleep(0.001)
