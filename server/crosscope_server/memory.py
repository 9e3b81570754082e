"""Memory of this process: what was freed goes back to the system, and what stays is not looked through for garbage.

glibc keeps what was freed between pieces that are still in use. After a storm of large replies that is most of it.
Knows nothing about what memory is used for.
"""

import asyncio
import ctypes
import gc
import os
from pathlib import Path

_STATM = Path("/proc/self/statm")
EVERY_S = 10.0
GROWN_BYTES = 16 * 1024**2
"""Growth since the process was smallest, from which it is worth the trouble."""
GARBAGE = (5000, 20, 50)
"""New objects from which Python looks for garbage among them, and how many times so before it looks further back."""


def settle() -> None:
    """Has Python never again look for garbage among what lives now: modules, messages, settings.

    A look at all of it stops every call for 0.1 s, and finds nothing.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GARBAGE)


async def give_back_for_ever() -> None:
    """Looks every ten seconds whether the process has grown, and has the C library trim its heaps."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None or not (smallest := resident_bytes()):
        return
    while True:
        await asyncio.sleep(EVERY_S)
        if resident_bytes() > smallest + GROWN_BYTES:
            await asyncio.to_thread(trim, 0)
        smallest = min(smallest, resident_bytes())


def resident_bytes() -> int:
    """Memory of this process that is in RAM; 0 where the system does not say."""
    try:
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
