"""A tokenizer's chat template on a fixed day: turns to the text that it prints.

Templates are programs that come with a model. Does not know tokens, nor which part of the text is whose.
"""

import datetime
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from transformers import PreTrainedTokenizerBase

_DIRECTIVES = "aAbBcdDeFgGhHIjklmMnpPrRsStTuUVwWxXyYzZf"
_PADDING = ("", "-", "_", "0", "^", "#")
_DATES = "crosscope_dates"
_CLOCK = (
    "{% macro strftime_now(format) %}{% set said = namespace(text=format) %}"
    "{% for directive, value in " + _DATES + ".items() %}"
    "{% set said.text = said.text.replace(directive, value) %}{% endfor %}{{ said.text }}{% endmacro %}\n"
)
"""Replaces transformers' clock when put in front of a template; trim_blocks drops its line end."""

Say = Callable[[int, str, str], str]
"""(index of the turn, "content", "reasoning" or "call", what is said) to what the template is given instead."""


class TemplateRefusal(ValueError):
    """The template raised an error of its own, or there is no template."""


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation."""

    role: str
    """"system", "developer", "user", "assistant" or "tool"."""
    content: str
    reasoning: str = ""
    """What an assistant turn thinks first, unless it stands in the content: the template's
    `reasoning_content`."""
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    """Calls of an assistant turn, {"type": "function", "function": {"name", "arguments"}} or the inner object alone."""
    name: str = ""
    """Who speaks, or which tool answers, for templates that print it."""
    tool_call_id: str = ""
    """The call that a tool turn answers, for templates that ask for it."""
    prefix: bool = False
    """The assistant has only begun it: nothing is printed behind what it says. Of the last turn alone."""


@dataclass(frozen=True)
class TemplateSettings:
    """What a template is told beside the turns."""

    date: str = ""
    """The day that it prints, YYYY-MM-DD; "" for the day on which it is asked."""
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Arguments by name, plain JSON values."""

    @classmethod
    def of_recipe(cls, recipe: Mapping[str, Any], date: str) -> Self:
        """The settings of a recipe, which is given as plain values, and of the day that its job has fixed.

        If the recipe states a day, templates also get it as `date_string`; otherwise they take a day of their own.
        """
        kwargs = dict(recipe.get("chat_template_kwargs") or {})
        if recipe.get("chat_template_date") and date:
            kwargs = {"date_string": datetime.date.fromisoformat(date).strftime("%d %b %Y")} | kwargs
        return cls(date, kwargs)


class ChatTemplate:
    """Prints conversations."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: TemplateSettings) -> None:
        self._tokenizer = tokenizer
        self.settings = settings
        self._dates = _dates(datetime.date.fromisoformat(settings.date)) if settings.date else {}

    @property
    def reads_date(self) -> bool:
        """Whether what is printed may depend on the day."""
        source = str(self._tokenizer.chat_template or "")
        return "strftime_now" in source or "date_string" in source

    @property
    def settings_hash(self) -> str:
        """SHA-256 of the settings as far as they may change what is printed."""
        told = {"kwargs": dict(self.settings.kwargs), "date": self.settings.date if self.reads_date else ""}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def source(self, kwargs: Mapping[str, Any]) -> str:
        """The template's program, which may be another one where there are tools. Raises TemplateRefusal."""
        if not self._tokenizer.chat_template:
            raise TemplateRefusal("the pair's tokenizer has no chat template")
        try:
            return self._tokenizer.get_chat_template(None, kwargs.get("tools"))
        except ValueError as error:
            raise TemplateRefusal(" ".join(str(error).split())) from error

    def render(self, messages: Sequence[dict[str, Any]], add_generation_prompt: bool, kwargs: Mapping[str, Any]) -> str:
        """The text that is printed for messages and arguments. Raises TemplateRefusal with the template's own words."""
        source, arguments = self.source(kwargs), dict[str, Any](kwargs)
        if self._dates and "strftime_now" in source:
            source, arguments[_DATES] = _CLOCK + source, self._dates
        arguments |= {"tokenize": False, "add_generation_prompt": add_generation_prompt, "chat_template": source}
        try:
            rendered = self._tokenizer.apply_chat_template(list(messages), **arguments)
        except Exception as error:  # a template is a program of others and may raise anything
            raise TemplateRefusal(" ".join(str(error).split())[:500] or type(error).__name__) from error
        assert isinstance(rendered, str)
        return rendered


def messages_of(turns: Sequence[Turn], say: Say) -> list[dict[str, Any]]:
    """Turns as templates read them, with every text that is said handed to `say`, always in the same order."""
    messages: list[dict[str, Any]] = []
    for index, turn in enumerate(turns):
        message: dict[str, Any] = {"role": turn.role, "content": say(index, "content", turn.content)}
        if turn.reasoning:
            message["reasoning_content"] = say(index, "reasoning", turn.reasoning)
        if turn.tool_calls:
            message["tool_calls"] = [_call(call, index, say) for call in turn.tool_calls]
        message |= {key: value for key in ("name", "tool_call_id") if (value := getattr(turn, key))}
        messages.append(message)
    return messages


def _call(call: Mapping[str, Any], index: int, say: Say) -> dict[str, Any]:
    if isinstance(inner := call.get("function"), Mapping):
        return {**call, "function": _call(inner, index, say)}
    said = dict(call)
    if isinstance(name := call.get("name"), str):
        said["name"] = say(index, "call", name)
    if "arguments" in call:
        said["arguments"] = _said(call["arguments"], index, say)
    return said


def _said(value: Any, index: int, say: Say) -> Any:
    if isinstance(value, str):
        return say(index, "call", value)
    if isinstance(value, Mapping):
        return {say(index, "call", str(key)): _said(each, index, say) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_said(each, index, say) for each in value]
    return value


def _dates(day: datetime.date) -> dict[str, str]:
    """What each directive of strftime says on a day, at midnight."""
    midnight = datetime.datetime.combine(day, datetime.time())
    codes = [f"%{padding}{letter}" for padding in _PADDING for letter in _DIRECTIVES]
    return {"%%": "\0", **{code: midnight.strftime(code) for code in codes}, "\0": "%"}
