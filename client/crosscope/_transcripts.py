"""Turns of a conversation from a text that somebody copied. Says what it recognised and what it left out.

Pure functions; what a turn says stays as it is, except for white space that belongs to the marks around it.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crosscope._errors import InvalidInput
from crosscope._prompts import Messages
from crosscope._public import public

_FIELD = "transcript"
_ROLES = {
    **{role: role for role in ("system", "developer", "user", "assistant", "tool")},
    "human": "user",
    "model": "assistant",
    "gpt": "assistant",
    "ai": "assistant",
    "ipython": "tool",
}
"""Our role by the names that formats use."""
_KEPT = ("reasoning", "reasoning_content", "tool_calls", "name", "tool_call_id", "prefix")
_ENDS = r"<\|eot_id\|>|<\|eom_id\|>|<eot>|<\|im_end\|>|<end_of_turn>"
_SHOWN = 60
"""Characters of a text that a sentence shows."""


@dataclass(frozen=True)
class _Marked:
    """A format in which marks stand around turns."""

    name: str
    header: re.Pattern[str]
    """Its group is the role; the white space that it takes in belongs to it."""
    is_closed: bool
    """Whether a turn has a mark at its end, so that one without it is not over."""


_WORDS = "|".join(_ROLES)
_FORMATS = (
    _Marked("Llama 3 headers", re.compile(r"<\|start_header_id\|>\s*([^<]{1,40}?)\s*<\|end_header_id\|>\n{0,2}"), True),
    _Marked("ChatML", re.compile(r"<\|im_start\|>[ \t]*(\w{1,40})[ \t]*\n?"), True),
    _Marked("Gemma's turns", re.compile(r"<start_of_turn>[ \t]*(\w{1,40})[ \t]*\n?"), True),
    _Marked("lines like “User:”", re.compile(rf"^\**({_WORDS})\**:\**[ \t]*\n?", re.IGNORECASE | re.MULTILINE), False),
)


@public
@dataclass(frozen=True)
class Transcript:
    """The turns that a text holds, and what of it is in none of them."""

    format: str
    """What was recognised, for people."""
    messages: Messages
    """For the argument of the same name; the last has prefix: True if the assistant has only begun it."""
    add_generation_prompt: bool
    """The text ends with the assistant's header."""
    dropped: tuple[str, ...] = ()
    """A sentence about everything that is in no turn."""

    def __str__(self) -> str:
        turns = "1 turn" if len(self.messages) == 1 else f"{len(self.messages)} turns"
        return " ".join([f"{turns}, written as {self.format}.", *self.dropped])


def turns_from_text(text: str) -> Transcript:
    """The turns in a copied text.

    Reads Llama 3 headers, ChatML, Gemma's turns, lines that begin with "User:" and "Assistant:", and JSON messages in
    the style of OpenAI or ShareGPT. Raises InvalidInput if it is none of them or names a role that is none.
    """
    if text.lstrip()[:1] in ("[", "{") and (found := _of_json(text)) is not None:
        return found
    formats = ((match.start(), each) for each in _FORMATS[:-1] if (match := each.header.search(text)))
    _, chosen = min(formats, key=lambda pair: pair[0], default=(0, _FORMATS[-1]))
    if not (headers := list(chosen.header.finditer(text))) or (
        not chosen.is_closed and text[: headers[0].start()].strip()
    ):
        ways = "Llama 3 headers, ChatML, Gemma's turns, JSON messages or lines that begin with User: and Assistant:"
        raise InvalidInput.of(_FIELD, f"holds no turns that can be recognised; paste {ways}")
    return _of_marks(text, chosen, headers)


