"""The reference of recipes: every field with its type, limits, default and meaning.

Everything is read from the dataclasses of `crosscope_proto`: annotations give types and limits, the docstring below a
field gives its meaning. Unions of dataclasses get one table per member. Knows no field by name.
"""

import dataclasses
import datetime
import inspect
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Union

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from crosscope_proto.field_meanings import meanings
from crosscope_proto.recipe import Recipe

_PLAIN = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "`true` or `false`",
    dict: "mapping",
    datetime.date: "day, YYYY-MM-DD",
    type(None): "`null`",
}
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


class Row(NamedTuple):
    """One field of a recipe, as the table shows it."""

    field: str
    type: str
    default: str
    meaning: str


def reference(kinds: Sequence[type] = typing.get_args(Recipe)) -> str:
    """The tables of all kinds of recipes and of their parts, as Markdown."""
    sections = [_section(f"A recipe of kind `{_word(kind, 'kind')}`", kind) for kind in kinds]
    for paths, part, word in _parts(kinds):
        title = ", ".join(f"`{path}`" for path in paths)
        sections.append(_section(f"{title} with {word}" if word else title, part))
    return "\n\n".join(sections)


def rows(part: type) -> list[Row]:
    """The fields of one dataclass in their order."""
    said = meanings(part)
    return [
        Row(name, _type(field.annotation, field.metadata), _default(field), said.get(name) or _summary(part, name))
        for name, field in fields(part).items()
    ]


def fields(part: type) -> Mapping[str, FieldInfo]:
    """The fields of a pydantic dataclass by name."""
    return vars(part)["__pydantic_fields__"]


def _section(title: str, part: type) -> str:
    lines = [f"## {title} {{ #{part.__name__} }}", "", _docstring(part), ""]
    lines += ["| field | value | default | meaning |", "|---|---|---|---|"]
    lines += ["| " + " | ".join((f"`{row.field}`", *map(_cell, row[1:]))) + " |" for row in rows(part)]
    return "\n".join(lines)


def _parts(kinds: Iterable[type]) -> Iterator[tuple[list[str], type, str]]:
    """Every dataclass below the kinds, once: its paths, and its word if it is one of several."""
    paths: dict[type, list[str]] = {}
    words: dict[type, str] = {}
    waiting = [(kind, "") for kind in kinds]
    while waiting:
        part, path = waiting.pop(0)
        for name, field in fields(part).items():
            members = list(_dataclasses(field.annotation))
            key = _discriminator(members)
            for member in members:
                place = f"{path}.{name}".lstrip(".")
                if place not in paths.setdefault(member, []):
                    paths[member].append(place)
                    waiting.append((member, place))
                if key:
                    words[member] = f"`{key}: {_word(member, key)}`"
    return ((where, part, words.get(part, "")) for part, where in paths.items())


def _dataclasses(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        yield annotation
    for argument in () if typing.get_origin(annotation) is Literal else typing.get_args(annotation):
        yield from _dataclasses(argument)


def _discriminator(members: list[type]) -> str:
    """The field whose word distinguishes the members of a union; "" for a single member."""
    if len(members) < 2:
        return ""
    shared = set.intersection(*(set(fields(member)) for member in members))
    found = [name for name in shared if all(_word(member, name) for member in members)]
    if len(found) != 1:
        raise ValueError(f"no one field tells {[member.__name__ for member in members]} apart: {found}")
    return found[0]


def _word(part: type, name: str) -> str:
    """The only value that a field allows; "" if it allows more."""
    annotation = fields(part)[name].annotation
    values = typing.get_args(annotation) if typing.get_origin(annotation) is Literal else ()
    return str(values[0]) if len(values) == 1 else ""


def _type(annotation: Any, metadata: Iterable[object] = ()) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0], [*arguments[1:], *metadata])
    if origin in (Union, types.UnionType):
        members = list(_dataclasses(annotation))
        if key := _discriminator(members):
            return f"mapping, by `{key}`: " + ", ".join(_link(part, _word(part, key)) for part in members)
        parts = [_type(argument) for argument in arguments]
        said = ("; or " if any(", " in part for part in parts) else " or ").join(parts)
    elif origin is Literal:
        said = _either([f"`{value}`" for value in arguments])
    elif origin is tuple and arguments[-1] is ...:
        said = f"list, each a {_type(arguments[0])}"
    elif origin is tuple:
        said = f"list of {len(arguments)}, each a {_type(arguments[0])}"
    elif isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return _link(annotation, "mapping")
    else:
        said = _PLAIN[origin or annotation]
    limits = list(_limits(metadata))
    return f"{said}, {', '.join(limits)}" if limits else said


def _limits(metadata: Iterable[object]) -> Iterator[str]:
    for rule in metadata:
        if isinstance(rule, FieldInfo):
            yield from _limits(rule.metadata)
        for name, sign in _BOUNDS.items():
            if (bound := getattr(rule, name, None)) is not None:
                yield f"{sign}\u00a0{_number(bound)}"
        if step := getattr(rule, "multiple_of", None):
            yield f"a multiple of {step}"
        if (least := getattr(rule, "min_length", None)) is not None:
            yield f"at least {least} long"
        if (most := getattr(rule, "max_length", None)) is not None:
            yield f"at most {most} long"
        if pattern := getattr(rule, "pattern", None):
            yield f"matches `{pattern}`"


def _number(value: float) -> str:
    """The number; a power is written as a power."""
    if isinstance(value, int) and abs(value) >= 10**6:
        for base, exponent in ((10, len(str(value)) - 1), (2, value.bit_length() - 1), (2, value.bit_length())):
            if base**exponent == value:
                return f"{base}^{exponent}"
            if base**exponent - 1 == value:
                return f"{base}^{exponent} - 1"
    return f"{value}"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be given"
    value = field.get_default(call_default_factory=True)
    assert value is not PydanticUndefined
    if dataclasses.is_dataclass(value):
        assert value == type(value)(), f"{value} is not what its fields' defaults make"
        return _link(type(value), "its defaults")
    shown = {None: "null", True: "true", False: "false"}.get(value) if isinstance(value, bool | None) else None
    return f"`{shown if shown is not None else list(value) if isinstance(value, tuple) else value}`"


def _summary(part: type, name: str) -> str:
    """The docstring of the field's dataclass, for a field without a docstring."""
    if _word(part, name):
        return "The word that chooses this table."
    members = list(_dataclasses(fields(part)[name].annotation))
    if key := _discriminator(members):
        return f"One of these tables; `{key}` chooses."
    return _docstring(members[0]) if members else ""


def _docstring(part: type) -> str:
    return " ".join((inspect.getdoc(part) or "").split())


def _link(part: type, text: str) -> str:
    return f"[{text}](#{part.__name__})"


def _either(words: list[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
