"""Whole columns of the statistics table: what each means, and its values."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from crosscope import _tables
from crosscope._columns import ColumnFacts, column_facts, scalar_columns
from crosscope._public import public

if TYPE_CHECKING:
    import numpy as np


class ColumnReader(Protocol):
    """Asks for the values of columns."""

    async def __call__(self, names: Sequence[str]) -> "dict[str, np.ndarray]":
        """[latent] float32 for each name."""
        ...


@public
class AsyncColumns(Mapping[str, "AsyncColumn"]):
    """Columns of the statistics table, by name."""

    def __init__(self, read: ColumnReader, names: Sequence[str]) -> None:
        self._read, self._values = read, dict[str, "np.ndarray"]()
        facts = [column_facts(name) for name in names or scalar_columns(numbers_only=True)]
        self._columns = {each.name: AsyncColumn(**vars(each), table=self) for each in facts}

    def __getitem__(self, name: str) -> "AsyncColumn":
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    async def read(self) -> "dict[str, np.ndarray]":
        """The values of all of them, by name: [latent] float32 each, NaN where undefined. Asks the server once."""
        if not self._values:
            self._values = await self._read(list(self._columns))
        return self._values

    def __repr__(self) -> str:
        rows = [(each.name, each.meaning, each.unit, each.source) for each in self.values()]
        return _tables.aligned(("column", "meaning", "unit", "source"), rows)


@public
@dataclass(frozen=True)
class AsyncColumn(ColumnFacts):
    """A column of the statistics table: what it means, and its values."""

    table: "AsyncColumns" = field(kw_only=True, repr=False, compare=False)
    """The columns that it was asked for with."""

    @property
    async def values(self) -> "np.ndarray":
        """[latent] float32, NaN where undefined; read together with the columns that were asked for with it.

        Categories come as their numbers, from 1: see `categories`.
        """
        return (await self.table.read())[self.name]
