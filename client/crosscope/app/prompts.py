"""The prompt lab's prompt: in a URL, out of an example's tokens, as arguments of the SDK, as Python to copy.

Knows nothing about Streamlit.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from crosscope import InvalidInput, TokenRole, Tokens

ROLES = ("system", "developer", "user", "assistant", "tool")
OPTIONS = "template options"
"""What the page calls `LabPrompt.template_options`."""
MAX_URL_CHARACTERS = 6000
"""A longer prompt stays out of the URL."""
_TURN = re.compile(r"\bturn (\d{1,4})\b|\b(?:prompt\.)?(?:conversation\.)?turns\[(\d{1,4})\]")
_CONTENT = {
    TokenRole.SYSTEM: "system",
    TokenRole.USER: "user",
    TokenRole.ASSISTANT: "assistant",
    TokenRole.REASONING: "assistant",
    TokenRole.TOOL: "tool",
}
"""Who says the tokens of a role; reasoning stands in the assistant's turn, in the marks that it was printed with."""


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class LabPrompt:
    """A raw text, or turns; the one that is not shown is empty."""

    text: str = ""
    turns: tuple[Turn, ...] = ()
    add_generation_prompt: bool = False
    template_options: str = ""
    """JSON: what the chat template is told beside the turns; empty: nothing."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to run."""
        return not self.text and not self.spoken

    def params(self) -> dict[str, str | None]:
        """The parameters of a URL that says the same; None takes one out."""
        turns = json.dumps([[t.role, t.content] for t in self.turns], ensure_ascii=False) if self.turns else None
        return {
            "text": self.text or None,
            "turns": turns,
            "answer": "1" if self.turns and self.add_generation_prompt else None,
            "options": (self.template_options or None) if self.turns else None,
        }

    def fits_url(self) -> bool:
        """Whether its parameters are short enough for a URL."""
        return sum(len(value or "") for value in self.params().values()) <= MAX_URL_CHARACTERS

    @property
    def spoken(self) -> tuple[int, ...]:
        """Places of the turns that say something; a turn that is still empty is not run."""
        return tuple(place for place, turn in enumerate(self.turns) if turn.content.strip())

    def arguments(self) -> dict[str, Any]:
        """Arguments of `Crosscoder.encode` and `Crosscoder.top_latents`; turns without content are left out.

        Raises InvalidInput where `template_options` is no JSON object.
        """
        if not self.turns:
            return {"text": self.text}
        turns = [{"role": self.turns[place].role, "content": self.turns[place].content} for place in self.spoken]
        arguments: dict[str, Any] = {"turns": turns, "add_generation_prompt": self.add_generation_prompt}
        options = self._options()
        return {**arguments, "chat_template_kwargs": options} if options else arguments

    def _options(self) -> dict[str, Any]:
        try:
            options = json.loads(self.template_options or "{}")
        except (ValueError, RecursionError) as error:
            raise InvalidInput.of(OPTIONS, f"is no JSON: {error}") from None
        if not isinstance(options, dict):
            raise InvalidInput.of(OPTIONS, 'must be a JSON object, for instance {"enable_thinking": false}')
        return options

    def with_turn(self, index: int, turn: Turn | None) -> "LabPrompt":
        """With one turn replaced, or taken out; an index one past the end appends."""
        turns = list(self.turns)
        turns[index : index + 1] = [] if turn is None else [turn]
        return replace(self, turns=tuple(turns))


def of_params(params: Mapping[str, str]) -> LabPrompt:
    """Reads a URL's parameters; what cannot be read counts as absent."""
    try:
        found = json.loads(params.get("turns", "[]"))
        turns = tuple(Turn(str(role), str(content)) for role, content in found if role in ROLES)
    except (ValueError, TypeError):
        turns = ()
    options = params.get("options", "") if turns else ""
    return LabPrompt("" if turns else params.get("text", ""), turns, params.get("answer") == "1", options)


def of_tokens(tokens: Tokens) -> LabPrompt:
    """The prompt that reads like a text's tokens: its turns, or its text without template tokens."""
    said = groupby(tokens, key=lambda token: _CONTENT.get(token[2], token[2]))
    runs = [(role, "".join(piece for _, piece, _ in run)) for role, run in said]
    turns = tuple(Turn(role, text.strip()) for role, text in runs if isinstance(role, str))
    if turns:
        return LabPrompt(turns=turns, add_generation_prompt=runs[-1][0] is TokenRole.HEADER)
    return LabPrompt(text="".join(text for role, text in runs if role is TokenRole.TEXT).lstrip())


def python_code(prompt: LabPrompt, address: str, crosscoder: str, ranking: Mapping[str, Any]) -> str:
    """A script that asks the same of the same server."""
    arguments = prompt.arguments()
    shown = [f"{name}={value!r}" for name, value in {**arguments, **ranking}.items()]
    lines = "".join(f"    {argument},\n" for argument in shown)
    return (
        "from crosscope import Client\n\n"
        f"crosscoder = Client({address!r}).crosscoder({crosscoder!r})\n"
        f"top = crosscoder.top_latents(\n{lines})\n"
        "print(top)\n"
    )


def as_on_page(sentence: str, spoken: Sequence[int]) -> str:
    """A sentence of the server with turns as the page numbers them: from 1, and with those that were not run."""

    def renumbered(found: re.Match[str]) -> str:
        place = int(found[1] or found[2])
        return f"turn {spoken[place] + 1}" if place < len(spoken) else found[0]

    return _TURN.sub(renumbered, sentence)


def decimal(text: str | None, default: int) -> int:
    """A whole number of a URL; the default where it is none."""
    return int(text) if text is not None and text.isdecimal() and len(text) < 10 else default
