"""Which rules of the .proto files a message breaks, as fields and sentences. Does not know what messages are for."""

from collections.abc import Iterable
from typing import Any

import protovalidate
from google.protobuf.message import Message

_SHOWN = 60
"""Most characters of a value that a sentence repeats."""
_EXPLAINED_BYTES = 4096
"""Of a longer message only the first broken rule is named: a megabyte may break a million, which takes half a minute to
collect."""


def broken(message: Message) -> list[tuple[str, str]]:
    """Path and sentence of every field that breaks a rule: its value and the rule."""
    found = protovalidate.collect_violations(message, fail_fast=True)
    if found and message.ByteSize() <= _EXPLAINED_BYTES:
        found = protovalidate.collect_violations(message)
    return [_violation(violation) for violation in found]


def _violation(violation: protovalidate.Violation) -> tuple[str, str]:
    text = violation.proto.message.removeprefix("value ")
    rule = violation.proto.rule_id
    if rule != "required" and rule != "message.oneof":
        text = f"{text}, but is {_shown(violation.field_value, rule)}"
    return _path(violation.proto.field.elements if violation.proto.field else ()), text


def _path(elements: Iterable[Any]) -> str:
    path = ""
    for element in elements:
        path += f".{element.field_name}" if path else element.field_name
        if (subscript := element.subscript) is not None:
            path += f"[{_short(repr(subscript.value))}]"
    return path


def _shown(value: object, rule: str) -> str:
    if isinstance(value, str):
        if rule.endswith("_bytes"):
            return f"{len(value.encode())} bytes"
        return repr(value) if len(value) <= _SHOWN else f"{len(value)} characters"
    if isinstance(value, (int, float)):
        return repr(value)
    if rule.startswith("repeated.m") and isinstance(value, Iterable):
        return f"{sum(1 for _ in value)} items"
    return _short(repr(value))


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
