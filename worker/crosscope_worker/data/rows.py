"""The protocol of readers of data sets, and the rows that they give. Reads nothing."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Tell = Callable[[str], None]
"""Hears what a waiting person should know; may raise to stop the reading."""


Wanted = Callable[[int], bool]
"""Whether the row of a number will be looked at."""


class DataError(ValueError):
    """Data that cannot be read; the sentence names the data set, or the file and line."""


@dataclass(frozen=True)
class Row:
    """A row of a data set and where it stands, for messages."""

    place: str
    values: Mapping[str, Any]


class Rows(Protocol):
    """A reader of a data set's rows."""

    files: list[Path]
    """Files in the order in which they are read; none for a hub data set."""
    retries: int
    """Reads that failed and were tried again."""

    @property
    def deals_part(self) -> bool:
        """Whether `read` gives the rows of the reader's part alone; else it gives all. Known once a row was read."""
        ...

    def read(self, first: int, wanted: Wanted | None = None) -> Iterator[tuple[int, Row]]:
        """Rows with their numbers, from number `first` on. Those that are not `wanted` may come without their values.

        Raises DataError that names the row.
        """
        ...

    def count(self, at_most: int | None = None) -> int | None:
        """Number of rows; counting may stop at `at_most`. None if only reading to the end would tell."""
        ...

    def state(self) -> dict[str, Any] | None:
        """Where the reader itself stands, as plain values; None if that need not be kept."""
        ...

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Lets the next reading go on from a saved state."""
        ...


@dataclass(frozen=True)
class Columns:
    """The columns that are read of a Parquet file."""

    needed: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    """Read if the file has them."""


def said(error: Exception) -> str:
    """An error of any library on one line, for messages."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
