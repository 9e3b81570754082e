"""What a prompt fires: the sparse codes of its tokens, and its latents ranked. Knows nothing about gRPC."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import islice
from typing import TYPE_CHECKING, Literal, NamedTuple, overload

from crosscope import _html, _tables
from crosscope._export import prompt_document, write_page
from crosscope._public import public
from crosscope._tables import counted, number, visible
from crosscope._types import Tokens

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import pandas as pd

Rank = Literal["max", "sum", "count", "share_of_max", "uselessness"]
TOP_LATENT_HEADERS = ("latent", "score", "max", "sum", "count", "peak token")
TOKEN_HEADERS = ("token", "piece", "role", "strongest latents")
_STRONGEST = 5
"""Latents that a token is shown with."""


@public
class LatentActivation(NamedTuple):
    """A latent that fires, and its scaled activation."""

    latent: int
    activation: float


@public
@dataclass(frozen=True, eq=False)
class Encoding:
    """The sparse code of every token of a prompt, in compressed rows.

    The latents of token t are `latents[row_starts[t]:row_starts[t + 1]]`, strongest first.
    """

    crosscoder: str
    version_id: str
    tokens: Tokens
    row_starts: "np.ndarray"
    """[token + 1] int64."""
    latents: "np.ndarray"
    """[active] int64, latent ids."""
    activations: "np.ndarray"
    """[active] float32, scaled activations, all > 0."""
    cached: bool
    compute_ms: float
    """Time that tokenizer, models and crosscoder took when this code was computed."""

    def __len__(self) -> int:
        return len(self.tokens)

    def top(self, token: int, limit: int | None = None) -> list[LatentActivation]:
        """The latents of one token, strongest first; negative positions count from the end."""
        position = token + len(self) if token < 0 else token
        if not 0 <= position < len(self):
            raise IndexError(f"token {token} is outside the {len(self)} tokens of this prompt")
        row = slice(self.row_starts[position], self.row_starts[position + 1])
        pairs = zip(self.latents[row].tolist(), self.activations[row].tolist(), strict=True)
        return [LatentActivation(*pair) for pair in pairs][:limit]

    def latent_values(self, latent: int) -> "np.ndarray":
        """[token] float32: one latent's scaled activation on every token, 0 where it is silent."""
        import numpy as np

        values = np.zeros(len(self), dtype=np.float32)
        chosen = self.latents == latent
        values[self.token_index()[chosen]] = self.activations[chosen]
        return values

    def strongest(self) -> "np.ndarray":
        """[token] float32: the largest scaled activation of every token, 0 where nothing fires."""
        import numpy as np

        values = np.zeros(len(self), dtype=np.float32)
        np.maximum.at(values, self.token_index(), self.activations)
        return values

    def token_index(self) -> "np.ndarray":
        """[active] int64: the token of each entry of `latents` and `activations`."""
        import numpy as np

        return np.repeat(np.arange(len(self)), np.diff(self.row_starts))

    def to_pandas(self) -> "pd.DataFrame":
        """A data frame with a row for each entry: token, piece, role, left_out, latent, activation; needs pandas."""
        import pandas as pd

        token = self.token_index()
        return pd.DataFrame(
            {
                "token": token,
                "piece": [self.tokens.pieces[t] for t in token],
                "role": [self.tokens.roles[t].name.lower() for t in token],
                "left_out": [self.tokens.left_out[t].name.lower() if self.tokens.left_out else "" for t in token],
                "latent": self.latents,
                "activation": self.activations,
            }
        )

    def token_rows(self, limit: int | None = None) -> list[tuple[str, ...]]:
        """Cells of the first tokens, all by default: number, text, role and strongest latents."""
        return [
            (
                str(i),
                visible(piece),
                self.tokens.role_name(i),
                "  ".join(f"{latent}:{number(activation)}" for latent, activation in self.top(i, _STRONGEST)),
            )
            for i, (_, piece, _) in islice(enumerate(self.tokens), limit)
        ]

    def __str__(self) -> str:
        rows = self.token_rows(_tables.MOST_ROWS)
        return _tables.with_rest(_tables.aligned(TOKEN_HEADERS, rows), len(rows), len(self))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The prompt, each token coloured by its strongest latent."""
        values = self.strongest().tolist()
        titles = [self._title(i) for i in range(len(self))]
        head = escape(f"{len(self)} tokens in {self.crosscoder}, coloured by each token's strongest latent")
        return _html.page(
            f"<small>{head}</small>{_html.tokens(self.tokens, values, _html.scale_of(self.tokens, values), titles)}"
        )

    def html(self) -> str:
        """It as one HTML document that opens without a server and loads nothing."""
        title = f"{self.crosscoder}: a prompt of {len(self)} tokens"
        return prompt_document(title, self.version_id, self._repr_html_())

    def to_html(self, path: "str | Path") -> int:
        """Writes `html` to a file and returns the bytes written. Raises OSError if the file cannot be written."""
        return write_page(path, self.html())

    def _title(self, i: int) -> str:
        strongest = ", ".join(
            f"latent {latent}: {number(activation)}" for latent, activation in self.top(i, _STRONGEST)
        )
        return f"token {i}, {self.tokens.role_name(i)}: {strongest or 'no latent'}"


@public
@dataclass(frozen=True)
class TopLatent:
    """One latent's activity on a prompt; activations are scaled."""

    latent: int
    score: float
    """The value that it was ranked by."""
    max: float
    sum: float
    count: int
    """Active tokens."""
    peak_token: int
    """Token with the largest activation."""