def _of_marks(text: str, style: _Marked, headers: Sequence[re.Match[str]]) -> Transcript:
    dropped = list(_outside(text[: headers[0].start()], "before the first turn"))
    messages: list[dict[str, Any]] = []
    is_open = False
    for index, header in enumerate(headers):
        until = headers[index + 1].start() if index + 1 < len(headers) else len(text)
        body = text[header.end() : until]
        end = re.search(_ENDS, body)
        is_open = style.is_closed and end is None
        if end is not None:
            dropped += _outside(body[end.end() :], f"behind turn {index + 1}")
            body = body[: end.start()]
        elif style.is_closed and index + 1 < len(headers):
            dropped.append(f"Turn {index + 1} has no mark at its end.")
        content = body if style.is_closed else body.strip()
        messages.append({"role": _role(header[1], index), "content": content})
    last = messages[-1]
    asks = last["role"] == "assistant" and not last["content"].strip() and (is_open or not style.is_closed)
    if asks:
        messages.pop()
    elif is_open and last["role"] == "assistant":
        last["prefix"] = True
    elif is_open:
        dropped.append(f"Turn {len(messages)} has no mark at its end.")
    return Transcript(style.name, _some(messages), asks, tuple(dropped))


def _outside(text: str, where: str) -> Iterator[str]:
    """A sentence about a text that is in no turn; none if there is only white space."""
    shown = " ".join(text.split())
    if shown:
        cut = "…" if len(shown) > _SHOWN else ""
        yield f"Left out {where}: “{shown[:_SHOWN]}{cut}”."


def _role(name: str, index: int) -> str:
    role = _ROLES.get(name.strip().lower())
    if role is None:
        known = ", ".join(sorted(_ROLES))
        raise InvalidInput.of(_FIELD, f"turn {index + 1} has the role {name[:_SHOWN]!r}; known are {known}")
    return role


def _some(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if not messages:
        raise InvalidInput.of(_FIELD, "holds the assistant's header alone; give at least one turn")
    return messages


def _of_json(text: str) -> Transcript | None:
    """The turns of JSON messages; None if the text is no JSON."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return None
    dropped: list[str] = []
    if isinstance(said, Mapping) and "role" not in said and "from" not in said:
        key = next((key for key in ("messages", "conversations", "conversation") if key in said), None)
        if key is None:
            raise InvalidInput.of(_FIELD, "is JSON without messages; give a list of messages, or an object with one")
        dropped += _left(set(said) - {key}, "beside the messages")
        said = said[key]
    messages = [said] if isinstance(said, Mapping) else said
    if not isinstance(messages, list) or not all(isinstance(each, Mapping) for each in messages):
        raise InvalidInput.of(_FIELD, 'is JSON, but no list of {"role": …, "content": …}')
    turns = [_of_message(message, index, dropped) for index, message in enumerate(messages)]
    return Transcript("JSON messages", _some(turns), False, tuple(dropped))


def _of_message(message: Mapping[str, Any], index: int, dropped: list[str]) -> dict[str, Any]:
    is_shared = "from" in message and "role" not in message
    role, content = ("from", "value") if is_shared else ("role", "content")
    kept = {key: message[key] for key in _KEPT if message.get(key)}
    dropped += _left(set(message) - {role, content, *_KEPT}, f"of turn {index + 1}")
    turn = {"role": _role(str(message.get(role, "")), index), "content": _content(message.get(content), index, dropped)}
    return {**turn, **kept}


def _content(content: object, index: int, dropped: list[str]) -> str:
    """What a message says; of a list of parts, the texts joined."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidInput.of(_FIELD, f"the content of turn {index + 1} is {type(content).__name__}, not a text")
    texts = [part if isinstance(part, str) else part.get("text") for part in content if isinstance(part, str | Mapping)]
    said = [text for text in texts if isinstance(text, str)]
    if len(said) < len(content):
        dropped.append(f"Left out {len(content) - len(said)} parts of turn {index + 1} that are no text.")
    return "".join(said)


def _left(keys: set[str], where: str) -> Iterator[str]:
    if keys:
        yield f"Left out {where}: {', '.join(sorted(keys))}."
