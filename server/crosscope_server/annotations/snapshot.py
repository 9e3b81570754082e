"""The words of one dictionary in memory, for filters and orders of latents. Knows nothing about SQL.

The columns are `label` and `list`, which hold texts, `labelled`, `starred` and `noted`, which are 1 or 0, and the
scores of automatic labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from crosscope_proto.labels import SCORES
from crosscope_server.errors import InvalidRequest, NotFound, Violation
from crosscope_server.latents import COMPARISONS, Filter, Order

FLAGS = ("labelled", "starred", "noted")
FIGURES = (*FLAGS, *SCORES)
"""Columns that hold a number for each latent."""
COLUMNS = ("label", "list", *FIGURES)

Ids = NDArray[np.int64]
_NOBODY: Ids = np.empty(0, np.int64)


@dataclass(frozen=True)
class Snapshot:
    """What is said about the latents of a dictionary."""

    revision: int = 0
    """Number of the last change."""
    labels: Mapping[int, str] = field(default_factory=dict)
    """By latent; a person's before a program's."""
    automatic: frozenset[int] = frozenset()
    """Latents whose label a program said."""
    scores: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    """By the names of SCORES, then by latent: how well its automatic label fits."""
    starred: Ids = field(default_factory=_NOBODY.copy)
    notes: Mapping[int, str] = field(default_factory=dict)
    """By latent."""
    lists: Mapping[str, Ids] = field(default_factory=dict)
    """The latents of each list, in its order."""

    def is_starred(self, latent: int) -> bool:
        """Whether a latent has a star."""
        at = int(np.searchsorted(self.starred, latent))
        return at < len(self.starred) and int(self.starred[at]) == latent

    def flags(self, column: str, num_latents: int) -> NDArray[np.float64]:
        """A column of FLAGS: [latent] 1 or 0."""
        ids = {"labelled": self.labels, "starred": self.starred, "noted": self.notes}[column]
        return _among(np.array(list(ids), np.int64), num_latents).astype(np.float64)

    def score(self, column: str, num_latents: int) -> NDArray[np.float64]:
        """A column of SCORES: [latent], NaN without a score."""
        found = np.full(num_latents, np.nan)
        for latent, value in self.scores.get(column, {}).items():
            if latent < num_latents:
                found[latent] = value
        return found

    def figures(self, column: str, num_latents: int) -> NDArray[np.float64]:
        """A column of FIGURES: [latent]."""
        return (self.flags if column in FLAGS else self.score)(column, num_latents)

    def meets(self, index: int, condition: Filter, num_latents: int) -> NDArray[np.bool_]:
        """Which latents meet a condition on one of COLUMNS, the filter `index` of a request: [latent].

        Raises InvalidRequest, or NotFound for a list that there is not.
        """
        column, comparison, value = condition.column, condition.comparison, condition.value
        field_ = f"filters[{index}]"
        if column in FLAGS:
            if value not in (0, 1) or comparison not in ("=", "!="):
                raise InvalidRequest([Violation(field_, f"{column} is 1 or 0: write {column} = 1 or {column} = 0")])
            return self.flags(column, num_latents) == (value if comparison == "=" else 1 - value)
        if column in SCORES:
            return self._scored(field_, condition, num_latents)
        if not isinstance(value, str):
            sentence = f"{column} is compared with a text, but is compared with {value!r}"
            raise InvalidRequest([Violation(f"{field_}.number", sentence)])
        compared = ("=", "!=", "contains") if column == "label" else ("=", "!=")
        if comparison not in compared:
            sentence = f"{column} is compared by {', '.join(compared)}, not by {comparison}"
            raise InvalidRequest([Violation(f"{field_}.op", sentence)])
        if column == "list":
            found = _among(self._list(value), num_latents)
        elif comparison == "contains":
            part = value.casefold()
            found = _of(num_latents, [latent for latent, label in self.labels.items() if part in label.casefold()])
        else:
            found = _of(num_latents, [latent for latent, label in self.labels.items() if label == value])
        return ~found if comparison == "!=" else found

    def _scored(self, field_: str, condition: Filter, num_latents: int) -> NDArray[np.bool_]:
        """Which latents meet a condition on a score; without a score, none does."""
        column, comparison, value = condition.column, condition.comparison, condition.value
        if isinstance(value, str) or comparison not in COMPARISONS:
            sentence = f"{column} is a score from 0 to 1: compare it with a number by {', '.join(COMPARISONS)}"
            raise InvalidRequest([Violation(field_, sentence)])
        found = self.score(column, num_latents)
        return COMPARISONS[comparison](found, value) & ~np.isnan(found)

    def order(self, order_by: str, filters: Sequence[Filter], num_latents: int) -> Order:
        """The order by one of COLUMNS, with "-" in front for descending. Raises InvalidRequest or NotFound."""
        descending, column = order_by.startswith("-"), order_by.removeprefix("-")
        if column in FIGURES:
            values = self.figures(column, num_latents)
            return Order(np.argsort(-values if descending else values, kind="stable"), np.isnan(values))
        if column == "label":
            ids = sorted(self.labels, key=lambda latent: (self.labels[latent].casefold(), latent))
        else:
            names = [each.value for each in filters if each.column == "list" and each.comparison == "="]
            if len(names) != 1:
                sentence = "the order of a list needs exactly one filter list = NAME, whose order it is"
                raise InvalidRequest([Violation("order_by", sentence)])
            ids = self._list(str(names[0])).tolist()
        first = np.array([latent for latent in ids if latent < num_latents], np.int64)
        undefined = ~_among(first, num_latents)
        first = first[::-1] if descending else first
        return Order(np.concatenate([first, np.flatnonzero(undefined)]), undefined)

    def _list(self, name: str) -> Ids:
        if (found := self.lists.get(name)) is None:
            there = sorted(self.lists)
            hint = f"there are {', '.join(map(repr, there[:10]))}" if there else "there is no list yet"
            raise NotFound(f"no list {name!r}; {hint}")
        return found


def _of(num_latents: int, ids: Sequence[int]) -> NDArray[np.bool_]:
    return _among(np.array(ids, np.int64), num_latents)


def _among(ids: Ids, num_latents: int) -> NDArray[np.bool_]:
    """Whether each latent is one of some: [latent]."""
    found = np.zeros(num_latents, bool)
    found[ids[ids < num_latents]] = True
    return found
