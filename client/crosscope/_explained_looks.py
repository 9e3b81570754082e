"""The findings of a look with the latents of a crosscoder that carry them. Knows nothing about gRPC."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

from crosscope import _html, _tables
from crosscope._both import ONE_BY_ONE, BothAttributions, LatentInBoth
from crosscope._findings import Finding
from crosscope._public import public
from crosscope._tables import UNDEFINED, number, percent

if TYPE_CHECKING:
    import pandas as pd

EXPLAINED_HEADERS = (
    "kl",
    "token",
    "base says next",
    "chat says next",
    "layer: into base / out of chat",
    "latents: into base / out of chat",
)


@public
@dataclass(frozen=True, eq=False)
class ExplainedFinding:
    """A finding, and the latents of a crosscoder that carry it."""

    finding: Finding
    both: BothAttributions
    """What latents and the whole stream do to the KL, put into base and taken out of chat."""
    num_latents: int
    """Latents shown."""

    @property
    def latents(self) -> tuple[LatentInBoth, ...]:
        """The latents that carry most of it."""
        return self.both.carrying[: self.num_latents]

    def cells(self) -> tuple[str, ...]:
        """Cells of EXPLAINED_HEADERS."""
        sides = (self.both.transplant, self.both.ablation)
        streams = (
            UNDEFINED if each is None or not each.value else percent(each.effect_of_stream / each.value)
            for each in sides
        )
        shares = ", ".join(f"{each.latent}: {' / '.join(each.cells())}" for each in self.latents)
        _, _, token, _, base, chat, _ = self.finding.cells()
        said = shares or ("no latent carries it" if len(self.both) else "no latent fires")
        return number(self.finding.kl), token, base, chat, " / ".join(streams), said


@public
@dataclass(frozen=True, eq=False)
class ExplainedLook(Sequence[ExplainedFinding]):
    """The largest findings of a look, each with the latents that carry it."""

    crosscoder: str
    entries: tuple[ExplainedFinding, ...]
    num_findings: int
    """Findings of the look, before the limit."""

    def __len__(self) -> int:
        return len(self.entries)

    @overload
    def __getitem__(self, index: int) -> ExplainedFinding: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[ExplainedFinding, ...]: ...
    def __getitem__(self, index: int | slice) -> ExplainedFinding | tuple[ExplainedFinding, ...]:
        return self.entries[index]

    @property
    def remarks(self) -> tuple[str, ...]:
        """Why base was not asked, and how shares are to be read."""
        refused = dict.fromkeys(each.both.refused for each in self if each.both.refusal)
        return (*refused, ONE_BY_ONE) if self.entries else ()

    def rows(self) -> list[tuple[str, ...]]:
        """Cells of every finding under EXPLAINED_HEADERS."""
        return [each.cells() for each in self]

    def to_pandas(self) -> "pd.DataFrame":
        """A data frame with a row for each finding and latent; needs pandas."""
        import pandas as pd

        rows = [
            {"kl": each.finding.kl, "piece": each.finding.piece, "place": each.finding.text.place, **entry.to_row()}
            for each in self
            for entry in each.latents
        ]
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        table = _tables.aligned(EXPLAINED_HEADERS, self.rows())
        found = _tables.with_rest(table if self.entries else "there are no findings", len(self), self.num_findings)
        return "\n".join([found, *self.remarks])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return _html.page(_html.table(EXPLAINED_HEADERS, self.rows()) + _html.remarks(self.remarks))
