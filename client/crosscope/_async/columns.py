"""Whole columns of the statistics table: what each means, and its values."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from crosscope import _tables
from crosscope._columns import ColumnFacts, column_facts, refused_columns, scalar_columns
from crosscope._errors import InvalidInput
from crosscope._public import public

if TYPE_CHECKING:
    import numpy as np


_COLUMNS_A_CALL = 64
"""The most that the server takes."""


class ColumnAnswer(NamedTuple):
    """What the server says of one column."""

    values: "np.ndarray"
    """[latent] float32, NaN where undefined."""
    categories: tuple[str, ...]
    """The texts that the values 0, 1, … stand for; empty for a column of numbers."""


class ColumnReader(Protocol):
    """Asks for the values of columns."""

    async def __call__(self, names: Sequence[str]) -> dict[str, ColumnAnswer]:
        """The answer for each name. Raises InvalidInput for a column that the server does not know."""
        ...


@public
class AsyncColumns(Mapping[str, "AsyncColumn"]):
    """Columns of the statistics table, by name."""

    unknown: tuple[str, ...]
    """Columns that were left out because the server does not know them; empty before the values are read."""

    def __init__(self, read: ColumnReader, names: Sequence[str], *, only_known: bool) -> None:
        self._read, self._only_known, self.unknown = read, only_known, ()
        self._answers: dict[str, ColumnAnswer] = {}
        facts = [column_facts(name) for name in names or scalar_columns(numbers_only=True)]
        self._columns = {each.name: AsyncColumn(**vars(each), table=self) for each in facts}

    def __getitem__(self, name: str) -> "AsyncColumn":
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    async def read(self) -> "dict[str, np.ndarray]":
        """The values of all of them, by name: [latent] float32 each, NaN where undefined.

        Asks the server once, for 64 columns a call.
        """
        return {name: answer.values for name, answer in (await self.answers()).items()}

    async def answers(self) -> dict[str, ColumnAnswer]:
        """What the server says of all of them, by name; asked once. A warning names the columns that are left out."""
        if not self._answers:
            names, answers = list(self._columns), dict[str, ColumnAnswer]()
            for first in range(0, len(names), _COLUMNS_A_CALL):
                some = names[first : first + _COLUMNS_A_CALL]
                answers |= await self._known(some) if self._only_known else await self._read(some)
            self._leave_out([name for name in names if name not in answers])
            self._answers = answers
        return self._answers

    async def _known(self, asked: list[str]) -> dict[str, ColumnAnswer]:
        """The answers of the columns that the server knows; an old server refuses the others one by one."""
        while asked:
            try:
                return await self._read(asked)
            except InvalidInput as error:
                refused = refused_columns(error, asked)
                if not refused:
                    raise
                asked = [name for name in asked if name not in refused]
        return {}

    def _leave_out(self, names: list[str]) -> None:
        self.unknown = tuple(names)
        self._columns = {name: column for name, column in self._columns.items() if name not in names}
        if self.unknown:
            sentence = f"the server is older than this client and does not know {', '.join(self.unknown)}; left out"
            warnings.warn(sentence, stacklevel=3)

    def __repr__(self) -> str:
        rows = [(each.name, each.meaning, each.unit, each.source) for each in self.values()]
        return _tables.aligned(("column", "meaning", "unit", "source"), rows)


@public
@dataclass(frozen=True)
class AsyncColumn(ColumnFacts):
    """A column of the statistics table: what it means, and its values."""

    table: "AsyncColumns" = field(kw_only=True, repr=False, compare=False)
    """The columns whose values are read together with it."""

    @property
    async def values(self) -> "np.ndarray":
        """[latent] float32, NaN where undefined; read together with the columns that were asked for with it.

        Categories come as their numbers: see `texts`. Raises InvalidInput if the server does not know the column.
        """
        return (await self._answer()).values

    @property
    async def texts(self) -> list[str]:
        """[latent]: what each value stands for, as a text; raises InvalidInput for a column of numbers."""
        answer = await self._answer()
        # An old server does not send the categories that the contract's table has.
        categories = answer.categories or (("", *self.categories) if self.categories else ())
        if not categories:
            raise InvalidInput.of("columns", f"{self.name!r} holds numbers, which stand for no texts; read its values")
        return [categories[int(number)] for number in answer.values]

    async def _answer(self) -> ColumnAnswer:
        answers = await self.table.answers()
        if self.name not in answers:
            raise InvalidInput.of("columns", f"the server is older than this client and does not know {self.name!r}")
        return answers[self.name]
