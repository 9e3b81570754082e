"""Searches of versions, off the event loop; the last ones stay in memory, so that their other pages come at once."""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from crosscope_server.catalogue import Version
from crosscope_server.search.finding import Found, Place, Words, find
from crosscope_server.search.index import Index
from crosscope_server.search.indices import Indices, Opened
from crosscope_server.search.pattern import Pattern
from crosscope_server.search.snippets import Snippet, snippets

_KEPT = 16
_AT_ONCE = 2
"""Searches that run at the same time; others wait for their turn."""


@dataclass(frozen=True)
class Answer:
    """What a search found, and what it needs to show it."""

    found: Found
    opened: Opened
    """The state of the index of the examples."""


class Searches:
    """Searches of all versions. For one event loop."""

    def __init__(self, indices: Indices) -> None:
        self._indices = indices
        self._kept: OrderedDict[tuple[object, ...], Found] = OrderedDict()
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def find(
        self,
        version: Version,
        pattern: Pattern,
        places: Sequence[Place],
        words: tuple[int, Words],
        *,
        with_examples: bool = True,
    ) -> Answer:
        """Searches places of a version; `words` come with the number of their last change.

        Without `with_examples`, examples are not searched, as if their index were not there yet. Raises VersionGone.
        """
        wants_index = Place.EXAMPLE in places and with_examples
        opened = await self._indices.open(version) if wants_index else Opened()
        index = opened.index
        key = (version.card.manifest.name, version.version_id, pattern, tuple(places), words[0], index is None)
        if (found := self._kept.get(key)) is None:
            async with self._turns:
                found = await asyncio.to_thread(find, pattern, places, version.table, words[1], index)
            self._kept[key] = found
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(key)
        return Answer(found, opened)

    async def snippets(
        self, answer: Answer, version: Version, pattern: Pattern, words: Words, latents: Sequence[int]
    ) -> list[list[Snippet]]:
        """For each of some latents that were found, a snippet a place."""
        index: Index | None = answer.opened.index

        def cut() -> list[list[Snippet]]:
            return [list(snippets(answer.found, each, pattern, version.table, words, index)) for each in latents]

        return await asyncio.to_thread(cut)
