"""How both models' predictions differ at every token of a prompt. Knows nothing about gRPC."""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, NamedTuple

from crosscope import _html, _tables
from crosscope._public import public
from crosscope._tables import number, visible
from crosscope._types import Tokens
from crosscope_proto.roles import LeftOut, TokenRole

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

COMPARISON_HEADERS = ("token", "piece", "role", "KL(chat‖base)", "base next", "chat next")
_SHOWN_NEXT = 3
"""Next tokens of each model that a row shows."""


@public
class NextToken(NamedTuple):
    """A token that a model could say next."""

    id: int
    piece: str
    log_probability: float

    @property
    def probability(self) -> float:
        """Its probability."""
        import math

        return math.exp(self.log_probability)


@public
class NextTokens(NamedTuple):
    """The most probable next tokens of both models at one token, best first."""

    base: tuple[NextToken, ...]
    chat: tuple[NextToken, ...]


@public
@dataclass(frozen=True, eq=False)
class ModelPredictions:
    """One model's predictions at every token of a prompt. Logarithms are natural."""

    log_probabilities: "np.ndarray"
    """[token] float32: of the token that came next; NaN at the last token."""
    ranks: "np.ndarray"
    """[token] int64: of the token that came next, 1 for the most probable; 0 at the last token."""
    entropies: "np.ndarray"
    """[token] float32, nats."""
    top_ids: "np.ndarray"
    """[token, top_n] int64: the most probable next tokens, best first."""
    top_log_probabilities: "np.ndarray"
    """[token, top_n] float32."""
    norms: "np.ndarray"
    """[token] float32: norm of the residual stream at the layer; empty without a layer."""
    error_norms: "np.ndarray"
    """[token] float32: norm of what the crosscoder does not reconstruct; empty if it reconstructs nothing here."""


