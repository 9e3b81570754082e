"""What a look finds, one thing a class, each with its cells in a table: layers, groups, texts, tokens, continuations.

Knows nothing about the whole look, about latents and about gRPC.
"""

from dataclasses import dataclass

from crosscope import _html, _tables
from crosscope._comparison import NextToken, next_words
from crosscope._public import public
from crosscope._tables import number, visible
from crosscope._types import Estimate, Tokens

FINDING_HEADERS = ("kl", "alike", "token", "role", "base says next", "chat says next", "before it")
TEXT_HEADERS = ("mean kl", "sum", "tokens", "data set", "text")
CONTINUATION_HEADERS = ("kl", "base says", "chat says", "prompt")
_BEFORE, _PROMPT = 8, 100
"""Tokens before a finding and characters of a prompt that a table shows."""


@public
@dataclass(frozen=True)
class LookLayer:
    """What the streams at one layer carry of KL(chat ‖ base), with errors over texts (math §10)."""

    layer: int
    share_chat: Estimate
    """Share that goes with base's stream put into chat."""
    share_base: Estimate
    """Share that goes with chat's stream put into base."""


@public
@dataclass(frozen=True)
class LookGroup:
    """KL(chat ‖ base) over the tokens of a data set or a role."""

    kind: str
    """"dataset" or "role"."""
    name: str
    num_tokens: int
    num_texts: int
    mean: Estimate
    """Nats."""
    share: float
    """Share of the sum over all tokens."""


@public
@dataclass(frozen=True, eq=False)
class LookText:
    """A text of the data, and how much the models differ at its tokens."""

    dataset: str
    place: str
    """File and line."""
    rank: int
    """Rank by mean among the texts that differ most, 1 first; 0: it is here for a finding."""
    num_tokens: int
    """Tokens that are compared."""
    mean: float
    sum: float
    tokens: Tokens
    kl: tuple[float, ...]
    """KL(chat ‖ base) of each token, nats; NaN where it is not compared."""

    def cells(self) -> tuple[str, ...]:
        """Cells of TEXT_HEADERS."""
        text = _tables.printable("".join(self.tokens.pieces))
        return number(self.mean), number(self.sum), str(self.num_tokens), self.dataset, text[:120]

    def _repr_html_(self) -> str:
        values = [0.0 if value != value else value for value in self.kl]
        titles = [f"token {i}: KL {number(value)} nats" for i, value in enumerate(self.kl)]
        head = f"{self.dataset}, {self.place}: mean KL {number(self.mean)} nats"
        return _html.page(_html.remarks([head]) + _html.tokens(self.tokens, values, max(values, default=0.0), titles))


@public
@dataclass(frozen=True, eq=False)
class Finding:
    """A token at which the models differ. Its figures are about the prediction made at it."""

    text: LookText
    position: int
    """Its position in the text."""
    kl: float
    """KL(chat ‖ base), nats."""
    base: tuple[NextToken, ...]
    """What base would say next, best first."""
    chat: tuple[NextToken, ...]

    @property
    def piece(self) -> str:
        """The token's text."""
        return self.text.tokens.pieces[self.position]

    @property
    def role(self) -> str:
        """What the token is for, in small letters."""
        return self.text.tokens.roles[self.position].name.lower()

    @property
    def pattern(self) -> tuple[str, tuple[str, ...]]:
        """The token and what chat says next: findings with the same pattern are printed as one."""
        return self.piece, tuple(each.piece for each in self.chat[:1])

    def cells(self, alike: int = 1) -> tuple[str, ...]:
        """Cells of FINDING_HEADERS; `alike`: number of findings with its pattern."""
        before = "".join(self.text.tokens.pieces[max(0, self.position - _BEFORE) : self.position])
        following = next_words(self.base), next_words(self.chat)
        return number(self.kl), str(alike), visible(self.piece), self.role, *following, visible(before)


@public
@dataclass(frozen=True)
class FirstDifference:
    """The mean activation difference chat - base at one first position of a data set's texts."""

    dataset: str
    layer: int
    position: int
    num_texts: int
    norm: float
    norm_base: float
    """Norm of base's mean activation there."""
    tokens_base: tuple[str, ...]
    """The tokens that the difference raises most through base's head."""
    tokens_chat: tuple[str, ...]


@public
@dataclass(frozen=True, eq=False)
class Continuation:
    """What both models say after a prompt, greedily."""

    dataset: str
    place: str
    kl: float
    """Sum of KL(chat ‖ base) over the predictions of the turn's first nine tokens, nats."""
    prompt: Tokens
    base: str
    chat: str
    base_ended: bool
    """Whether it ended by itself, and not at max_new_tokens."""
    chat_ended: bool

    def cells(self) -> tuple[str, ...]:
        """Cells of CONTINUATION_HEADERS."""
        prompt = "".join(self.prompt.pieces)
        shown = prompt if len(prompt) <= _PROMPT else f"…{prompt[-_PROMPT:]}"
        return (number(self.kl), *(_tables.printable(text) for text in (self.base, self.chat, shown)))
