"""Listings whose pages are fetched when they are reached. Knows nothing about the items."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, overload

from crosscope import _aio
from crosscope._progress import move_to, open_bar

if TYPE_CHECKING:
    from tqdm import tqdm

_Item = TypeVar("_Item")
PAGE_SIZE = 500


@dataclass(frozen=True)
class Page(Generic[_Item]):
    """A page of a listing."""

    items: list[_Item]
    next_token: str
    """Empty on the last page."""
    num_matching: int
    num_undefined: int
    notes: tuple[str, ...]


class PageReader(Protocol[_Item]):
    """Asks for one page."""

    async def __call__(self, page_token: str, page_size: int) -> Page[_Item]:
        """The page that a token names, with at most `page_size` items; "" names the first page."""
        ...


class AsyncPages(_aio.Many[_Item]):
    """A listing. The first page is there from the start; each other page is fetched when it is reached."""

    num_matching: int
    """Number of items that meet the conditions, whatever the limit."""
    num_undefined: int
    """How many of these have no value of `order_by`; they come last."""
    notes: tuple[str, ...]
    """Sentences for the reader, for instance that the column of a condition is undefined for every item."""

    def __init__(
        self, read_page: PageReader[_Item], first: Page[_Item], limit: int | None, progress: bool | None
    ) -> None:
        self._read_page, self._progress = read_page, progress
        self._lock = _aio.Lock()
        self._bar: tqdm[Any] | None = None
        self._fetched, self._next_token, self.num_matching = first.items, first.next_token, first.num_matching
        self.num_undefined, self.notes = first.num_undefined, first.notes
        self._length = self.num_matching if limit is None else min(limit, self.num_matching)

    def __len__(self) -> int:
        return self._length

    @overload
    async def __getitem__(self, index: int) -> _Item: ...
    @overload
    async def __getitem__(self, index: slice) -> list[_Item]: ...
    async def __getitem__(self, index: int | slice) -> _Item | list[_Item]:
        if isinstance(index, slice):
            wanted = range(self._length)[index]
            await self._fetch(max(wanted, default=-1) + 1)
            return self._fetched[: self._length][index]
        position = index + self._length if index < 0 else index
        if 0 <= position < self._length:
            await self._fetch(position + 1)
        if not 0 <= position < self._length:
            raise IndexError(f"index {index} is outside the {self._length} items of this list")
        return self._fetched[position]

    async def __aiter__(self) -> AsyncIterator[_Item]:
        position = 0
        while position < self._length:
            await self._fetch(position + 1)
            if position < len(self._fetched):
                yield self._fetched[position]
            position += 1

    async def _fetch(self, count: int) -> None:
        async with self._lock:
            while len(self._fetched) < count and self._next_token:
                self._bar = self._bar or open_bar(self._progress, "pages", self._length, "latents")
                page = await self._read_page(self._next_token, PAGE_SIZE)
                self._next_token = page.next_token
                self._fetched += page.items
                move_to(self._bar, min(len(self._fetched), self._length))
            if len(self._fetched) < min(count, self._length):
                self._length = len(self._fetched)
            if self._bar is not None and len(self._fetched) >= self._length:
                self._bar.close()
