"""Reads looks from the artefact folder. All functions block. Knows nothing about gRPC."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crosscope_proto import artefacts as layout
from crosscope_proto.looks import MANIFEST, TABLES, LookManifest
from crosscope_proto.manifest import ManifestError, parse_look_manifest
from crosscope_server.catalogue import NAME, read_regular
from crosscope_server.errors import BrokenArtefact, NotFound
from crosscope_server.tables import TableFolder
from crosscope_store.shelf import ALONE, Shelf

_MEND = "look again"


@dataclass(frozen=True)
class LookCard:
    """A look's manifest."""

    manifest: LookManifest
    manifest_json: str


@dataclass(frozen=True)
class Look:
    """A look's contents."""

    card: LookCard
    tables: dict[str, list[dict[str, Any]]]
    """The rows of each table, by its name without the suffix."""


class Looks:
    """The looks below a home folder."""

    def __init__(self, home: Path, shelf: Shelf = ALONE) -> None:
        self._folder, self._shelf = home / "looks", shelf

    def names(self) -> list[str]:
        """Names of the folders with a look, sorted. Raises BrokenArtefact if the folder cannot be read."""
        try:
            return sorted(entry.name for entry in self._folder.iterdir() if NAME.fullmatch(entry.name))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise BrokenArtefact(f"{self._folder} cannot be read: {error.strerror}") from error

    def cards(self) -> tuple[list[LookCard], list[tuple[str, str]]]:
        """All looks, newest first, and the names of those that cannot be read, each with a sentence."""
        cards: list[LookCard] = []
        broken: list[tuple[str, str]] = []
        for name in self.names():
            try:
                cards.append(self.card(name))
            except BrokenArtefact as error:
                broken.append((name, error.sentence))
            except NotFound:
                continue  # It went while the list was made.
        return sorted(cards, key=lambda card: (-card.manifest.created_at, card.manifest.name)), broken

    def card(self, name: str) -> LookCard:
        """A look's manifest. Raises NotFound or BrokenArtefact."""
        folder = Path(layout.look_folder(self._folder.parent, name))
        path = folder / MANIFEST
        if not NAME.fullmatch(name) or not folder.is_dir():
            there = ", ".join(self.names()[:20])
            hint = f"there are {there}" if there else "make one with `crosscope look`"
            raise NotFound(f"no look {name[:100]!r}; {hint}")
        try:
            data = read_regular(path)
            manifest = parse_look_manifest(data)
        except FileNotFoundError as error:
            raise BrokenArtefact(f"{path} is missing; {_MEND}") from error
        except OSError as error:
            raise BrokenArtefact(f"{path} cannot be read: {error.strerror}") from error
        except ManifestError as error:
            raise BrokenArtefact(f"{path}: {error}; {_MEND}") from error
        if manifest.name != name:
            raise BrokenArtefact(
                f"{path}: name is {manifest.name!r}, but its folder is called {name!r}; make them equal"
            )
        return LookCard(manifest, data.decode())

    def open(self, name: str) -> Look:
        """A look's contents. Raises NotFound, or BrokenArtefact for a table that is missing or damaged.

        A look that is replaced while it is read is read again.
        """
        card = self.card(name)
        while True:
            try:
                look = self._read(card)
            except BrokenArtefact:
                if (newer := self.card(name)) == card:
                    raise
                card = newer
                continue
            return look

    def _read(self, card: LookCard) -> Look:
        folder = Path(layout.look_folder(self._folder.parent, card.manifest.name))
        files = TableFolder(folder, card.manifest.hashes, _MEND, self._shelf)
        found = {Path(file).stem: files.read(file, columns).to_pylist() for file, columns in TABLES.items()}
        texts = found["texts"]
        for row in found["findings"]:
            if row["text"] >= len(texts) or row["position"] >= len(texts[row["text"]]["token_ids"]):
                raise BrokenArtefact(f"{folder}: a finding is at no token of texts.parquet; {_MEND}")
        for row in (*texts, *found["continuations"]):
            lists = ("token_ids", "pieces", "roles", *(["kl"] if "kl" in row and isinstance(row["kl"], list) else []))
            if len({len(row[name]) for name in lists}) > 1:
                raise BrokenArtefact(f"{folder}: the lists of {row['place']} have different lengths; {_MEND}")
        return Look(card, found)
