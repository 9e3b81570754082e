"""Checks of arguments, and the Prompt message of a call. Refuses what cannot be sent; the server has the limits."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from crosscope._errors import InvalidInput
from crosscope._types import Tokens
from crosscope_proto.v1 import types_pb2 as pb

Messages = Sequence[Mapping[str, Any]]
"""Messages of a conversation: {"role": "user", "content": "…"}, as chat templates read them. They may also have
reasoning (or reasoning_content), tool_calls, name and tool_call_id; and the last one, the assistant's, prefix: True, so
that a model goes on with it."""
_MESSAGE_KEYS = frozenset(
    {"role", "content", "reasoning", "reasoning_content", "tool_calls", "name", "tool_call_id", "prefix"}
)

AnyPrompt = str | Messages | Tokens | Mapping[str, Any]
"""One prompt of many: a text, messages, tokens, or one of them by its name: {"text": …}, {"messages": …},
{"token_ids": …}, {"stored_text": …}."""
_PROMPT_KEYS = ("text", "messages", "token_ids", "stored_text")

_UINT32 = 2**32 - 1


def check_text(value: object, field: str) -> str:
    """The value if it is a text that can be sent; else raises InvalidInput, which names the character."""
    if isinstance(value, bytes | bytearray):
        raise InvalidInput.of(field, "bytes were given; decode them first, for instance with .decode('utf-8')")
    if not isinstance(value, str):
        raise InvalidInput.of(field, f"a text is needed, but {type(value).__name__} was given")
    for position, character in enumerate(value) if not value.isascii() or "\0" in value else ():
        if character == "\0":
            raise InvalidInput.of(field, f"holds a NUL character at position {position}; take it out")
        if "\ud800" <= character <= "\udfff":
            raise InvalidInput.of(
                field,
                f"holds a lone surrogate U+{ord(character):04X} at position {position}, which is no character; "
                "read the text as UTF-8, or replace it with text.encode('utf-8', 'replace').decode()",
            )
    return value


def check_count(value: object, field: str, low: int = 0) -> int:
    """The value if it is a whole number that fits the wire; raises InvalidInput."""
    number = check_whole(value, field)
    if not low <= number <= _UINT32:
        raise InvalidInput.of(field, f"must be {low} to {_UINT32}, but is {value!r}")
    return number


def check_whole(value: object, field: str) -> int:
    """The value if it is a whole number; raises InvalidInput."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise InvalidInput.of(field, f"a whole number is needed, but {value!r} was given")
    return value.__index__()  # pyright: ignore[reportAttributeAccessIssue]


def check_number(value: object, field: str) -> float:
    """The value if it is a finite number; raises InvalidInput."""
    try:
        number = float(value)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError, OverflowError):
        raise InvalidInput.of(field, f"a number is needed, but {value!r} was given") from None
    if not math.isfinite(number):
        raise InvalidInput.of(field, f"a finite number is needed, but {value!r} was given")
    return number


def check_flag(value: object, field: str) -> bool:
    """The value if it is True or False; raises InvalidInput."""
    if not isinstance(value, bool):
        raise InvalidInput.of(field, f"must be True or False, but is {value!r}")
    return value


def build_prompt(
    text: str | None,
    messages: Messages | None = None,
    turns: Messages | None = None,
    *,
    add_generation_prompt: bool = False,
    parse_control_tokens: bool = False,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    token_ids: Sequence[int] | Tokens | None = None,
    stored_text: int | None = None,
) -> pb.Prompt:
    """The prompt of a call: a text; messages, whose former name is `turns`; token ids, or Tokens with their roles; or
    the id of a text that the analysis stored. Raises InvalidInput.
    """
    given = {"text": text, "messages": messages, "turns": turns, "token_ids": token_ids, "stored_text": stored_text}
    if sum(value is not None for value in given.values()) != 1:
        ways = 'a text, messages=[{"role": "user", "content": "…"}], token_ids=[2, 17] or stored_text=12'
        raise InvalidInput.of("prompt", f"give {ways}, one of them")
    prompt = pb.Prompt(parse_control_tokens=check_flag(parse_control_tokens, "parse_control_tokens"))
    with_header = check_flag(add_generation_prompt, "add_generation_prompt")
    if messages is None and turns is None:
        what = "a plain text" if text is not None else "token ids" if token_ids is not None else "a stored text"
        if with_header:
            raise InvalidInput.of("add_generation_prompt", f"goes with messages, not with {what}")
        if chat_template_kwargs:
            raise InvalidInput.of("chat_template_kwargs", f"go with messages, not with {what}")
        if prompt.parse_control_tokens and text is None:
            raise InvalidInput.of("parse_control_tokens", f"goes with a text or messages, not with {what}")
        _write_tokens(prompt, text, token_ids, stored_text)
        return prompt
    word = "messages" if messages is not None else "turns"
    prompt.conversation.turns.extend(_messages(given[word], word))
    prompt.conversation.add_generation_prompt = with_header
    if chat_template_kwargs:
        prompt.conversation.chat_template_kwargs_json = _json(chat_template_kwargs, "chat_template_kwargs")
    return prompt


