"""What latents do to a difference in both models: put into base, and taken out of chat. Knows nothing about gRPC.

The two questions have different answers. Where several latents carry the same in chat, each alone is not missed; put
into base, where none of them is, it shows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

from crosscope import _html, _tables
from crosscope._attribution import Attribution
from crosscope._public import public
from crosscope._tables import number, percent

if TYPE_CHECKING:
    import pandas as pd

BOTH_HEADERS = ("latent", "into base", "out of chat")
ONE_BY_ONE = "Shares are of latents changed one by one; they do not add up."


@public
@dataclass(frozen=True)
class LatentEffect:
    """What one change of a latent does to a difference between the models."""

    effect: float
    """The difference as it is less the difference after the change, nats; its estimate where `measured` is false."""
    share: float
    """The effect as a share of the difference; negative if the change makes it larger."""
    measured: bool
    """Whether the effect was measured by running the model, not estimated."""
    peak_token: int
    """The token at which the latent acts most, by the estimate."""

    def __str__(self) -> str:
        return f"{'' if self.measured else '~'}{percent(self.share)}"


@public
@dataclass(frozen=True)
class LatentInBoth:
    """What a latent does to a difference in both models. A side is None where that model's attribution lacks it."""

    latent: int
    ablation: LatentEffect | None
    """What goes when the latent is taken out of chat."""
    transplant: LatentEffect | None
    """What goes when chat's row of the latent is put into base."""

    @property
    def strongest(self) -> LatentEffect:
        """The side with the larger effect; a negative effect does not carry."""
        return max((each for each in (self.transplant, self.ablation) if each), key=lambda each: each.effect)

    @property
    def words(self) -> str:
        """What it does in both models, as a sentence without a subject."""
        return f"{_into_base(self.transplant)}; {_out_of_chat(self.ablation)}"

    def cells(self) -> tuple[str, str]:
        """Its shares, put into base and taken out of chat; "~" in front of an estimate, a dash for None."""
        into_base, out_of_chat = (_tables.UNDEFINED if each is None else str(each) for each in self._sides.values())
        return into_base, out_of_chat

    def to_row(self) -> dict[str, Any]:
        """Its values by name, a side's as `transplant_share`; None where there is no such side."""
        found: dict[str, Any] = {"latent": self.latent}
        for side, each in self._sides.items():
            found |= {
                f"{side}_{name}": None if each is None else getattr(each, name)
                for name in ("effect", "share", "measured")
            }
        return found

    @property
    def _sides(self) -> Mapping[str, LatentEffect | None]:
        return {"transplant": self.transplant, "ablation": self.ablation}


@public
@dataclass(frozen=True, eq=False)
class BothAttributions(Sequence[LatentInBoth]):
    """The latents that change a difference in either model, merged by latent; the larger share of each orders them."""

    ablation: Attribution
    """What latents do when they are taken out of chat."""
    transplant: Attribution | None
    """What they do when chat's rows are put into base; None if base cannot take them."""
    refusal: str = ""
    """Why base cannot take chat's rows; empty if it can."""

    @cached_property
    def entries(self) -> tuple[LatentInBoth, ...]:
        """Every latent that either attribution lists."""
        out_of_chat, into_base = _effects(self.ablation), _effects(self.transplant)
        found = [
            LatentInBoth(latent, out_of_chat.get(latent), into_base.get(latent))
            for latent in sorted(out_of_chat | into_base)
        ]
        return tuple(sorted(found, key=lambda each: -each.strongest.effect))

    @property
    def carrying(self) -> tuple[LatentInBoth, ...]:
        """The latents of which one change at least makes the models differ less."""
        return tuple(each for each in self.entries if each.strongest.effect > 0)

    def __len__(self) -> int:
        return len(self.entries)

    @overload
    def __getitem__(self, index: int) -> LatentInBoth: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[LatentInBoth, ...]: ...
    def __getitem__(self, index: int | slice) -> LatentInBoth | tuple[LatentInBoth, ...]:
        return self.entries[index]

    @property
    def num_in_one(self) -> int:
        """Latents that one model's attribution lists and the other's does not; 0 if base was not asked."""
        return (
            sum(each.ablation is None or each.transplant is None for each in self) if self.transplant is not None else 0
        )

    @property
    def totals(self) -> tuple[str, ...]:
        """What all latents and the whole streams do in each model, and what was not measured."""
        lines = [" ".join(each.remarks) for each in (self.transplant, self.ablation) if each is not None]
        if self.num_in_one:
            lines.append(
                f"{self.num_in_one} of the {len(self)} latents listed have no figure (–) in one of the models: it "
                "measured others, whose estimates are larger."
            )
        return tuple(lines)

    @property
    def remarks(self) -> tuple[str, ...]:
        """The totals, and why base was not asked."""
        return (*self.totals, self.refused) if self.refusal else self.totals

    @property
    def refused(self) -> str:
        """The refusal as a sentence; empty if there is none."""
        return f"Nothing was put into base: {self.refusal}." if self.refusal else ""

    def to_pandas(self) -> "pd.DataFrame":
        """A data frame with a row for each latent; needs pandas."""
        import pandas as pd

        return pd.DataFrame([each.to_row() for each in self])

    def rows(self) -> list[tuple[str, ...]]:
        """Cells of every latent under BOTH_HEADERS."""
        return [(str(each.latent), *each.cells()) for each in self]

    def __str__(self) -> str:
        rows = self.rows()[: _tables.MOST_ROWS]
        table = _tables.with_rest(_tables.aligned(BOTH_HEADERS, rows), len(rows), len(self))
        return "\n".join([self.ablation.figure, table if rows else "no latent fires", *self.remarks, ONE_BY_ONE])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = self.rows()[: _tables.MOST_ROWS]
        rest = [f"… {len(self) - len(rows)} more"] if len(self) > len(rows) else []
        table = _html.table(BOTH_HEADERS, rows)
        return _html.page(
            _html.remarks([self.ablation.figure]) + table + _html.remarks([*rest, *self.remarks, ONE_BY_ONE])
        )


def _effects(attribution: Attribution | None) -> dict[int, LatentEffect]:
    """The effect of each latent that an attribution lists."""
    if attribution is None:
        return {}
    return {
        entry.latent: LatentEffect(
            entry.estimate if entry.effect is None else entry.effect,
            attribution.share(entry),
            entry.effect is not None,
            entry.peak_token,
        )
        for entry in attribution
    }


def _into_base(side: LatentEffect | None) -> str:
    if side is None:
        return "put into base it was not measured"
    if side.share != side.share:
        return f"put into base it changes the difference by {number(side.effect)} nats"
    if side.share < 0:
        return f"put into base it makes the difference {_size(side)} larger"
    return f"put into base it makes up {_size(side)} of the difference"


def _out_of_chat(side: LatentEffect | None) -> str:
    if side is None:
        return "taken out of chat it was not measured"
    if side.share != side.share:
        return f"without it in chat the difference changes by {number(side.effect)} nats"
    if side.share < 0:
        return f"without it in chat the difference is {_size(side)} larger"
    return f"without it in chat {_size(side)} of the difference goes"


def _size(side: LatentEffect) -> str:
    return f"{'' if side.measured else 'an estimated '}{percent(abs(side.share))}"
