"""Answers of models as they come, token for token, and whole. Knows nothing about gRPC."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

from crosscope import _html
from crosscope._arms import Arm
from crosscope._encoding import Encoding
from crosscope._public import public
from crosscope._tables import counted, number, printable
from crosscope._types import Tokens
from crosscope_proto.roles import LeftOut, TokenRole

if TYPE_CHECKING:
    import numpy as np

_STRONGEST = 5
"""Latents that a token is shown with."""
_REASONS = {
    "turn_end": "the model ended its turn",
    "stop": "a stop string came",
    "length": "max_new_tokens came",
    "context": "the model or the worker can read no more tokens",
    "out_of_memory": "the device's memory ran out",
    "cancelled": "the caller left",
    "under_way": "more is to come",
}
"""Why an answer ended, by its word."""


@public
@dataclass(frozen=True)
class NewToken:
    """A new token of one answer."""

    arm: int
    """Index of its arm."""
    sample: int
    """Index of its sample in the arm."""
    id: int
    piece: str
    """Its text; joined, the pieces are the answer."""
    log_probability: float
    """In the model as changed, at temperature 1."""
    role: TokenRole
    latents: tuple[int, ...] = ()
    """With `with_code`: latents that fire on it, strongest first. The last token is never read, so it has none."""
    activations: tuple[float, ...] = ()
    """Their scaled activations."""
    left_out: LeftOut | None = None
    """With `with_code`: why training left out tokens like it, LeftOut.KEPT (0) if it did not. None where that is not
    known, as for the last token."""


@public
@dataclass(frozen=True, eq=False)
class Answer:
    """One answer."""

    arm: Arm
    arm_index: int
    """Index of its arm, as `NewToken.arm` counts."""
    sample: int
    """Index of its sample in the arm."""
    text: str
    """Without the end of the turn, and without a stop string and what came behind it."""
    tokens: Tokens
    """The new tokens. With `with_code` they say what training left out; the last one, never read, counts as kept."""
    log_probabilities: "np.ndarray"
    """[token] float32, in the model as changed, at temperature 1."""
    reason: str
    """Why it ended: "turn_end", "stop", "length", "context", "out_of_memory", "cancelled" if the caller left, or
    "under_way"."""
    num_changed: int
    """Tokens of prompt and answer at which a change acted."""
    num_left_out: int
    """Tokens that a change reached but left alone, because training left such tokens out."""
    code: Encoding | None = field(default=None, repr=False)
    """With `with_code`: the code of prompt and answer, as `encode` gives it; the last token, never read, has none."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences about its end and about what was changed."""
        lines = [f"{counted(len(self.tokens), 'token')}; {_REASONS.get(self.reason, self.reason)}."]
        if self.arm.changes:
            lines.append(f"Changed at {counted(self.num_changed, 'token')}.")
        if self.num_left_out:
            lines.append(f"Left alone at {self.num_left_out} that training left out; include_left_out changes them.")
        return tuple(lines)

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return _html.page(f"<strong>{escape(self.arm.name)}</strong>{answer_html(self)}")


def answer_html(answer: Answer) -> str:
    """The tokens of an answer, coloured by their strongest latent if they have a code, else by their surprise."""
    num_before = len(answer.code) - len(answer.tokens) if answer.code else 0
    surprises = [-value for value in answer.log_probabilities.tolist()]
    values = answer.code.strongest().tolist()[num_before:] if answer.code else surprises
    titles = []
    for i, surprise in enumerate(surprises):
        title = f"token {i}, {answer.tokens.role_name(i)}: log p {number(-surprise)}"
        if answer.code:
            strongest = answer.code.top(num_before + i, _STRONGEST)
            title += "; " + (", ".join(f"latent {each}: {number(value)}" for each, value in strongest) or "no latent")
        titles.append(title)
    largest = _html.scale_of(answer.tokens, values)
    return _html.tokens(answer.tokens, values, largest, titles) + _html.remarks(answer.remarks)


def answers_text(prompt: Tokens, answers: Sequence[Answer]) -> str:
    """Prompt and answers, each under a heading; a lone answer of an unchanged model has none."""
    if len(answers) == 1 and not answers[0].arm.changes:
        return answers[0].text
    blocks = [f"prompt: {printable(prompt.text)}"]
    blocks += [f"── {heading(answer)} ──\n{answer.text}\n({' '.join(answer.remarks)})" for answer in answers]
    return "\n\n".join(blocks)


def heading(answer: Answer) -> str:
    """The name of an answer: that of its arm, and which sample it is."""
    return f"{answer.arm.name}, sample {answer.sample}" if answer.sample else answer.arm.name


def answers_html(prompt: Tokens, arms: Sequence[Arm], answers: Sequence[Answer]) -> str:
    """Prompt and answers side by side: a column for each arm, a row for each sample."""
    head = "".join(f"<th>{escape(arm.name)}</th>" for arm in arms)
    columns = [[each for each in answers if each.arm_index == i] for i in range(len(arms))]
    rows = ""
    for i in range(max(map(len, columns), default=0)):
        cells = (answer_html(column[i]) if i < len(column) else "" for column in columns)
        rows += "<tr>" + "".join(f'<td style="vertical-align:top">{cell}</td>' for cell in cells) + "</tr>"
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    told = "coloured by " + ("strongest latent" if any(each.code for each in answers) else "surprise")
    said = f"<small>{escape(f'{len(prompt)} tokens of prompt; answers {told}')}</small>"
    before = _html.tokens(prompt, [0.0] * len(prompt), 0.0, [prompt.role_name(i) for i in range(len(prompt))])
    return _html.page(said + before + table)
