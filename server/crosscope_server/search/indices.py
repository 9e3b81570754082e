"""The indices of all versions: each built once, in a thread, when examples are first searched, and kept as a file.

The files lie below search/ of the home. One that is damaged is built again; one whose version has gone is removed, and
so are those used longest ago where all take more than the limit. Knows nothing about queries.
"""

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from crosscope_proto import artefacts as layout
from crosscope_server.catalogue import Catalogue, Version
from crosscope_server.errors import BrokenArtefact
from crosscope_server.search.index import Damaged, Index, Report, TooLarge, build, open_index, version_of

PATIENCE_S = 1.0
"""How long a search waits for an index that is being built; small ones are there by then."""
_KEPT = 4
"""Indices that stay open."""
_LEFT_BEHIND_S = 3600.0
"""Age at which a file that was not written to its end is removed."""

log = logging.getLogger(__name__)


@dataclass
class _Progress:
    fraction: float = 0.0


@dataclass(frozen=True)
class Opened:
    """The index of a version, or why there is none yet."""

    index: Index | None = None
    building: float | None = None
    """The share of the build that is done."""
    why_not: str = ""
    """Why it cannot be built."""


class Indices:
    """The indices of a home. For one event loop."""

    def __init__(self, catalogue: Catalogue, home: Path, max_bytes: int) -> None:
        self._catalogue, self._home, self._max_bytes = catalogue, home, max_bytes
        self._builds: OrderedDict[tuple[str, str], tuple[asyncio.Task[Index], _Progress]] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, "search-index")

    async def close(self) -> None:
        """Waits for nothing: a build that has begun ends by itself, and its file stays."""
        tasks = [task for task, _ in self._builds.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def open(self, version: Version, patience_s: float = PATIENCE_S) -> Opened:
        """The index of a version, which is built if there is none. Raises VersionGone."""
        key = version.card.manifest.name, version.version_id
        if key not in self._builds:
            progress = _Progress()
            self._builds[key] = asyncio.create_task(self._make(version, progress)), progress
            self._forget()
        self._builds.move_to_end(key)
        task, progress = self._builds[key]
        if not (await asyncio.wait([task], timeout=patience_s))[0]:
            return Opened(building=progress.fraction)
        try:
            return Opened(task.result())
        except (TooLarge, BrokenArtefact, OSError) as error:
            if self._builds.get(key, (None,))[0] is task:
                del self._builds[key]  # somebody may mend what is wrong
            self._catalogue.resolve(*key)  # raises VersionGone if it has gone while it was read
            return Opened(why_not=_sentence(error))

    def _forget(self) -> None:
        done = [key for key, (task, _) in self._builds.items() if task.done()]
        for key in done[: max(0, len(self._builds) - _KEPT)]:
            del self._builds[key]

    async def _make(self, version: Version, progress: _Progress) -> Index:
        def report(fraction: float) -> None:
            progress.fraction = fraction

        return await asyncio.get_running_loop().run_in_executor(self._thread, self._opened_or_built, version, report)

    def _opened_or_built(self, version: Version, report: Report) -> Index:
        folder = self._home / layout.SEARCH / version.card.manifest.name
        index = _opened(folder, version.version_id)
        if index is None:
            started = time.monotonic()
            path = build(version.card.tables, version.table.num_latents, folder, self._max_bytes, report)
            index = open_index(path)
            facts = {"version": version.version_id, "texts": index.num_texts, "bytes": path.stat().st_size}
            log.info("search index built", extra=facts | {"seconds": round(time.monotonic() - started, 1)})
        self._sweep(keep=version.version_id)
        return index

    def _sweep(self, keep: str) -> None:
        """Removes files whose version has gone, and, beyond the limit, those used longest ago, but not that of `keep`.

        Another server may remove the same files at the same time.
        """
        files: list[tuple[bool, float, int, Path]] = []
        for path in (self._home / layout.SEARCH).glob("*/*"):
            with contextlib.suppress(OSError):
                facts, version_id = path.stat(), version_of(path)
                if version_id is None:
                    is_gone = path.suffix == ".part" and time.time() - facts.st_mtime > _LEFT_BEHIND_S
                else:
                    is_gone = not Path(layout.version_folder(self._home, path.parent.name, version_id)).is_dir()
                if is_gone:
                    path.unlink()
                else:
                    files.append((version_id == keep, facts.st_mtime, facts.st_size, path))
        room = self._max_bytes
        for is_kept, _, size, path in sorted(files, reverse=True):
            room -= size
            if room < 0 and not is_kept:
                with contextlib.suppress(OSError):
                    path.unlink()


def _opened(folder: Path, version_id: str) -> Index | None:
    """The index that lies in a folder; None where there is none. A damaged one is removed."""
    for path in sorted(folder.glob(f"{version_id}-*.arrow")):
        try:
            index = open_index(path)
            path.touch()
        except Damaged as error:
            log.warning("search index damaged, built again", extra={"error": str(error)})
            path.unlink(missing_ok=True)
        else:
            return index
    return None


def _sentence(error: Exception) -> str:
    if isinstance(error, BrokenArtefact):
        return error.sentence
    if isinstance(error, OSError):
        hint = "let the server's user write it, or free some room"
        return f"their index cannot be written: {error.strerror or error} ({error.filename or layout.SEARCH}); {hint}"
    return str(error)