@public
@dataclass(frozen=True, eq=False)
class Comparison:
    """Both models' predictions at every token of a prompt. A figure "at a token" is about the token that comes next."""

    source: str
    """The crosscoder or the pair that was asked."""
    version_id: str
    """The version of the crosscoder that answered; empty for a pair."""
    tokens: Tokens
    kl_chat_base: "np.ndarray"
    """[token] float32: KL(chat ‖ base) of the predictions, nats."""
    kl_base_chat: "np.ndarray"
    """[token] float32: KL(base ‖ chat), nats."""
    base: ModelPredictions
    chat: ModelPredictions
    difference_norms: "np.ndarray"
    """[token] float32: norm of chat's stream less base's; empty if the widths differ, or without a layer."""
    cosines: "np.ndarray"
    """[token] float32: cosine of both streams; empty likewise."""
    pieces: Mapping[int, str]
    """Texts of the ids in `top_ids`."""
    compute_ms: float

    def __len__(self) -> int:
        return len(self.tokens)

    def next_tokens(self, token: int) -> NextTokens:
        """The most probable next tokens of both models at one token; negative positions count from the end."""
        position = token + len(self) if token < 0 else token
        if not 0 <= position < len(self):
            raise IndexError(f"token {token} is outside the {len(self)} tokens of this prompt")
        return NextTokens(self._next(self.base, position), self._next(self.chat, position))

    def _next(self, model: ModelPredictions, position: int) -> tuple[NextToken, ...]:
        pairs = zip(model.top_ids[position].tolist(), model.top_log_probabilities[position].tolist(), strict=True)
        return tuple(NextToken(each, self.pieces.get(each, f"<{each}>"), value) for each, value in pairs)

    def most_different(
        self, n: int = 10, *, skip_template_tokens: bool = False, include_left_out: bool = True
    ) -> list[int]:
        """The tokens with the largest KL(chat ‖ base), largest first.

        `skip_template_tokens` leaves out BOS, role headers and turn ends, but not the last token of an assistant's
        header, where the model decides how its answer begins. Without `include_left_out`, tokens that training left
        out (`Tokens.left_out`) are passed over.
        """
        import numpy as np

        counted = np.ones(len(self), dtype=bool)
        if skip_template_tokens:
            counted &= ~np.array(self._skipped_template(), dtype=bool)
        if not include_left_out and self.tokens.left_out:
            counted &= np.array(self.tokens.left_out) == LeftOut.KEPT
        counted &= ~np.isnan(self.kl_chat_base)
        order = np.argsort(-self.kl_chat_base, kind="stable")
        return [int(t) for t in order if counted[t]][:n]

    def _skipped_template(self) -> list[bool]:
        """Whether each token is of the template, without the last one of an assistant's header."""
        roles = self.tokens.roles
        behind = (*roles[1:], TokenRole.ASSISTANT)
        answers = (TokenRole.ASSISTANT, TokenRole.REASONING)
        return [
            is_template and not (role == TokenRole.HEADER and following in answers)
            for is_template, role, following in zip(self.tokens.is_template, roles, behind, strict=True)
        ]

    def to_pandas(self) -> "pd.DataFrame":
        """A data frame with a row for each token, columns of each model as base_… and chat_…; needs pandas."""
        import pandas as pd

        columns: dict[str, object] = {
            "piece": self.tokens.pieces,
            "role": [role.name.lower() for role in self.tokens.roles],
            "left_out": [reason.name.lower() for reason in self.tokens.left_out] or [""] * len(self),
            "kl_chat_base": self.kl_chat_base,
            "kl_base_chat": self.kl_base_chat,
            "difference_norm": _or_nan(self.difference_norms, len(self)),
            "cosine": _or_nan(self.cosines, len(self)),
        }
        for name, model in (("base", self.base), ("chat", self.chat)):
            columns[f"{name}_log_probability"] = model.log_probabilities
            columns[f"{name}_rank"] = model.ranks
            columns[f"{name}_entropy"] = model.entropies
            columns[f"{name}_norm"] = _or_nan(model.norms, len(self))
            columns[f"{name}_error_norm"] = _or_nan(model.error_norms, len(self))
        return pd.DataFrame(columns).rename_axis("token")

    def rows(self, tokens: list[int] | None = None) -> list[tuple[str, ...]]:
        """Cells of these tokens, by default of all: number, text, role, KL and both models' next tokens."""
        return [self._row(t) for t in (range(len(self)) if tokens is None else tokens)]

    def _row(self, token: int) -> tuple[str, ...]:
        both = self.next_tokens(token)
        piece, role = visible(self.tokens.pieces[token]), self.tokens.role_name(token)
        return (str(token), piece, role, number(float(self.kl_chat_base[token])), *map(next_words, both))

    def __str__(self) -> str:
        rows = self.rows(list(range(len(self)))[: _tables.MOST_ROWS])
        return _tables.with_rest(_tables.aligned(COMPARISON_HEADERS, rows), len(rows), len(self))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The prompt, each token coloured by the KL of the predictions there."""
        import numpy as np

        values = np.nan_to_num(self.kl_chat_base).tolist()
        titles = [self._title(t) for t in range(len(self))]
        head = f"{len(self)} tokens in {self.source}, coloured by KL(chat‖base) of the next token, 0 to "
        head = escape(f"{head}{number(max(values, default=0.0))} nats")
        return _html.page(f"<small>{head}</small>{_html.tokens(self.tokens, values, max(values, default=0.0), titles)}")

    def _title(self, t: int) -> str:
        both = self.next_tokens(t)
        said = f"token {t}, {self.tokens.role_name(t)}: KL(chat‖base) {number(float(self.kl_chat_base[t]))} nats"
        return f"{said}; base next {next_words(both.base) or '–'}; chat next {next_words(both.chat) or '–'}"


def next_words(following: tuple[NextToken, ...]) -> str:
    """The first next tokens of a model with their probabilities, on one line."""
    return "  ".join(f"{visible(each.piece)} {each.probability:.0%}" for each in following[:_SHOWN_NEXT])


def _or_nan(values: "np.ndarray", length: int) -> "np.ndarray":
    import numpy as np

    return values if len(values) else np.full(length, np.nan, dtype=np.float32)
