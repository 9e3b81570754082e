"""The columns of the statistics table and what each means, from the contract's one table of columns."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from crosscope._errors import InvalidInput
from crosscope_proto.columns import ALL_LATENT_COLUMNS, NAN

_BY_NAME = {column.name: column for column in ALL_LATENT_COLUMNS}
_SHARES = {
    f"{column.name.removesuffix('s')}_": column for column in ALL_LATENT_COLUMNS if column.axis in ("role", "dataset")
}
_REFUSED = re.compile(r"columns\[(\d+)\]")
"""The field that a refusal of one column names."""


@dataclass(frozen=True)
class ColumnFacts:
    """What a column of the statistics table means."""

    name: str
    meaning: str
    """A sentence; empty for a column that this version of the client does not know."""
    unit: str = ""
    """What the values count; empty for pure numbers, classes and ids."""
    source: str = ""
    """The section of docs/math.md that defines it."""
    low: float | None = None
    """Smallest value that it can have; None: no limit."""
    high: float | None = None
    """Largest value that it can have; None: no limit."""
    undefined: str = ""
    """Where it is NaN; empty: nowhere."""
    categories: tuple[str, ...] = ()
    """What the values 1, 2, … stand for; empty where they are numbers, and where each dictionary has its own."""


def column_facts(name: str) -> ColumnFacts:
    """What a column means. A share by data set or role has the meaning of the list of shares that it belongs to."""
    share = next((column for prefix, column in _SHARES.items() if name.startswith(prefix)), None)
    column = _BY_NAME.get(name, share)
    if column is None:
        return ColumnFacts(name, "")
    said = {field.name: getattr(column, field.name) for field in fields(ColumnFacts)}
    return replace(ColumnFacts(**said), name=name)


def scalar_columns(*, numbers_only: bool = False) -> list[str]:
    """Names of the columns with one value a latent, in the order of the table; categories count as numbers."""
    scalars = [column for column in ALL_LATENT_COLUMNS if column.is_scalar]
    return [each.name for each in scalars if not numbers_only or not each.is_text or each.categories]


def refused_columns(error: InvalidInput, asked: Sequence[str]) -> list[str]:
    """The columns that the server refused, out of those that were asked for; empty if it refused something else."""
    places = [int(found[1]) for violation in error.violations if (found := _REFUSED.fullmatch(violation.field))]
    return [asked[place] for place in places if place < len(asked)]


def value_of(latent: object, name: str) -> object:
    """The value of a latent in a column of one value; NaN, or an empty text, where it is undefined."""
    column, value = _BY_NAME[name], latent
    for field in column.path:
        at: Any = value
        value = at.get(field, NAN) if isinstance(at, Mapping) else getattr(at, field)
    if column.is_text:
        return "" if value is None else str(value)
    return NAN if value is None else value