@public
@dataclass(frozen=True)
class TopLatents(Sequence[TopLatent]):
    """The latents that a prompt fires, best first."""

    crosscoder: str
    version_id: str
    rank: Rank
    entries: tuple[TopLatent, ...]
    tokens: Tokens
    num_latents: int
    """Latents that fired and meet the conditions, before the limit was applied."""
    cached: bool
    num_left_out: int = 0
    """Tokens that were not ranked because training left them out: BOS, attention sinks."""
    num_filtered: int = 0
    """Latents that fired and do not meet max_frequency or the conditions."""
    notes: tuple[str, ...] = ()
    """Sentences about conditions on columns that are undefined for every latent."""

    def __len__(self) -> int:
        return len(self.entries)

    @overload
    def __getitem__(self, index: int) -> TopLatent: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[TopLatent, ...]: ...
    def __getitem__(self, index: int | slice) -> TopLatent | tuple[TopLatent, ...]:
        return self.entries[index]

    def to_pandas(self) -> "pd.DataFrame":
        """A data frame with a row for each latent; needs pandas."""
        import pandas as pd

        rows = [{**vars(entry), "peak_piece": self.tokens.pieces[entry.peak_token]} for entry in self.entries]
        return pd.DataFrame(rows)

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences about tokens that were not ranked, which come first, and latents that the conditions left out."""
        lines = []
        if self.num_left_out:
            are = "token is" if self.num_left_out == 1 else "tokens are"
            why = "as training left such tokens out (BOS, outlying norms)"
            lines.append(f"{self.num_left_out} {are} not ranked, {why}.")
        if self.num_filtered:
            lines.append(f"{counted(self.num_filtered, 'latent')} that also fired did not meet the conditions.")
        return (*lines, *self.notes)

    def rows(self) -> list[tuple[str, ...]]:
        """Cells of every latent: id, score, max, sum, count, and where it peaks."""
        return [
            (
                str(entry.latent),
                number(entry.score),
                number(entry.max),
                number(entry.sum),
                str(entry.count),
                f"{entry.peak_token} {visible(self.tokens.pieces[entry.peak_token])}",
            )
            for entry in self
        ]

    def __str__(self) -> str:
        rows = self.rows()[: _tables.MOST_ROWS]
        table = _tables.with_rest(_tables.aligned(TOP_LATENT_HEADERS, rows), len(rows), self.num_latents)
        return "\n".join([table if rows else "no latent fires", *self.remarks])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return _html.page(_html.table(TOP_LATENT_HEADERS, self.rows()) + _html.remarks(self.remarks))
