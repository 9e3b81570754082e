"""Which latents carry a difference between the models, and which work against it. Knows nothing about gRPC."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

from crosscope import _html, _tables
from crosscope._public import public
from crosscope._steering import ModelName
from crosscope._tables import number, percent, visible
from crosscope._types import Tokens

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

ATTRIBUTION_HEADERS = ("latent", "does", "effect", "share", "estimate", "active", "max", "peak token")
_CHANGED = {"chat": "taken out of chat", "base": "put into base"}
"""What is done to latents, by the model that is changed."""


@public
@dataclass(frozen=True)
class AttributedLatent:
    """What one latent does to the figure that is explained."""

    latent: int
    estimate: float
    """First-order estimate of the effect: gradient times contribution (math §9)."""
    effect: float | None
    """The figure as it is less the figure without the latent; in base: with chat's row. None if it was not measured."""
    share: float | None
    """The effect as a share of the figure; None likewise."""
    num_active: int
    """Tokens of the prompt on which it fires."""
    peak_token: int
    """The token with the largest estimate, by size."""
    max: float
    """Largest scaled activation on the prompt."""


@public
@dataclass(frozen=True, eq=False)
class Attribution(Sequence[AttributedLatent]):
    """The latents that change a difference: measured ones by effect, then the others by estimate, largest size first.

    A latent carries the difference if the models differ less when it is changed, and works against it if they differ
    more. Effects of single latents do not add up to the effect of all: what they do depends on each other.
    """

    crosscoder: str
    version_id: str
    model: ModelName
    """The model whose latents are taken away (chat), or into which chat's rows are put (base)."""
    tokens: Tokens
    explained: tuple[int, ...]
    """The tokens whose predictions are explained."""
    continuations: tuple[str, str] | None
    """The two texts that were compared; None where a KL is explained."""
    value: float
    """The figure: KL(chat ‖ base) added up over `explained`, or log p(first) - log p(second); nats."""
    entries: tuple[AttributedLatent, ...]
    row_starts: "np.ndarray"
    """[token + 1] int64: the estimates of token t are entries row_starts[t] to row_starts[t + 1] of the next two."""
    token_entries: "np.ndarray"
    """[estimate] int64, indices into `entries`."""
    token_estimates: "np.ndarray"
    """[estimate] float32."""
    num_latents: int
    """Latents that fire, before the limit."""
    effect_of_all: float
    """The exact effect of all of them together."""
    effect_of_stream: float
    """The exact effect of exchanging the whole streams: the most that a latent of this layer could carry."""
    num_left_out: int
    """Tokens at which latents fire that were left alone because training left such tokens out."""
    compute_ms: float

    def __len__(self) -> int:
        return len(self.entries)

    @overload
    def __getitem__(self, index: int) -> AttributedLatent: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[AttributedLatent, ...]: ...
    def __getitem__(self, index: int | slice) -> AttributedLatent | tuple[AttributedLatent, ...]:
        return self.entries[index]

    def estimates(self, latent: int) -> "np.ndarray":
        """[token] float32: the estimates of one latent in `entries` at every token, 0 where it is silent."""
        import numpy as np

        places = [i for i, entry in enumerate(self.entries) if entry.latent == latent]
        if not places:
            raise LookupError(f"latent {latent} is not among the {len(self)} latents of this attribution")
        values = np.zeros(len(self.tokens), dtype=np.float32)
        token = np.repeat(np.arange(len(self.tokens)), np.diff(self.row_starts))
        chosen = self.token_entries == places[0]
        values[token[chosen]] = self.token_estimates[chosen]
        return values

    def share(self, entry: AttributedLatent) -> float:
        """The effect of an entry as a share of the figure, the estimate's where it was not measured.

        Positive where the latent carries the difference, negative where it works against it, NaN if the figure is 0.
        """
        effect = entry.estimate if entry.effect is None else entry.effect
        return effect / self.value if self.value else float("nan")

    @property
    def figure(self) -> str:
        """The figure that is explained, in words."""
        if self.continuations:
            first, second = (repr(text) for text in self.continuations)
            return f"log p({first}) - log p({second}) in {self.model} = {number(self.value)} nats"
        at = ", ".join(f'"{visible(self.tokens.pieces[t])}" ({t})' for t in self.explained[:5])
        more = f" and {len(self.explained) - 5} more" if len(self.explained) > 5 else ""
        return f"KL(chat‖base) at {at}{more} = {number(self.value)} nats"

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences about what is explained, and what is not."""
        changed = _CHANGED[self.model]
        lines = [f"All {self.num_latents} latents that fire, {changed} together, {self._do(self.effect_of_all)}."]
        if self.effect_of_stream != self.effect_of_stream:
            lines.append("The models' streams have different widths, so none can be put into the other model.")
        else:
            other = "base" if self.model == "chat" else "chat"
            lines.append(
                f"The whole streams of {other} at this layer, put into {self.model}, {self._do(self.effect_of_stream)}."
            )
        share = self.effect_of_stream / self.value if self.value else float("nan")
        if 0 <= share < 1:
            above = percent(1 - share)
            lines.append(f"The other {above} arise above the layer, where no latent of this crosscoder reaches.")
        if unmeasured := sum(entry.effect is None for entry in self.entries):
            lines.append(f"{unmeasured} of {len(self)} latents are estimated only (~); num_exact measures more.")
        if self.num_latents > len(self):
            lines.append(f"{self.num_latents - len(self)} latents are not listed; limit lists more.")
        if self.num_left_out:
            are = "token was" if self.num_left_out == 1 else "tokens were"
            lines.append(f"{self.num_left_out} {are} left alone, as training left such tokens out (BOS, outliers).")
        return tuple(lines)

    def _do(self, effect: float) -> str:
        """What several latents do to the figure, in words."""
        if not self.value:
            return f"change it by {number(effect)} nats"
        share = effect / self.value
        return f"carry {percent(share)}" if share >= 0 else f"work against it, and it grows by {percent(-share)}"

    def _does(self, entry: AttributedLatent) -> str:
        """What one latent does to the figure, in words."""
        share = self.share(entry)
        word = "carries" if share > 0 else "works against" if share < 0 else "nothing" if share == 0 else "–"
        return word if entry.effect is not None else f"~{word}"

    def to_pandas(self) -> "pd.DataFrame":
        """A data frame with a row for each latent; needs pandas."""
        import pandas as pd

        rows = [{**vars(entry), "peak_piece": self.tokens.pieces[entry.peak_token]} for entry in self.entries]
        return pd.DataFrame(rows)

    def rows(self) -> list[tuple[str, ...]]:
        """Cells of every latent under ATTRIBUTION_HEADERS."""
        return [
            (
                str(entry.latent),
                self._does(entry),
                number(entry.effect),
                percent(entry.share),
                number(entry.estimate),
                str(entry.num_active),
                number(entry.max),
                f"{entry.peak_token} {visible(self.tokens.pieces[entry.peak_token])}",
            )
            for entry in self
        ]

    def __str__(self) -> str:
        rows = self.rows()[: _tables.MOST_ROWS]
        table = _tables.with_rest(_tables.aligned(ATTRIBUTION_HEADERS, rows), len(rows), len(self))
        return "\n".join([self.figure, table if rows else "no latent fires", *self.remarks])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = self.rows()[: _tables.MOST_ROWS]
        rest = [f"… {len(self) - len(rows)} more"] if len(self) > len(rows) else []
        table = _html.table(ATTRIBUTION_HEADERS, rows)
        return _html.page(_html.remarks([self.figure]) + table + _html.remarks([*rest, *self.remarks]))
