"""Why both models differ on a prompt: where, and by which latents. Knows nothing about gRPC."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

from crosscope import _html
from crosscope._both import ONE_BY_ONE, BothAttributions, LatentInBoth
from crosscope._comparison import Comparison, next_words
from crosscope._public import public
from crosscope._tables import number, visible

if TYPE_CHECKING:
    import pandas as pd

EXPLANATION_HEADERS = ("token", "piece", "KL", "latent", "into base", "out of chat", "peaks")
_PEAKS = 3
"""Peak tokens that a sentence quotes."""


@public
@dataclass(frozen=True)
class ExplainedLatent(LatentInBoth):
    """What one latent does to the difference at one token, in both models."""

    token: int
    """The token at which the models differ: what they say next."""
    piece: str
    kl: float
    """KL(chat ‖ base) there, nats."""
    peaks: tuple[str, ...]
    """Tokens on which the latent is strongest in the analysis."""

    def to_row(self) -> dict[str, Any]:
        """Its values by name, a side's as `transplant_share`, and the sentence."""
        place = {"token": self.token, "piece": self.piece, "kl": self.kl}
        return {**place, **super().to_row(), "peaks": self.peaks, "sentence": str(self)}

    def __str__(self) -> str:
        quoted = ", ".join(f'"{visible(piece)}"' for piece in self.peaks[:_PEAKS])
        peaks = f" (peaks: {quoted})" if quoted else ""
        at = f'At "{visible(self.piece)}" (token {self.token}, KL {number(self.kl, 3)} nats)'
        return f"{at} latent {self.latent}{peaks}: {self.words}."


@public
@dataclass(frozen=True, eq=False)
class Explanation(Sequence[ExplainedLatent]):
    """The tokens at which the models differ most, and the latents that carry the difference there.

    A latent carries it if the models differ less when it is put into base, or when it is taken out of chat; the larger
    share of the two orders them. `attributions` also have the latents with which the models differ more.
    """

    comparison: Comparison
    attributions: tuple[BothAttributions, ...]
    """One for each explained token, the largest difference first."""
    peaks: Mapping[int, tuple[str, ...]]
    """Tokens on which each latent is strongest in the analysis."""
    limit: int
    """Latents shown for each token."""
    passed_over: tuple[int, ...]
    """Tokens of the template, or left out by training, whose KL is larger than that of the last explained token."""

    def _entries(self) -> list[ExplainedLatent]:
        return [self._explained(both, entry) for both in self.attributions for entry in both.carrying[: self.limit]]

    def _explained(self, both: BothAttributions, entry: LatentInBoth) -> ExplainedLatent:
        token = both.ablation.explained[0]
        return ExplainedLatent(
            **vars(entry),
            token=token,
            piece=self.comparison.tokens.pieces[token],
            kl=both.ablation.value,
            peaks=self.peaks.get(entry.latent, ()),
        )

    def __len__(self) -> int:
        return sum(len(each.carrying[: self.limit]) for each in self.attributions)

    @overload
    def __getitem__(self, index: int) -> ExplainedLatent: ...
    @overload
    def __getitem__(self, index: slice) -> list[ExplainedLatent]: ...
    def __getitem__(self, index: int | slice) -> ExplainedLatent | list[ExplainedLatent]:
        return self._entries()[index]

    @property
    def sentences(self) -> list[str]:
        """A sentence for each row."""
        return [str(each) for each in self]

    @property
    def remarks(self) -> tuple[str, ...]:
        """What all latents and the whole streams do at each token, what is not explained, and what was passed over."""
        lines: list[str] = []
        for both in self.attributions:
            lines += [self._said(both), *both.totals]
        if self.passed_over:
            named = ", ".join(map(self._where, self.passed_over[:5]))
            more = f" and {len(self.passed_over) - 5} more" if len(self.passed_over) > 5 else ""
            lines.append(
                f"Passed over, though the models differ more there: {named}{more}. They are of the template, or "
                "training left them out; skip_template_tokens=False and include_left_out=True explain them too."
            )
        lines += dict.fromkeys(each.refused for each in self.attributions if each.refusal)
        lines.append(ONE_BY_ONE)
        return tuple(lines)

    def _said(self, both: BothAttributions) -> str:
        """What both models say next at an explained token, and what is not among the rows, in words."""
        token, num_carrying = both.ablation.explained[0], len(both.carrying)
        following = self.comparison.next_tokens(token)
        at = f'At "{visible(self.comparison.tokens.pieces[token])}" (token {token})'
        said = [f"{at} base says {next_words(following.base) or '–'}, chat {next_words(following.chat) or '–'}."]
        if num_carrying > self.limit:
            said.append(f"Others that carry some of it: {num_carrying - self.limit}; limit shows more.")
        if num_carrying < len(both):
            said.append(f"{len(both) - num_carrying} of {len(both)} latents listed carry nothing in either model.")
        return " ".join(said)

    def _where(self, token: int) -> str:
        """A token and the KL there, in words."""
        kl = number(float(self.comparison.kl_chat_base[token]), 3)
        return f'"{visible(self.comparison.tokens.pieces[token])}" (token {token}, {kl} nats)'

    def to_pandas(self) -> "pd.DataFrame":
        """A data frame with a row for each token and latent; needs pandas."""
        import pandas as pd

        return pd.DataFrame([each.to_row() for each in self])

    def rows(self) -> list[tuple[str, ...]]:
        """Cells of every row under EXPLANATION_HEADERS."""
        return [
            (
                str(each.token),
                visible(each.piece),
                number(each.kl, 3),
                str(each.latent),
                *each.cells(),
                " ".join(map(visible, each.peaks[:_PEAKS])),
            )
            for each in self
        ]

    def __str__(self) -> str:
        return "\n".join([*(self.sentences or ["No latent carries a difference here."]), *self.remarks])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = [(*row, each.words) for row, each in zip(self.rows(), self, strict=True)]
        return _html.page(_html.table((*EXPLANATION_HEADERS, "in words"), rows) + _html.remarks(self.remarks))