def has_prefix(messages: object) -> bool:
    """Whether the last of some messages is only begun."""
    last = messages[-1] if isinstance(messages, Sequence) and messages else None
    return isinstance(last, Mapping) and last.get("prefix") is True


def build_any(
    prompt: object,
    *,
    add_generation_prompt: bool = False,
    parse_control_tokens: bool = False,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> pb.Prompt:
    """The message of one prompt of many (AnyPrompt); the flags act where they apply. Raises InvalidInput."""
    said: dict[str, Any] = {"text": None}
    if isinstance(prompt, str | bytes):
        said = {"text": prompt}
    elif isinstance(prompt, Tokens):
        said["token_ids"] = prompt
    elif isinstance(prompt, Mapping) and len(prompt) == 1 and (key := next(iter(prompt))) in _PROMPT_KEYS:
        said[key] = prompt[key]
    else:
        said["messages"] = prompt
    if said.get("messages") is not None:
        said |= {"add_generation_prompt": add_generation_prompt, "chat_template_kwargs": chat_template_kwargs}
    if said.get("messages") is not None or said["text"] is not None:
        said["parse_control_tokens"] = parse_control_tokens
    return build_prompt(**said)


def _write_tokens(prompt: pb.Prompt, text: object, token_ids: object, stored_text: object) -> None:
    """Writes a prompt that is no conversation."""
    if text is not None:
        prompt.text = _not_empty(check_text(text, "text"))
    elif stored_text is not None:
        prompt.stored_text.sequence_id = check_count(stored_text, "stored_text")
    elif isinstance(token_ids, Tokens):
        prompt.token_ids.ids.extend(_some_ids(token_ids.ids))
        prompt.token_ids.roles.extend(int(role) for role in token_ids.roles)  # pyright: ignore[reportArgumentType]
    else:
        prompt.token_ids.ids.extend(_some_ids(token_ids))


def _some_ids(ids: object) -> list[int]:
    if isinstance(ids, str | bytes | Mapping) or not isinstance(ids, Iterable):
        raise InvalidInput.of("token_ids", f"a list of token ids is needed, not {type(ids).__name__}")
    numbers = [check_count(id_, f"token_ids[{index}]") for index, id_ in enumerate(ids)]
    if not numbers:
        raise InvalidInput.of("token_ids", "is empty; give at least one id")
    return numbers


def _not_empty(text: str) -> str:
    if not text:
        raise InvalidInput.of("text", "is empty; give at least one character")
    return text


def _messages(messages: object, word: str) -> list[pb.Turn]:
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        problem = f'a list of {{"role": …, "content": …}} is needed, not {type(messages).__name__}'
        raise InvalidInput.of(word, problem)
    if not messages:
        raise InvalidInput.of(word, "is empty; give at least one message")
    return [_message(message, f"{word}[{i}]") for i, message in enumerate(messages)]


def _message(message: object, field: str) -> pb.Turn:
    if not isinstance(message, Mapping) or not {"role", "content"} <= set(message) <= _MESSAGE_KEYS:
        more = ", ".join(sorted(_MESSAGE_KEYS - {"role", "content"}))
        raise InvalidInput.of(field, f"needs the keys role and content, and may have {more}, but is {message!r:.80}")
    said = {key: check_text(message[key], f"{field}.{key}") for key in message if key not in ("tool_calls", "prefix")}
    reasoning = said.pop("reasoning_content", "")
    built = pb.Turn(reasoning=reasoning)
    for key, text in said.items():
        setattr(built, key, text)
    built.prefix = check_flag(message.get("prefix", False), f"{field}.prefix")
    if calls := message.get("tool_calls"):
        built.tool_calls_json = _json(calls, f"{field}.tool_calls")
    return built


def _json(value: object, field: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, default=_plain)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput.of(field, f"must be what JSON can say: {error}") from None


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is no JSON value")
