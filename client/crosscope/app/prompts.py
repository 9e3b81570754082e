"""The prompt lab's prompt: read from a URL or from an example's tokens, and written as a URL, SDK arguments or Python.

Knows nothing about Streamlit.
"""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from crosscope import InvalidInput, TokenRole, Tokens, Transcript, turns_from_text

ROLES = ("system", "developer", "user", "assistant", "tool")
OPTIONS = "template options"
"""What the page calls `LabPrompt.template_options`."""
MAX_URL_CHARACTERS = 6000
"""A longer prompt stays out of the URL."""
_TURN = re.compile(r"\bturn (\d{1,4})\b|\b(?:prompt\.)?(?:conversation\.)?(?:turns|messages)\[(\d{1,4})\]")
_CAMEL = re.compile(r"_([a-z])")
_CONTENT = {
    TokenRole.SYSTEM: "system",
    TokenRole.USER: "user",
    TokenRole.ASSISTANT: "assistant",
    TokenRole.REASONING: "assistant",
    TokenRole.TOOL: "tool",
}
"""The speaker of the tokens of each role.

Reasoning becomes part of the assistant's turn, with the marks that the template printed around it."""


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class LabPrompt:
    """A raw text or a conversation's turns; the other of the two is empty."""

    text: str = ""
    turns: tuple[Turn, ...] = ()
    add_generation_prompt: bool = False
    is_begun: bool = False
    """The assistant has only begun the last turn that is run: a model goes on with it."""
    template_options: str = ""
    """Arguments of the chat template, as a JSON object; empty: none."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing in it can be run."""
        return not self.text and not self.spoken

    def params(self) -> dict[str, str | None]:
        """The prompt as parameters of a URL; None takes a parameter out."""
        turns = json.dumps([[t.role, t.content] for t in self.turns], ensure_ascii=False) if self.turns else None
        return {
            "text": self.text or None,
            "turns": turns,
            "answer": "begun" if self.goes_on else "1" if self.turns and self.add_generation_prompt else None,
            "options": (self.template_options or None) if self.turns else None,
        }

    def fits_url(self) -> bool:
        """Whether the parameters are short enough for a URL."""
        return sum(len(value or "") for value in self.params().values()) <= MAX_URL_CHARACTERS

    @property
    def spoken(self) -> tuple[int, ...]:
        """Positions of the turns that have content; a turn that is still empty is not run."""
        return tuple(i for i, turn in enumerate(self.turns) if turn.content.strip())

    @property
    def goes_on(self) -> bool:
        """Whether its last turn is the assistant's and only begun."""
        return self.is_begun and bool(self.spoken) and self.turns[self.spoken[-1]].role == "assistant"

    def arguments(self) -> dict[str, Any]:
        """Arguments of `Crosscoder.encode` and `Crosscoder.top_latents`; turns without content are left out.

        Raises InvalidInput if `template_options` is no JSON object.
        """
        if not self.turns:
            return {"text": self.text}
        messages: list[dict[str, Any]] = [
            {"role": self.turns[i].role, "content": self.turns[i].content} for i in self.spoken
        ]
        if self.goes_on:
            messages[-1]["prefix"] = True
        header = self.add_generation_prompt and not self.goes_on
        arguments: dict[str, Any] = {"messages": messages, "add_generation_prompt": header}
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

    def to_answer(self) -> "LabPrompt":
        """The prompt as a model answers it: a conversation ends with the assistant's header, a raw text goes on.

        Raises InvalidInput if its last turn is the assistant's already.
        """
        if not self.turns or self.goes_on:
            return self
        if self.spoken and self.turns[self.spoken[-1]].role == "assistant":
            problem = "is the assistant's already; add a turn of the user, take it out, or say that it is only begun"
            raise InvalidInput.of(f"turn {self.spoken[-1] + 1}", problem)
        return replace(self, add_generation_prompt=True)

    def question(self) -> "LabPrompt":
        """The prompt without the assistant's last turn, so that a model can answer it again."""
        turns = tuple(self.turns[i] for i in self.spoken)
        return replace(self, turns=turns[:-1], is_begun=False) if turns and turns[-1].role == "assistant" else self

    def answered(self, answer: str) -> "LabPrompt":
        """The prompt with an answer to it: one more turn of the assistant, or the text gone on."""
        if not self.turns:
            return replace(self, text=self.text + answer)
        said = [self.turns[i] for i in self.spoken]
        begun = said.pop().content if self.goes_on else ""
        turns = (*said, Turn("assistant", begun + answer))
        return replace(self, turns=turns, add_generation_prompt=False, is_begun=False)

    def with_turn(self, index: int, turn: Turn | None) -> "LabPrompt":
        """The prompt with one turn replaced, or taken out if `turn` is None; an index one past the end appends."""
        turns = list(self.turns)
        turns[index : index + 1] = [] if turn is None else [turn]
        return replace(self, turns=tuple(turns))


