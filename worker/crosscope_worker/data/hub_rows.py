"""Reads the rows of a data set of the hub as a stream that survives failed reads. Does not know what they mean."""

import re
import time
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crosscope_proto.roots import RootError, Roots
from crosscope_proto.specs import DataSpec
from crosscope_worker.data.hub_files import FilePlace, about_dealing, files_to_deal, rows_of
from crosscope_worker.data.part import WHOLE, Part
from crosscope_worker.data.rows import DataError, Row, Tell, Wanted, said

if TYPE_CHECKING:
    from datasets import DatasetBuilder, IterableDataset

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

    A failed read is tried again after a pause, from the row where it stood, at the commit that was read first. Where
    files can be dealt (hub_files.py), a part opens its own alone: every `of`-th from `index` on.
    """

    def __init__(self, spec: DataSpec, roots: Roots, tell: Tell, part: Part = WHOLE) -> None:
        self._spec, self._roots, self._tell, self._part = spec, roots, tell, part
        self.files: list[Path] = []
        self.retries = 0
        self._deals_files: bool | None = None
        """Whether files are dealt to the parts; None before that is known."""
        self._has_told = False
        self._commit: str | None = None
        """Commit of the hub's repository, once it is known."""
        self._begin()
        _check_hub_source(spec, roots)

    def _begin(self) -> None:
        self._number = 0
        """Number of the next row."""
        self._position: dict[str, Any] | None = None
        """The stream's own state before that row; None: at the beginning."""
        self._place = FilePlace()
        """Where files are dealt: which one is read."""

    @property
    def deals_part(self) -> bool:
        """See Rows."""
        return bool(self._deals_files)

    def count(self, at_most: int | None = None) -> None:
        """See Rows."""

    def state(self) -> dict[str, Any]:
        """See Rows."""
        state = {"row": self._number, "position": self._position, "commit": self._commit}
        return state | ({"file": [self._place.file, self._place.first_row]} if self._deals_files else {})

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """See Rows. A state of an earlier version, which dealt rows, goes on like that."""
        if state is not None:
            self._number, self._position, self._commit = state["row"], state["position"], state["commit"]
            self._place = FilePlace(*state.get("file", ()))
            has_begun = "file" in state or state["commit"] is not None or state["position"] is not None
            self._deals_files = "file" in state if has_begun else None

    def read(self, first: int, wanted: Wanted | None = None) -> Iterator[tuple[int, Row]]:
        """See Rows."""
        del wanted  # Rows come with their values.
        if self._number > first:
            self._begin()
        failures = 0
        while True:
            opened = False
            try:
                for number, values in self._rows():
                    opened, failures = True, 0
                    if number >= first:
                        yield number, Row(f"{self._spec.path} ({self._spec.split}), row {number}", values)
                return
            except (DataError, MemoryError):
                raise
            except Exception as error:  # any library below may fail in its own way
                self._pause(error, failures, opened)
            failures += 1
            self.retries += 1

    def _rows(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """The rows that are left, with their numbers, from a stream that is opened anew."""
        stream, files = self._open()
        if not files:
            yield from self._rows_of(stream)
            return
        if self._place.file < 0:
            self._go_to(FilePlace(self._part.index, rows_of(files[: self._part.index])))
        while self._place.file < len(files):
            file = self._place.file
            yield from self._rows_of(stream.shard(len(files), file))
            after = file + self._part.of
            others = files[file + 1 : after] if after < len(files) else []
            self._go_to(FilePlace(after, self._number + rows_of(others)))

    def _go_to(self, place: FilePlace) -> None:
        self._place, self._number, self._position = place, place.first_row, None

    def _rows_of(self, stream: "IterableDataset") -> Iterator[tuple[int, Mapping[str, Any]]]:
        """The rows of a stream from the position on."""
        if self._position is not None:
            stream.load_state_dict(self._position)
        for values in stream:
            number = self._number
            # Moved on before the row is handed on, so that a saved state does not repeat it.
            self._number, self._position = number + 1, stream.state_dict()
            yield number, values

    def _open(self) -> tuple["IterableDataset", list[str]]:
        """The stream of all rows, and the files if they are dealt to the parts."""
        import datasets

        spec = self._spec
        builder = datasets.load_dataset_builder(spec.path, spec.config, revision=self._commit)
        for file in map(str, chain.from_iterable((builder.config.data_files or {}).values())):
            self._check_file(file)
            if self._commit is None and (found := _COMMIT.match(file)):
                self._commit = found[1]
        stream = builder.as_streaming_dataset(split=spec.split)
        assert isinstance(stream, datasets.IterableDataset)  # of one split
        return stream, self._dealt(builder, stream)

    def _dealt(self, builder: "DatasetBuilder", stream: "IterableDataset") -> list[str]:
        """The files if they are dealt to the parts; the first part says what becomes of them, once."""
        if self._part.of == 1 or self._deals_files is False:
            return []
        files, why_not = files_to_deal(builder, stream, self._spec.split, self._part.of)
        if self._deals_files and not files:
            raise DataError(
                f"data set {self._spec.name!r} has changed: {why_not}, and its files were dealt to the streams when "
                "the training began; start the job anew"
            )
        if self._part.index == 0 and not self._has_told:
            self._has_told = True
            self._tell(f"data set {self._spec.name!r}: {about_dealing(files, why_not, self._part.of)}")
        self._deals_files = bool(files)
        return files

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
