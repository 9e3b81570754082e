"""How the latents of two crosscoders of one pair correspond. Knows no call."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from crosscope import _html, _tables
from crosscope._public import public
from crosscope._tables import number, percent

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

_HEADS = ("latents of", "kind", "latents", "matched", "without a like", "mean cosine")
_NAMES = {"latent_class": "class", "verdict": "verdict", "specific_to": "specific to"}


@public
@dataclass(frozen=True)
class MatchCount:
    """Latents of one kind, and how many of them the other crosscoder has too."""

    column: str
    """By what they are of one kind: "latent_class", "verdict" or "specific_to"; empty: all living latents."""
    value: str
    """Its value; empty where it is undefined."""
    num: int
    num_matched: int
    num_alone: int
    """Latents whose nearest has a cosine below `LatentMatches.min_cosine`: the other has nothing like them."""
    mean_cosine: float

    @property
    def kind(self) -> str:
        """The kind in words."""
        if not self.column:
            return "all living"
        return f"{_NAMES.get(self.column, self.column)}: {self.value.replace('_', ' ') or 'none'}"


@public
@dataclass(frozen=True, eq=False)
class MatchedSide:
    """The nearest latents of the other crosscoder, for the living latents of one. Arrays are [living]."""

    crosscoder: str
    version_id: str
    latents: "np.ndarray" = field(repr=False)
    """int64, ascending ids."""
    nearest: "np.ndarray" = field(repr=False)
    """int64, ids in the other crosscoder."""
    cosines: "np.ndarray" = field(repr=False)
    """float32, cosines of the decoder rows, both models' rows side by side."""
    mutual: "np.ndarray" = field(repr=False)
    """bool: the latent is also the nearest of its nearest."""
    counts: tuple[MatchCount, ...]
    """All living latents first, then by class, verdict and model that they are specific to."""
    num_dead: int
    """Latents that never fired in the analysis; they are not compared."""

    def of(self, latent: int) -> tuple[int, float, bool] | None:
        """The nearest latent of the other crosscoder, its cosine, and whether it is mutual; None of a dead latent."""
        at = int(self.latents.searchsorted(latent))
        if at >= len(self.latents) or self.latents[at] != latent:
            return None
        return int(self.nearest[at]), float(self.cosines[at]), bool(self.mutual[at])

    def count(self, column: str = "", value: str = "") -> MatchCount:
        """The count of one kind; of zero latents where there is no such kind."""
        found = (each for each in self.counts if (each.column, each.value) == (column, value))
        return next(found, MatchCount(column, value, 0, 0, 0, math.nan))

    def to_pandas(self) -> "pd.DataFrame":
        """A row for each living latent, indexed by its id. Needs pandas."""
        import pandas as pd

        columns = {"nearest": self.nearest, "cosine": self.cosines, "mutual": self.mutual}
        return pd.DataFrame(columns, index=pd.Index(self.latents, name="latent"))


@public
@dataclass(frozen=True, eq=False)
class LatentMatches:
    """The nearest latents of two crosscoders, in both directions (math §13). Prints as a table of counts."""

    first: MatchedSide
    second: MatchedSide
    min_cosine: float
    """Two latents match if each is the other's nearest and the cosine is at least this."""

    @property
    def sides(self) -> tuple[MatchedSide, MatchedSide]:
        """Both sides."""
        return self.first, self.second

    def _rows(self) -> list[Sequence[str]]:
        return [
            (
                side.crosscoder,
                count.kind,
                str(count.num),
                f"{count.num_matched} ({percent(count.num_matched / count.num if count.num else None)})",
                str(count.num_alone),
                number(count.mean_cosine, 3),
            )
            for side in self.sides
            for count in side.counts
        ]

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences about how the figures came about."""
        dead = ", ".join(f"{side.num_dead} of {side.crosscoder}" for side in self.sides)
        is_match = f"Matched: each is the other's nearest, cosine at least {self.min_cosine:.2g}."
        return (
            f"{is_match} Without a like: the nearest has a smaller one.",
            f"Dead latents are not compared: {dead}.",
        )

    def __str__(self) -> str:
        return "\n".join([_tables.aligned(_HEADS, self._rows()), *self.remarks])

    def _repr_html_(self) -> str:
        return _html.page(_html.table(_HEADS, self._rows()) + _html.remarks(self.remarks))
