"""Reads the rows of a data set of the hub as a stream that survives failed reads. Does not know what they mean."""

import re
import time
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crosscope_proto.roots import RootError, Roots
from crosscope_proto.specs import DataSpec
from crosscope_worker.data.rows import DataError, Row, Tell, Wanted, said

if TYPE_CHECKING:
    from datasets import IterableDataset

PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0, 60.0)
"""Pauses before a failed read from the hub is tried again; after the last one the data set is given up."""
_FIRST_PAUSES = 5
"""Number of pauses before the first row: a job that has just begun has little to lose."""
_PAUSES_OF_LASTING = 2
"""Number of pauses for errors that mostly lie in the data itself."""
_LASTING = (ValueError, KeyError, TypeError, FileNotFoundError, PermissionError)
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_REMOTE = frozenset(("hf", "http", "https", "s3", "gs", "zip", "tar", "gzip", "bz2", "xz", "lz4", "zstd"))
"""Protocols of data files that name no file of this machine: remote ones, and places inside an archive."""
_COMMIT = re.compile(r"^hf://[^@]*@([0-9a-f]{40})/")


class HubRows:
    """The rows of a data set of the hub, or of a folder in the hub's layout, as a stream.

    A failed read is tried again after a pause, from the row where it stood, at the commit that was read first.
    """

    def __init__(self, spec: DataSpec, roots: Roots, tell: Tell) -> None:
        self._spec, self._roots, self._tell = spec, roots, tell
        self.files: list[Path] = []
        self.retries = 0
        self._number = 0
        """Number of the next row."""
        self._position: dict[str, Any] | None = None
        """The stream's own state before that row; None: at the beginning."""
        self._commit: str | None = None
        """Commit of the hub's repository, once it is known."""
        _check_hub_source(spec, roots)

    def count(self, at_most: int | None = None) -> None:
        """See Rows."""

    def state(self) -> dict[str, Any]:
        """See Rows."""
        return {"row": self._number, "position": self._position, "commit": self._commit}

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """See Rows."""
        if state is not None:
            self._number, self._position, self._commit = state["row"], state["position"], state["commit"]

    def read(self, first: int, wanted: Wanted | None = None) -> Iterator[tuple[int, Row]]:
        """See Rows."""
        del wanted  # Rows come with their values.
        if self._number > first:
            self._number, self._position = 0, None
        failures = 0
        while True:
            opened = False
            try:
                stream = self._open()
                for values in stream:
                    opened, failures = True, 0
                    number = self._number
                    # Moved on before the row is handed on, so that a saved state does not repeat it.
                    self._number, self._position = number + 1, stream.state_dict()
                    if number >= first:
                        yield number, Row(f"{self._spec.path} ({self._spec.split}), row {number}", values)
                return
            except (DataError, MemoryError):
                raise
            except Exception as error:  # any library below may fail in its own way
                self._pause(error, failures, opened)
            failures += 1
            self.retries += 1

    def _open(self) -> "IterableDataset":
        import datasets

        spec = self._spec
        builder = datasets.load_dataset_builder(spec.path, spec.config, revision=self._commit)
        for file in map(str, chain.from_iterable((builder.config.data_files or {}).values())):
            self._check_file(file)
            if self._commit is None and (found := _COMMIT.match(file)):
                self._commit = found[1]
        stream = builder.as_streaming_dataset(split=spec.split)
        assert isinstance(stream, datasets.IterableDataset)  # of one split
        if self._position is not None:
            stream.load_state_dict(self._position)
        return stream

    def _check_file(self, file: str) -> None:
        """Raises DataError for a file of this machine that jobs may not read; a repository can name one."""
        for part in file.split("::"):
            protocol, marked, path = part.rpartition("://")
            if marked and protocol in _REMOTE:
                continue
            try:
                if protocol not in ("", "file", "local"):
                    raise RootError(f"{part} has the unknown protocol {protocol}")
                self._roots.check(Path(path))
            except RootError as error:
                raise DataError(f"data set {self._spec.name!r}: {error}") from error

    def _pause(self, error: Exception, failures: int, opened: bool) -> None:
        """Waits before the next try. Raises DataError after the last one."""
        lasting = isinstance(error, _LASTING)
        num_pauses = len(PAUSES_S) if self._number else _FIRST_PAUSES
        if lasting:
            num_pauses = _PAUSES_OF_LASTING if opened or self._number else 0
        spec = self._spec
        where = f"row {self._number} of {spec.path} ({spec.split})"
        if failures >= min(num_pauses, len(PAUSES_S)):
            tries = f" after {failures + 1} tries" if failures else ""
            raise DataError(
                f"data set {spec.name!r}: {where} cannot be read from the hub{tries}: {said(error)}"
            ) from error
        left_s = PAUSES_S[failures]
        while True:
            self._tell(
                f"{where} could not be read ({said(error)[:200]}); "
                f"trying again in {left_s:.0f} s, {failures + 1} of {num_pauses}"
            )
            if left_s <= 0:
                return
            time.sleep(min(1.0, left_s))
            left_s -= 1.0


def _check_hub_source(spec: DataSpec, roots: Roots) -> None:
    """Raises DataError unless `spec.path` is a hub id or a folder that jobs may read."""
    path = Path(spec.path)
    if path.is_absolute() or path.exists():
        roots.check(path)
    elif not _HUB_ID.fullmatch(spec.path.removeprefix("hf://datasets/")):
        raise DataError(
            f"data set {spec.name!r}: {spec.path} is neither the id of a data set of the hub (owner/name) nor a folder"
        )
