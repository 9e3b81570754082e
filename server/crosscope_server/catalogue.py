"""The published crosscoders: which there are, which version of each is current, and what a version holds.

The artefact folder may change at any time. So every call looks at CURRENT (one stat), and reads it if it has changed.
A version is loaded once, in a thread; the versions used last are kept. Knows nothing about protobuf.
"""

import asyncio
import contextlib
import errno
import logging
import os
import re
import stat
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from crosscope_proto import artefacts as layout
from crosscope_proto.artefacts import CrosscoderManifest
from crosscope_proto.columns import BEHAVIOUR_COLUMNS, LATENT_COLUMNS, METRIC_COLUMNS
from crosscope_proto.manifest import MAX_BYTES, ManifestError, parse_manifest
from crosscope_server.errors import BrokenArtefact, CallError, NotFound, VersionGone
from crosscope_server.examples import ExampleReader
from crosscope_server.latents import LatentTable
from crosscope_server.tables import TableFolder
from crosscope_store.shelf import ALONE, Shelf

_KEPT_VERSIONS = 8
NAME = re.compile(layout.NAME_PATTERN)

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Card:
    """A version's manifest."""

    tables: TableFolder
    manifest: CrosscoderManifest
    manifest_json: str


@dataclass(frozen=True)
class Broken:
    """A crosscoder whose card cannot be read, and what is known about it."""

    name: str
    """Name of its folder; bytes that are not characters are written as escapes."""
    version_id: str
    """Empty where CURRENT cannot be read."""
    sentence: str
    manifest_json: str
    """Empty if the file is missing, is not text, or is too long for a list."""


@dataclass(frozen=True)
class Detector:
    """The latent that detects a tagged behaviour best: a row of behaviours.parquet."""

    behaviour: str
    place: str
    latent: int
    threshold: float
    recall: float
    false_rate: float
    num_positive: int
    num_negative: int


@dataclass(frozen=True)
class Curves:
    """Training curves."""

    steps: list[int]
    values: dict[str, list[float]]
    """One value a step; NaN where it was not measured."""


@dataclass(frozen=True)
class Version:
    """One version's contents, in memory."""

    card: Card
    table: LatentTable
    examples: ExampleReader

    @property
    def version_id(self) -> str:
        """The version's id."""
        return self.card.manifest.version_id

    @cached_property
    def detectors(self) -> list[Detector]:
        """Rows of behaviours.parquet; empty where texts carried no tags. Blocking, raises BrokenArtefact."""
        tables = self.card.tables
        if layout.BEHAVIOURS not in tables.hashes and not (tables.folder / layout.BEHAVIOURS).exists():
            return []
        return [Detector(**row) for row in tables.read(layout.BEHAVIOURS, BEHAVIOUR_COLUMNS).to_pylist()]

    @cached_property
    def curves(self) -> Curves:
        """metrics.parquet. Blocking, raises BrokenArtefact."""
        rows = self.card.tables.read(layout.METRICS, METRIC_COLUMNS).to_pydict()
        steps = sorted(set(rows["step"]))
        place = {step: i for i, step in enumerate(steps)}
        values = {name: [float("nan")] * len(steps) for name in rows["name"]}
        for step, name, value in zip(rows["step"], rows["name"], rows["value"], strict=True):
            values[name][place[step]] = value
        return Curves(steps, values)


