"""Room on the disk of a home: watched, with a reserve that is given up when there is none left. Knows no process.

The queue ends when it cannot write, and so do jobs. The reserve is a file of real blocks in the home. It goes when the
disk is nearly full, so that queue and logs can write on, and comes back when there is room.
"""

import contextlib
import heapq
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from crosscope_local.supervise import Say

RESERVE = "reserve"
"""Name of the reserve's file in the home."""
RESERVE_BYTES = 100_000_000
LOW_BYTES = 1_000_000_000
"""With less room than this, the person is told."""
FULL_BYTES = 20_000_000
"""With less room than this, the reserve goes."""
_AGAIN_S = 600.0
"""How long a disk may stay low before that is said again."""
_MAX_FILES = 200_000
"""Files that are looked at to find the largest folders."""
_CHUNK = 1 << 20


class Room:
    """The room of one home. One thread calls `look`, every second or so."""

    def __init__(
        self,
        home: Path,
        say: Say,
        *,
        low_bytes: int = LOW_BYTES,
        reserve_bytes: int = RESERVE_BYTES,
        full_bytes: int = FULL_BYTES,
        free: Callable[[Path], int] = lambda home: shutil.disk_usage(home).free,
    ) -> None:
        """`free` says how many bytes a folder's disk has left."""
        self._home, self._say, self._free = home, say, free
        self._low_bytes, self._reserve_bytes, self._full_bytes = low_bytes, reserve_bytes, full_bytes
        self._reserve = home / RESERVE
        self._said_at: float | None = None
        """When the disk was last said to be low; None while it is not."""
        self._is_full = False

    def look(self) -> None:
        """Looks at the room once: tells of a change, gives the reserve up or makes it again."""
        try:
            free = self._free(self._home)
        except OSError:  # a file system that does not answer now
            return
        if free < self._full_bytes:
            self._give_up_reserve(free)
        elif free >= self._reserve_bytes + 2 * self._full_bytes:
            self._make_reserve()
        if free >= self._low_bytes and not self._is_full:
            self._tell_of_room(free)
        elif self._said_at is None or time.monotonic() - self._said_at > _AGAIN_S:
            self._tell_low(free)

    def _give_up_reserve(self, free: int) -> None:
        if self._is_full:
            return
        self._is_full = True
        had = self._reserve.exists()
        self._reserve.unlink(missing_ok=True)
        spare = f" The reserve of {_size(self._reserve_bytes)} was freed, so that the queue can go on." if had else ""
        self._said_at = time.monotonic()
        self._say("error", f"The disk of {self._home} is full ({_size(free)} left).{spare} {self._what_to_free()}")

    def _make_reserve(self) -> None:
        """Makes the reserve if it is not there; leaves it for later if there is no room after all."""
        if self._reserve_bytes and not self._reserve.exists():
            beside = self._reserve.with_name(f".{RESERVE}")
            try:
                with beside.open("wb") as file:
                    _fill(file.fileno(), self._reserve_bytes)
                beside.replace(self._reserve)
            except OSError:
                beside.unlink(missing_ok=True)
                return
        self._is_full = False

    def _tell_of_room(self, free: int) -> None:
        if self._said_at is not None:
            self._say("info", f"The disk of {self._home} has room again: {_size(free)}.")
        self._said_at = None

    def _tell_low(self, free: int) -> None:
        self._said_at = time.monotonic()
        self._say("warning", f"The disk of {self._home} has {_size(free)} left. {self._what_to_free()}")

    def _what_to_free(self) -> str:
        sizes = ", ".join(f"{path} ({_size(size)})" for path, size in largest_folders(self._home))
        where = f" The largest folders of the home: {sizes}." if sizes else ""
        return (
            "Free some: activations/ and search/ of the home may be deleted, and are made again; so may old versions "
            f"below crosscoders/.{where}"
        )


def largest_folders(home: Path, count: int = 3) -> list[tuple[str, int]]:
    """The folders up to two levels below `home` whose files take most, with their bytes; largest first.

    A folder of the first level counts only what lies in none of its own folders.
    """
    sizes: dict[str, int] = {}
    num_files = 0
    for folder, _, names in os.walk(home):
        key = "/".join(Path(folder).relative_to(home).parts[:2])
        for name in names if key else ():
            with contextlib.suppress(OSError):  # removed in this moment
                sizes[key] = sizes.get(key, 0) + os.lstat(f"{folder}/{name}").st_blocks * 512
        num_files += len(names)
        if num_files > _MAX_FILES:
            break
    return heapq.nlargest(count, ((key, size) for key, size in sizes.items() if size), key=lambda each: each[1])


def _fill(descriptor: int, size: int) -> None:
    """Gives a file `size` bytes of real blocks. Raises OSError."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    for begin in range(0, size, _CHUNK):
        os.write(descriptor, os.urandom(min(_CHUNK, size - begin)))


def _size(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"
