"""Results of jobs on their way to the store that machines share. Without a store there is nothing to do.

A store that does not answer is asked again for a while. Then, or if it refuses, the job fails, and what it made waits
in its folder: a retry publishes that, and makes nothing again. Knows no formula and no queue.
"""

import contextlib
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from crosscope_proto.artefacts import STORE_NOTE
from crosscope_proto.stages import Stage
from crosscope_store.entries import MANIFESTS, Key, Kind
from crosscope_store.errors import StoreAway, StoreError
from crosscope_store.files import bytes_behind
from crosscope_store.shelf import ALONE, Shelf, Upload
from crosscope_worker.disk import move, replace_folder
from crosscope_worker.work import Progress, Workspace, silent

UNPUBLISHED = "unpublished"
"""Folder below a job's checkpoints with what it made and could not publish."""
WAIT_S = 600.0
"""How long a job asks a store that does not answer, before its result is kept and the job fails."""
_PAUSES_S = (1.0, 2.0, 4.0, 8.0, 15.0)
_STEP_S = 0.2
READING = "store"
"""Stage of reports about the store before a job's own stages."""

T = TypeVar("T")


@dataclass(frozen=True)
class Sharing:
    """What a job does with the store."""

    shelf: Shelf = ALONE
    progress: Progress = silent
    checkpoints: Path | None = None
    """Where a result is kept that cannot be published; None: nowhere."""
    wait_s: float = WAIT_S

    @classmethod
    def of(cls, workspace: Workspace, progress: Progress) -> "Sharing":
        """What the job of a workspace does."""
        return cls(workspace.shelf, progress, workspace.checkpoints)

    def prepare(self, publishes: bool) -> None:
        """Looks what is published, and whether this job may publish, before it does hours of work.

        Raises StoreError for a store that refuses, or that does not answer for `wait_s`.
        """
        if self.shelf.is_shared:
            if publishes:
                self._patiently(self.shelf.check_rights, READING)
            self._patiently(self.shelf.refresh, READING)

    def stamp(self, kind: Kind, name: str, now: float) -> str:
        """With what the id of something begins that is published now. Raises StoreError."""
        return self._patiently(lambda: self.shelf.stamp_for(kind, name, now), Stage.PUBLISH)

    def upload(self, kind: Kind, name: str, folder: Path) -> Upload:
        """Writes a folder's files to the store, where nobody sees them yet. Raises StoreError."""
        total = bytes_behind(folder)

        def once() -> Upload:
            done = 0

            def tick(num_bytes: int) -> None:
                nonlocal done
                done += num_bytes
                said = f"writing to the store: {done / 1e6:.0f} of {total / 1e6:.0f} MB"
                self.progress(Stage.PUBLISH, min(1.0, done / max(1, total)), said)

            return self.shelf.upload(kind, name, folder, tick)

        return self._patiently(once, Stage.PUBLISH)

    def commit(self, upload: Upload, key: Key, folder: Path) -> None:
        """Publishes an upload. Raises StoreTaken if somebody else has this key, else StoreError."""
        self._patiently(lambda: self.shelf.commit(upload, key, folder), Stage.PUBLISH)

    def retire(self, kind: Kind, name: str) -> None:
        """Removes what newer publications have replaced; the next publication does what could not be done now."""
        with contextlib.suppress(StoreError):
            self.shelf.retire(kind, name)

    def publish(self, kind: Kind, name: str, written: Path, target: Path, fence: Callable[[], None]) -> None:
        """Puts a written and synced folder in the place of `target`, in the store and here.

        Raises StoreError, and what `fence` raises; then all is as it was, and with a StoreError the folder is kept.
        """
        try:
            upload = self.upload(kind, name, written)
            key = Key(kind, name, f"{self.stamp(kind, name, time.time())}-{uuid.uuid4().hex[:12]}")
            fence()
            self.commit(upload, key, written)
        except StoreError as error:
            self.keep(written, error)
            raise
        replace_folder(target, written)
        self.retire(kind, name)

    def kept(self, kind: Kind) -> Path | None:
        """The folder that an earlier attempt of this job has made and could not publish."""
        folder = None if self.checkpoints is None else self.checkpoints / UNPUBLISHED
        return folder if folder is not None and (folder / MANIFESTS[kind]).is_file() else None

    def keep(self, written: Path, error: StoreError) -> None:
        """Keeps a written folder for the next attempt, and says so in the error."""
        if self.checkpoints is None:
            return
        folder = self.checkpoints / UNPUBLISHED
        (written / STORE_NOTE).unlink(missing_ok=True)
        if folder != written:
            shutil.rmtree(folder, ignore_errors=True)
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            move(written, folder)
        error.add_note(f"What was made is kept: crosscope retry {self.checkpoints.parent.name} only publishes it.")

    def _patiently(self, ask: Callable[[], T], stage: str) -> T:
        """What a store answers; while it does not, it is asked again for `wait_s`. Raises StoreError."""
        began = time.monotonic()
        for pause_s in _pauses():
            try:
                return ask()
            except StoreAway as error:
                if time.monotonic() - began + pause_s > self.wait_s:
                    raise
                self._pause(pause_s, stage, f"{error}; asking again in {pause_s:g} s")
        raise AssertionError("pauses do not end")

    def _pause(self, pause_s: float, stage: str, message: str) -> None:
        """Waits, and lets the job stop meanwhile."""
        until = time.monotonic() + pause_s
        while (left := until - time.monotonic()) > 0:
            self.progress(stage, 0.0, message)
            time.sleep(min(_STEP_S, left))


def _pauses() -> Iterator[float]:
    yield from _PAUSES_S
    while True:
        yield _PAUSES_S[-1]