def of_params(params: Mapping[str, str]) -> LabPrompt:
    """The prompt of a URL's parameters; a parameter that cannot be read counts as absent."""
    try:
        found = json.loads(params.get("turns", "[]"))
        turns = tuple(Turn(str(role), str(content)) for role, content in found if role in ROLES)
    except (ValueError, TypeError):
        turns = ()
    options = params.get("options", "") if turns else ""
    answer = params.get("answer")
    return LabPrompt("" if turns else params.get("text", ""), turns, answer == "1", answer == "begun", options)


def of_transcript(found: Transcript) -> LabPrompt:
    """The prompt of a conversation that somebody pasted. Turns have a role and a content here, and nothing else."""
    turns = tuple(Turn(turn["role"], turn["content"]) for turn in found.messages)
    return LabPrompt("", turns, found.add_generation_prompt, bool(found.messages[-1].get("prefix")))


def second(text: str, first: LabPrompt) -> LabPrompt:
    """The prompt to compare with: a pasted conversation, else a text, or one turn of the user as `first` has turns."""
    if not first.turns:
        return LabPrompt(text=text)
    try:
        return of_transcript(turns_from_text(text))
    except InvalidInput:
        return replace(first, turns=(Turn("user", text),), is_begun=False)


def of_tokens(tokens: Tokens) -> LabPrompt:
    """The prompt that a text's tokens came from: its turns, or its text without template tokens."""
    said = groupby(tokens, key=lambda token: _CONTENT.get(token[2], token[2]))
    runs = [(role, "".join(piece for _, piece, _ in run)) for role, run in said]
    turns = tuple(Turn(role, text.strip()) for role, text in runs if isinstance(role, str))
    if turns:
        return LabPrompt(turns=turns, add_generation_prompt=runs[-1][0] is TokenRole.HEADER)
    return LabPrompt(text="".join(text for role, text in runs if role is TokenRole.TEXT).lstrip())


def python_code(prompt: LabPrompt, address: str, crosscoder: str, ranking: Mapping[str, Any]) -> str:
    """A Python script that asks the same server for the same ranking, whose `tokens` are [first, one past the last]."""
    arguments = {**prompt.arguments(), **ranking}
    if "tokens" in ranking:
        arguments["tokens"] = slice(*ranking["tokens"])
    shown = [f"{name}={value!r}" for name, value in arguments.items()]
    lines = "".join(f"    {argument},\n" for argument in shown)
    return (
        "from crosscope import Client\n\n"
        f"crosscoder = Client({address!r}).crosscoder({crosscoder!r})\n"
        f"top = crosscoder.top_latents(\n{lines})\n"
        "print(top)\n"
    )


def request_json(prompt: LabPrompt, crosscoder: str, ranking: Mapping[str, Any]) -> str:
    """The same question as the JSON of a TopLatentsRequest."""
    given, said = prompt.arguments(), dict(ranking)
    if "text" in given:
        asked: dict[str, Any] = {"text": given["text"]}
    else:
        conversation = {"turns": given["messages"], "addGenerationPrompt": given["add_generation_prompt"]}
        if kwargs := given.get("chat_template_kwargs"):
            conversation["chatTemplateKwargsJson"] = json.dumps(kwargs, ensure_ascii=False)
        asked = {"conversation": conversation}
    message: dict[str, Any] = {"crosscoder": crosscoder, "prompt": asked, "rank": f"RANK_{said.pop('rank').upper()}"}
    if tokens := said.pop("tokens", None):
        message |= {"tokenStart": tokens[0], "tokenEnd": tokens[1]}
    if where := said.pop("where", None):
        pairs = [condition.split(" = ") for condition in where]
        message["filters"] = [{"column": column, "op": "OP_EQ", "text": text} for column, text in pairs]
    message |= {_CAMEL.sub(lambda found: found[1].upper(), name): value for name, value in said.items()}
    return json.dumps(message, ensure_ascii=False, indent=2)


def grpcurl(request: str, address: str) -> str:
    """A shell command that sends the JSON of a request. The server's reflection tells grpcurl the messages."""
    where = f"-unix {shlex.quote(address[5:])}" if address.startswith("unix:") else shlex.quote(address)
    return f"grpcurl -plaintext -d {shlex.quote(request)} {where} crosscope.v1.Prompts/TopLatents"


def as_on_page(sentence: str, spoken: Sequence[int]) -> str:
    """A sentence of the server or the SDK with turns numbered as on the page: from 1, empty ones counted too.

    `spoken` is `LabPrompt.spoken` of the prompt that was run.
    """

    def renumbered(found: re.Match[str]) -> str:
        i = int(found[1] or found[2])
        return f"turn {spoken[i] + 1}" if i < len(spoken) else found[0]

    return _TURN.sub(renumbered, sentence)


def decimal(text: str | None, default: int) -> int:
    """A whole number that stands in a URL; `default` if the text is no whole number."""
    return int(text) if text is not None and text.isdecimal() and len(text) < 10 else default
