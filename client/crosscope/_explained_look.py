"""The findings of a look with the latents of a crosscoder that carry them. Knows nothing about gRPC."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

from crosscope import _html, _tables
from crosscope._attribution import Attribution
from crosscope._findings import Finding
from crosscope._public import public
from crosscope._tables import number

if TYPE_CHECKING:
    import pandas as pd

EXPLAINED_HEADERS = ("kl", "token", "base says next", "chat says next", "layer carries", "latents and their shares")


@public
@dataclass(frozen=True, eq=False)
class ExplainedFinding:
    """A finding, and the latents of a crosscoder that carry it."""

    finding: Finding
    attribution: Attribution
    """The latents with the share of the KL that goes when each is taken away, and what the whole stream carries."""

    def cells(self) -> tuple[str, ...]:
        """Cells of EXPLAINED_HEADERS."""
        found = self.attribution
        kl = found.value
        shares = (
            f"{each.latent}: {(each.estimate if each.effect is None else each.effect) / kl:.0%}"
            + ("" if each.effect is not None else " (estimated)")
            for each in found
            if kl
        )
        stream = f"{found.effect_of_stream / kl:.0%}" if kl else "–"
        _, _, token, _, base, chat, _ = self.finding.cells()
        return number(self.finding.kl), token, base, chat, stream, ", ".join(shares) or "no latent fires"


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

    def rows(self) -> list[tuple[str, ...]]:
        """Cells of every finding under EXPLAINED_HEADERS."""
        return [each.cells() for each in self]

    def to_pandas(self) -> "pd.DataFrame":
        """A data frame with a row for each finding and latent; needs pandas."""
        import pandas as pd

        rows = [
            {"kl": each.finding.kl, "piece": each.finding.piece, "place": each.finding.text.place, **vars(entry)}
            for each in self
            for entry in each.attribution
        ]
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        table = _tables.aligned(EXPLAINED_HEADERS, self.rows())
        return _tables.with_rest(table if self.entries else "there are no findings", len(self), self.num_findings)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return _html.page(_html.table(EXPLAINED_HEADERS, self.rows()))
