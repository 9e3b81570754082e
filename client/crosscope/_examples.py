"""Texts on which a latent fires or stays silent, as people and notebooks see them. Knows nothing about gRPC."""

from dataclasses import dataclass
from html import escape

from crosscope import _html
from crosscope._public import public
from crosscope._tables import number, printable
from crosscope._types import Tokens
from crosscope_proto.artefacts import ExampleGroup


@public
@dataclass(frozen=True)
class Example:
    """A text on which a latent fires or stays silent, or the window of the text that was asked for."""

    sequence_id: int
    """The text's id in its version: `encode(stored_text=example.sequence_id)` reads it exactly as the analysis did."""
    dataset: str
    group: ExampleGroup
    quantile: int
    """Band of the sequence maximum, 0 the lowest; 0 in the other groups."""
    rank: int
    tokens: Tokens
    token_start: int
    """Position of the first token in the whole text."""
    num_tokens: int
    """Tokens of the whole text."""
    positions: tuple[int, ...]
    """Tokens with an activation, indices into `tokens`."""
    activations: tuple[float, ...]
    """Their scaled activations."""
    max: float
    """Largest activation in the whole text."""
    peak: int
    """Index of the largest activation in `tokens`; in group silent of the token at which the latent peaks elsewhere."""
    repeats: int = 0
    """Number of further texts that it stands for; their tokens around the peak are the same."""
    group_low: float = 0.0
    """Smallest of the maxima of all texts of its data set, group and band."""
    group_high: float = 0.0
    """Largest of these maxima."""
    group_texts: int = 0
    """Number of these texts, equal ones counted once: in group top all on which the latent fires, in group silent those
    found silent among the texts that were looked at. 0 if the version does not say."""

    def values(self) -> list[float]:
        """The scaled activation of every token, 0 where the latent is silent."""
        values = [0.0] * len(self.tokens)
        for position, activation in zip(self.positions, self.activations, strict=True):
            values[position] = activation
        return values

    def __str__(self) -> str:
        """A line: its largest activation, its data set and group, and its text with active tokens in brackets.

        Of a silent text, the token in brackets is the one at which the latent peaks elsewhere.
        """
        marked = {self.peak} if self.group == "silent" else set(self.positions)
        text = printable("".join(f"⟦{p}⟧" if i in marked else p for i, p in enumerate(self.tokens.pieces)))
        before = "…" if self.token_start else ""
        after = "…" if self.token_start + len(self.tokens) < self.num_tokens else ""
        where = f"{self.group} {self.quantile}" if self.group == "quantile" else self.group
        times = f" ({self.repeats + 1} texts)" if self.repeats else ""
        return f"{number(self.max):>7}  {self.dataset}/{where}{times}  {before}{text}{after}"

    def _repr_html_(self) -> str:
        return _html.page(_coloured(self))


@public
class ExampleList(list[Example]):
    """Examples, strongest first; quantile groups after the top ones, highest band first; silent ones nearest first."""

    def __str__(self) -> str:
        return "\n".join(str(example) for example in self) or "no examples"

    def _repr_html_(self) -> str:
        return _html.page("".join(map(_coloured, self)) or "no examples")


def _coloured(example: Example) -> str:
    """One example as HTML, coloured by its latent."""
    values = example.values()
    titles = [
        f"token {example.token_start + i}, {role.name.lower()}: {number(value)}"
        for i, (value, role) in enumerate(zip(values, example.tokens.roles, strict=True))
    ]
    band = f", band {example.quantile}" if example.group == "quantile" else ""
    times = f" · {example.repeats + 1} texts" if example.repeats else ""
    head = escape(f"{number(example.max)} · {example.dataset} · {example.group}{band}{times}")
    return f"<div><small>{head}</small>{_html.tokens(example.tokens, values, example.max, titles)}</div>"
