"""Words about latents: questions and changes, off the event loop. Knows nothing about gRPC."""

import sqlite3
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from crosscope_proto.artefacts import ANNOTATIONS
from crosscope_proto.labels import SCORES
from crosscope_server.annotations import reading, transfer, writing
from crosscope_server.annotations.database import Database
from crosscope_server.annotations.deliveries import Deliveries
from crosscope_server.annotations.records import (
    Change,
    Conditions,
    Dictionary,
    LatentWords,
    ListInfo,
    Said,
    Totals,
    What,
)
from crosscope_server.annotations.snapshot import Snapshot
from crosscope_server.errors import NotFound

_KEPT = 8
"""Dictionaries whose words stay in memory."""

T = TypeVar("T")


@dataclass(frozen=True)
class Listing:
    """A page of latents with words."""

    latents: list[LatentWords]
    num_matching: int
    """Latents that meet the conditions, over all pages."""
    is_last: bool
    revision: int
    totals: Totals


@dataclass(frozen=True)
class _Kept:
    """Words in memory, and the connection that read them."""

    connection: sqlite3.Connection
    snapshot: Snapshot


class Annotations:
    """The words of a home. Calls raise Unavailable or Conflict where the file cannot be read or written."""

    def __init__(self, home: Path) -> None:
        self._database = Database(home / ANNOTATIONS)
        self._deliveries = Deliveries(home)
        self._kept: OrderedDict[str, _Kept] = OrderedDict()

    async def close(self) -> None:
        """Closes the file."""
        await self._database.close()

    async def words(self, weights: str, latent: int) -> LatentWords:
        """All words about one latent."""

        def read(connection: sqlite3.Connection) -> LatentWords:
            return reading.words(connection, reading.dictionary_id(connection, weights), [latent])[0]

        return await self._read(read, LatentWords(latent, {}, {}))

    async def listing(self, weights: str, conditions: Conditions, after: int, size: int) -> Listing:
        """Latents above `after` that have words and meet conditions, by id. Raises NotFound for a list."""

        def read(connection: sqlite3.Connection) -> Listing:
            dictionary = reading.dictionary_id(connection, weights)
            ids, count = reading.matching(connection, dictionary, conditions, after, size + 1)
            found = reading.words(connection, dictionary, ids[:size])
            totals = reading.totals(connection, [dictionary])
            return Listing(found, count, len(ids) <= size, reading.revision(connection, dictionary), totals)

        empty = Listing([], 0, True, 0, Totals())
        found = await self._read(read, None)
        if found is None and conditions.list:
            raise NotFound(f"no list {conditions.list!r}; there is no list yet; make one")
        return empty if found is None else found

    async def history(self, weights: str, latent: int, before: int | None, size: int) -> list[Change]:
        """Changes of a latent, newest first, at most `size`, those before a revision if one is given."""

        def read(connection: sqlite3.Connection) -> list[Change]:
            return reading.history(connection, reading.dictionary_id(connection, weights), latent, before, size)

        return await self._read(read, [])

    async def lists(self, weights: str) -> list[ListInfo]:
        """All lists of a dictionary, by name."""

        def read(connection: sqlite3.Connection) -> list[ListInfo]:
            return reading.lists(connection, reading.dictionary_id(connection, weights))

        return await self._read(read, [])

    async def members(self, weights: str, name: str) -> tuple[ListInfo, list[int]]:
        """A list and its latents in its order. Raises NotFound."""

        def read(connection: sqlite3.Connection) -> tuple[ListInfo, list[int]]:
            dictionary = reading.dictionary_id(connection, weights)
            info = reading.list_info(connection, dictionary, name)
            return info, reading.members(connection, reading.list_id(connection, dictionary, name))

        found = await self._read(read, None)
        if found is None:
            raise NotFound(f"no list {name!r}; there is no list yet; make one")
        return found

    async def snapshot(self, weights: str) -> Snapshot:
        """The words of a dictionary as they are now; only the kinds that have changed are read again."""

        def read(connection: sqlite3.Connection) -> _Kept:
            known = self._kept.get(weights)
            # Another connection may be of another file, a backup for instance.
            before = known.snapshot if known is not None and known.connection is connection else None
            return _Kept(connection, _snapshot(weights, before, connection))

        found = await self._read(read, None)
        if found is None:
            return Snapshot()
        self._kept[weights] = found
        self._kept.move_to_end(weights)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return found.snapshot

    async def elsewhere(self, weights: str, crosscoder: str) -> Totals:
        """What was said under a crosscoder's name about other weights."""

        def read(connection: sqlite3.Connection) -> Totals:
            named = reading.named(connection, crosscoder)
            return reading.totals(connection, [number for each, number in named.items() if each != weights])

        return await self._read(read, Totals())

    async def say(
        self, about: Dictionary, latent: int, what: What, said: Said | None, author: str, seen: int | None
    ) -> LatentWords:
        """Writes something about a latent, or clears it; returns all words about it. Raises Stale."""

        def write(connection: sqlite3.Connection, dictionary: int) -> LatentWords:
            writing.say(connection, dictionary, latent, what, said, (author, time.time()), seen)
            return reading.words(connection, dictionary, [latent])[0]

        return await self._write(about, write)

    async def create_list(self, about: Dictionary, name: str, author: str) -> ListInfo:
        """Makes an empty list. Raises AlreadyExists, or Conflict for one too many."""

        def write(connection: sqlite3.Connection, dictionary: int) -> ListInfo:
            writing.create_list(connection, dictionary, name, (author, time.time()))
            return reading.list_info(connection, dictionary, name)

        return await self._write(about, write)

    async def rename_list(self, about: Dictionary, name: str, new_name: str, author: str) -> ListInfo:
        """Gives a list another name. Raises NotFound or AlreadyExists."""

        def write(connection: sqlite3.Connection, dictionary: int) -> ListInfo:
            writing.rename_list(connection, dictionary, name, new_name, (author, time.time()))
            return reading.list_info(connection, dictionary, new_name)

        return await self._write(about, write)

    async def delete_list(self, about: Dictionary, name: str, author: str) -> ListInfo:
        """Deletes a list; returns it as it was. Raises NotFound."""

        def write(connection: sqlite3.Connection, dictionary: int) -> ListInfo:
            found = reading.list_info(connection, dictionary, name)
            writing.delete_list(connection, dictionary, name, (author, time.time()))
            return found

        return await self._write(about, write)

    async def change_list(
        self, about: Dictionary, name: str, add: Sequence[int], remove: Sequence[int], author: str
    ) -> tuple[ListInfo, int, int]:
        """Takes latents out of a list, then puts others in; the list, and how many went in and out. Raises NotFound."""

        def write(connection: sqlite3.Connection, dictionary: int) -> tuple[ListInfo, int, int]:
            by = (author, time.time())
            removed = writing.remove_members(connection, dictionary, name, remove, by)
            added = writing.add_members(connection, dictionary, name, add, by)
            return reading.list_info(connection, dictionary, name), added, removed

        return await self._write(about, write)

    async def dictionaries(self, crosscoder: str) -> list[str]:
        """The weights about which something was said under a name, in the order of the first words."""
        return await self._read(lambda connection: list(reading.named(connection, crosscoder)), [])

    async def exported(self, weights: Sequence[str]) -> AsyncIterator[list[transfer.Row]]:
        """The rows of some dictionaries, each in one state of the file."""
        for each in weights:

            def read(connection: sqlite3.Connection, of: str = each) -> list[list[transfer.Row]]:
                return list(transfer.exported(connection, [of]))

            for rows in await self._read(read, []):
                yield rows

    async def import_rows(
        self, about: Dictionary, rows: Sequence[transfer.Row], options: transfer.Options, *, is_kept: bool
    ) -> transfer.Report:
        """Writes rows, all in one step; none if not `is_kept`."""
        write = partial(transfer.import_rows, about=about, rows=rows, options=options)
        return await self._database.write(write, is_kept=is_kept)

    async def _read(self, work: Callable[[sqlite3.Connection], T], without: T) -> T:
        """What `work` finds, once the labels of jobs that wait are taken in; `without` while there is no file."""
        await self._deliveries.take_in(partial(self.import_rows, is_kept=True))
        return await self._database.read(work, without)

    async def _write(self, about: Dictionary, write: Callable[[sqlite3.Connection, int], T]) -> T:
        return await self._database.write(
            lambda connection: write(connection, writing.known_dictionary(connection, about))
        )