class Catalogue:
    """The crosscoders below a home folder. For one event loop."""

    def __init__(self, home: Path, shelf: Shelf = ALONE) -> None:
        self._home, self._shelf = home, shelf
        self._current: dict[str, tuple[tuple[int, int], str]] = {}
        self._cards: dict[tuple[str, str], Card] = {}
        self._told: set[Broken] = set()
        """The broken crosscoders that the log has named."""
        self._versions: OrderedDict[tuple[str, str], asyncio.Task[Version]] = OrderedDict()

    def names(self) -> list[str]:
        """Names of all published crosscoders, sorted."""
        return [name for name in self._folders() if NAME.fullmatch(name)]

    def _folders(self) -> list[str]:
        """Names of all folders with a CURRENT, sorted; also names that are not valid. Raises BrokenArtefact."""
        folder = self._home / "crosscoders"
        try:
            return sorted(entry.name for entry in folder.iterdir() if os.path.lexists(entry / layout.CURRENT))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise BrokenArtefact(f"{folder} cannot be read: {error.strerror}") from error

    def current(self, name: str) -> str:
        """The id of a crosscoder's current version; raises NotFound or BrokenArtefact."""
        path = Path(layout.crosscoder_folder(self._home, name)) / layout.CURRENT
        try:
            if not NAME.fullmatch(name):
                raise FileNotFoundError
            found = path.stat()
            seen = found.st_mtime_ns, found.st_ino
            if (known := self._current.get(name)) is not None and known[0] == seen:
                return known[1]
            version_id = read_regular(path).decode().strip()
        except (FileNotFoundError, NotADirectoryError) as error:
            self._current.pop(name, None)
            there = ", ".join(self.names())
            hint = f"there are {there}" if there else f"none is published below {self._home} yet"
            raise NotFound(f"no crosscoder {name[:100]!r}; {hint}") from error
        except (OSError, UnicodeDecodeError) as error:
            raise BrokenArtefact(f"{path} cannot be read: {error}") from error
        if not NAME.fullmatch(version_id):
            raise BrokenArtefact(f"{path} does not hold a version id, but {version_id[:60]!r}")
        self._current[name] = seen, version_id
        return version_id

    async def cards(self) -> tuple[list[Card], list[Broken]]:
        """The cards of all crosscoders, newest first, and the crosscoders without a readable card.

        Raises BrokenArtefact if the folder of crosscoders cannot be read.
        """
        cards: list[Card] = []
        broken: list[Broken] = []
        for name in self._folders():
            try:
                cards.append(await self.card(name))
            except (BrokenArtefact, NotFound) as error:
                broken.append(await asyncio.to_thread(self._broken, name, error.sentence))
        for each in set(broken) - self._told:
            log.error("broken crosscoder", extra={"crosscoder": each.name, "error": each.sentence})
        self._told = set(broken)
        return sorted(cards, key=lambda card: (-card.manifest.created_at, card.manifest.name)), broken

    def _broken(self, name: str, sentence: str) -> Broken:
        shown = name.encode("utf-8", "backslashreplace").decode()
        if not NAME.fullmatch(name):
            sentence = f"a crosscoder's name looks like {layout.NAME_PATTERN}; rename the folder"
        version_id = manifest_json = ""
        with contextlib.suppress(CallError, OSError, UnicodeDecodeError):
            version_id = self.current(name)
            data = read_regular(self._folder(name, version_id) / layout.MANIFEST)
            manifest_json = data.decode() if len(data) <= MAX_BYTES else ""
        return Broken(shown, version_id, sentence, manifest_json)

    async def card(self, name: str) -> Card:
        """The current version's card; raises NotFound or BrokenArtefact."""
        version_id = self.current(name)
        if (card := self._cards.get((name, version_id))) is None:
            card = await asyncio.to_thread(_read_card, self._folder(name, version_id), name, self._shelf)
            for known in [key for key in self._cards if key[0] == name]:
                del self._cards[known]
            self._cards[name, version_id] = card
        return card

    def resolve(self, name: str, version_id: str | None) -> str:
        """The id of a version that exists: the one that was asked for, or the current one if none was.

        Raises NotFound, BrokenArtefact, or VersionGone.
        """
        current = self.current(name)
        if version_id is None or version_id == current:
            return current
        if not NAME.fullmatch(version_id) or not self._folder(name, version_id).is_dir():
            raise VersionGone(name, version_id, current)
        return version_id

    async def open(self, name: str, version_id: str | None = None) -> Version:
        """The contents of a version, by default the current one. Raises NotFound, BrokenArtefact, or VersionGone.

        A version that was opened before comes from memory, even if its folder has gone since.
        """
        current = self.current(name)  # first: if the whole crosscoder was removed, its versions are gone too
        key = name, version_id or current
        task = self._versions.get(key)
        if task is None:
            folder = self._folder(name, self.resolve(*key))
            task = self._versions[key] = asyncio.create_task(
                asyncio.to_thread(_read_version, folder, name, self._shelf)
            )
            while len(self._versions) > _KEPT_VERSIONS:
                self._versions.popitem(last=False)
        self._versions.move_to_end(key)
        try:
            return await asyncio.shield(task)
        except Exception as error:
            if self._versions.get(key) is task:
                del self._versions[key]  # somebody may mend its files
            if isinstance(error, BrokenArtefact):
                self.resolve(*key)  # raises VersionGone if it has gone while it was read
            raise

    async def read(self, version: Version, read: Callable[[], T]) -> T:
        """What `read` returns, called in a thread. Raises BrokenArtefact, or VersionGone if the version has gone."""
        try:
            return await asyncio.to_thread(read)
        except BrokenArtefact:
            self.resolve(version.card.manifest.name, version.version_id)
            raise

    def _folder(self, name: str, version_id: str) -> Path:
        return Path(layout.version_folder(self._home, name, version_id))


def _read_version(folder: Path, name: str, shelf: Shelf) -> Version:
    card = _read_card(folder, name, shelf)
    manifest = card.manifest
    path = folder / layout.LATENTS
    table = card.tables.read(layout.LATENTS, LATENT_COLUMNS)
    if table.num_rows != manifest.num_latents:
        raise BrokenArtefact(
            f"{path} has {table.num_rows} rows, but {layout.MANIFEST} says {manifest.num_latents} latents"
        )
    lengths = {"dataset_shares": len(manifest.datasets), "histogram": max(0, len(manifest.histogram_edges) - 1)}
    for column, expected in lengths.items():
        if (found := len(table[column][0])) != expected:
            sentence = f"{path}: the lists of {column} have {found} values, but {layout.MANIFEST} needs {expected}"
            raise BrokenArtefact(f"{sentence}; publish the crosscoder again")
    try:
        latents = LatentTable(manifest.name, table, manifest.datasets, manifest.uselessness_floor)
    except ValueError as error:
        raise BrokenArtefact(f"{path}: {error}; publish the crosscoder again") from error
    return Version(card, latents, ExampleReader(card.tables, manifest.num_latents))


def _read_card(folder: Path, name: str, shelf: Shelf) -> Card:
    """The card of the version in a folder. Raises BrokenArtefact, also if it is not a version of `name`."""
    path = folder / layout.MANIFEST
    try:
        data = read_regular(path)
        manifest = parse_manifest(data)
    except FileNotFoundError as error:
        raise BrokenArtefact(f"{path} is missing; publish the crosscoder again") from error
    except OSError as error:
        raise BrokenArtefact(f"{path} cannot be read: {error.strerror}") from error
    except ManifestError as error:
        raise BrokenArtefact(f"{path}: {error}; publish the crosscoder again") from error
    for what, found, expected in (("name", manifest.name, name), ("version_id", manifest.version_id, folder.name)):
        if found != expected:
            raise BrokenArtefact(f"{path}: {what} is {found!r}, but its folder is called {expected!r}; make them equal")
    return Card(TableFolder(folder, manifest.hashes, shelf=shelf), manifest, data.decode())


def read_regular(path: Path) -> bytes:
    """The bytes of a file. Raises OSError, also for a pipe or a device: reading one might never end."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        return file.read()
