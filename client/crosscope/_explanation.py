"""Why both models differ on a prompt: where, and by which latents. Knows nothing about gRPC."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

from crosscope import _html
from crosscope._attribution import AttributedLatent, Attribution
from crosscope._comparison import Comparison, next_words
from crosscope._public import public
from crosscope._tables import number, visible

if TYPE_CHECKING:
    import pandas as pd

EXPLANATION_HEADERS = ("token", "piece", "KL", "latent", "share", "peaks")
_PEAKS = 3
"""Peak tokens that a sentence quotes."""


@public
@dataclass(frozen=True)
class ExplainedLatent:
    """What one latent carries of the difference at one token."""

    token: int
    """The token at which the models differ: what they say next."""
    piece: str
    kl: float
    """KL(chat ‖ base) there, nats."""
    latent: int
    effect: float
    """The KL as it is less the KL without the latent, nats; its estimate where `measured` is false."""
    share: float
    """The effect as a share of the KL."""
    measured: bool
    """Whether the effect was measured by running the model, not estimated."""
    peaks: tuple[str, ...]
    """Tokens on which the latent is strongest in the analysis."""

    def __str__(self) -> str:
        quoted = ", ".join(f'"{visible(piece)}"' for piece in self.peaks[:_PEAKS])
        peaks = f" (peaks: {quoted})" if quoted else ""
        about = "" if self.measured else "an estimated "
        verb = f"carries {about}{self.share:.0%} of" if self.share >= 0 else f"lessens by {about}{-self.share:.0%}"
        at = f'At "{visible(self.piece)}" (token {self.token}, KL {number(self.kl, 3)} nats)'
        return f"{at} latent {self.latent}{peaks} {verb} the difference."


@public
@dataclass(frozen=True, eq=False)
class Explanation(Sequence[ExplainedLatent]):
    """The tokens at which the models differ most, and the latents that carry the difference there."""

    comparison: Comparison
    attributions: tuple[Attribution, ...]
    """One for each explained token, the largest difference first."""
    peaks: Mapping[int, tuple[str, ...]]
    """Tokens on which each latent is strongest in the analysis."""
    limit: int
    """Latents shown for each token."""
    passed_over: tuple[int, ...]
    """Tokens of the template, or left out by training, whose KL is larger than that of the last explained token."""

    def _entries(self) -> list[ExplainedLatent]:
        return [
            self._explained(attribution, entry)
            for attribution in self.attributions
            for entry in attribution[: self.limit]
        ]

    def _explained(self, attribution: Attribution, entry: AttributedLatent) -> ExplainedLatent:
        token, measured = attribution.explained[0], entry.effect is not None
        effect = entry.estimate if entry.effect is None else entry.effect
        return ExplainedLatent(
            token=token,
            piece=self.comparison.tokens.pieces[token],
            kl=attribution.value,
            latent=entry.latent,
            effect=effect,
            share=effect / attribution.value if attribution.value else float("nan"),
            measured=measured,
            peaks=self.peaks.get(entry.latent, ()),
        )

    def __len__(self) -> int:
        return sum(min(len(each), self.limit) for each in self.attributions)

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
        """What is not explained: shares that no latent carries, and tokens that were passed over."""
        lines: list[str] = []
        for each in self.attributions:
            token = each.explained[0]
            both = self.comparison.next_tokens(token)
            lines.append(
                f'At "{visible(self.comparison.tokens.pieces[token])}" (token {token}) base says '
                f"{next_words(both.base) or '–'}, chat {next_words(both.chat) or '–'}. " + " ".join(each.remarks)
            )
        if self.passed_over:
            named = ", ".join(map(self._where, self.passed_over[:5]))
            more = f" and {len(self.passed_over) - 5} more" if len(self.passed_over) > 5 else ""
            lines.append(
                f"Passed over, though the models differ more there: {named}{more}. They are of the template, or "
                "training left them out; skip_template_tokens=False and include_left_out=True explain them too."
            )
        lines.append("Shares are of latents taken away one by one; they do not add up.")
        return tuple(lines)

    def _where(self, token: int) -> str:
        """A token and the KL there, in words."""
        kl = number(float(self.comparison.kl_chat_base[token]), 3)
        return f'"{visible(self.comparison.tokens.pieces[token])}" (token {token}, {kl} nats)'

    def to_pandas(self) -> "pd.DataFrame":
        """A data frame with a row for each token and latent; needs pandas."""
        import pandas as pd

        return pd.DataFrame([{**vars(each), "sentence": str(each)} for each in self])

    def rows(self) -> list[tuple[str, ...]]:
        """Cells of every row under EXPLANATION_HEADERS."""
        return [
            (
                str(each.token),
                visible(each.piece),
                number(each.kl, 3),
                str(each.latent),
                f"{'' if each.measured else '~'}{each.share:.0%}",
                " ".join(map(visible, each.peaks[:_PEAKS])),
            )
            for each in self
        ]

    def __str__(self) -> str:
        return "\n".join([*(self.sentences or ["No latent carries a difference here."]), *self.remarks])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = [(*row, sentence) for row, sentence in zip(self.rows(), self.sentences, strict=True)]
        return _html.page(_html.table((*EXPLANATION_HEADERS, "in words"), rows) + _html.remarks(self.remarks))