def _snapshot(weights: str, before: Snapshot | None, connection: sqlite3.Connection) -> Snapshot:
    """The words as they are now, from those before, of which None says that nothing is known."""
    dictionary = reading.dictionary_id(connection, weights)
    revision = reading.revision(connection, dictionary)
    if before is not None and before.revision == revision:
        return before
    changed = {"label", "automatic_label", "star", "note", "list"}
    if before is not None and before.revision < revision:
        changed = reading.changed_kinds(connection, dictionary, before.revision)
    parts: dict[str, Any] = {"revision": revision}
    if not changed.isdisjoint(("label", "automatic_label")):
        labels = list(reading.labels(connection, dictionary))
        parts["labels"] = {latent: text for latent, text, _ in labels}
        known = list(reading.scores(connection, dictionary))
        parts["scores"] = {name: {latent: each[name] for latent, each in known if name in each} for name in SCORES}
        parts["automatic"] = frozenset(latent for latent, _, is_automatic in labels if is_automatic)
    if What.STAR in changed:
        parts["starred"] = np.array(reading.with_word(connection, dictionary, What.STAR), np.int64)
    if What.NOTE in changed:
        parts["notes"] = reading.notes(connection, dictionary)
    if "list" in changed:
        names = [each.name for each in reading.lists(connection, dictionary)]
        numbers = {name: reading.list_id(connection, dictionary, name) for name in names}
        parts["lists"] = {
            name: np.array(reading.members(connection, number), np.int64) for name, number in numbers.items()
        }
    return replace(before or Snapshot(), **parts)
