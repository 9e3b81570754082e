"""Checks of what a chat template gets beside the messages, in a recipe or in a prompt. Knows no template."""

import json
from collections.abc import Mapping
from typing import Any

MAX_JSON_BYTES = 262_144
"""Limit of a prompt's template arguments, and of a message's tool calls, as JSON."""

_RESERVED = frozenset(
    {
        *("messages", "conversation", "chat_template", "add_generation_prompt", "continue_final_message"),
        *("tokenize", "sanitize_control_tokens", "padding", "truncation", "max_length", "return_tensors"),
        *("return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs", "strftime_now"),
    }
)
"""Names that apply_chat_template of transformers takes for itself, and names that crosscope sets."""


def check_template_kwargs(kwargs: Mapping[str, Any]) -> None:
    """Raises ValueError if a chat template cannot get an argument; the sentence names it."""
    for name in kwargs:
        if name in _RESERVED:
            raise ValueError(f"{name!r} cannot be given to a chat template; leave it out")
    for name in ("tools", "documents"):
        value = kwargs.get(name)
        if value is not None and not (isinstance(value, list) and all(isinstance(each, dict) for each in value)):
            raise ValueError(f"{name!r} must be a list of objects, but is {str(value)[:80]}")


def parse_template_kwargs(text: str) -> dict[str, Any]:
    """The arguments in a JSON object; none for an empty text. Raises ValueError with a sentence."""
    kwargs = _parse(text or "{}")
    if not isinstance(kwargs, dict):
        raise ValueError(f"must be a JSON object, but is {text[:80]}")
    check_template_kwargs(kwargs)
    return kwargs


def parse_tool_calls(text: str) -> list[dict[str, Any]]:
    """The tool calls in a JSON list; none for an empty text. Raises ValueError with a sentence."""
    calls = _parse(text or "[]")
    if not isinstance(calls, list):
        raise ValueError(f"must be a JSON list of objects, but is {text[:80]}")
    for call in calls:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise ValueError(f'each call must be an object with "function": {{"name", "arguments"}}: {str(call)[:80]}')
    return calls


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"is not JSON: {' '.join(str(error).split())}") from error
