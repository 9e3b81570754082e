"""The reference of the gRPC API: services, calls, messages, limits and statuses.

Read from the .proto files, with their comments and validation rules, and from the server's errors. Knows no call by
name.
"""

import inspect
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2 as descriptors
from google.protobuf.message import Message

from crosscope_proto import validation_rules_pb2 as rules
from crosscope_server.errors import CallError

ROOT = Path(__file__).resolve().parents[2]
PUBLIC = "crosscope.v1"
_MESSAGES, _ENUMS, _SERVICES = 4, 5, 6
"""Field numbers of FileDescriptorProto, by which comments are found."""
_NESTED, _NESTED_ENUMS, _FIELDS, _VALUES, _CALLS = 3, 4, 2, 2, 2
"""Field numbers of a message's nested types and enums, its fields, an enum's values and a service's calls."""
_RULES = {
    "min_len": "at least {} characters",
    "max_len": "at most {} characters",
    "min_bytes": "at least {} bytes",
    "max_bytes": "at most {} bytes",
    "min_items": "at least {} items",
    "max_items": "at most {} items",
    "gt": "> {}",
    "gte": "≥ {}",
    "lt": "< {}",
    "lte": "≤ {}",
    "const": "always {}",
    "finite": "finite",
    "required": "must be given",
    "defined_only": "a value of the list",
    "not_in": "not {}",
}
"""The sentence of each rule, in the order of the rules in a table cell; other rules keep their names."""
_ORDER = {name: index for index, name in enumerate(_RULES)}

Comments = Mapping[tuple[int, ...], str]


def reference() -> str:
    """Services, then messages and enums, then statuses, as Markdown."""
    files = [file for file in image().file if file.package == PUBLIC]
    services = [text for file in files for text in _services(file, comments(file))]
    messages = [text for file in files for text in _types(file, comments(file))]
    return "\n\n".join(["## Services", *services, "## Messages", *messages, "## Statuses", statuses()])


def image() -> descriptors.FileDescriptorSet:
    """The descriptors of the project's .proto files, with comments."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "image.binpb"
        command = [sys.executable, str(ROOT / "proto" / "generate.py"), "--image", str(target)]
        subprocess.run(command, check=True, cwd=ROOT)
        return descriptors.FileDescriptorSet.FromString(target.read_bytes())


def comments(file: descriptors.FileDescriptorProto) -> Comments:
    """The comment in front of each declaration, by its path in the descriptor."""
    found = file.source_code_info.location
    return {tuple(each.path): " ".join(each.leading_comments.split()) for each in found if each.leading_comments}


def statuses() -> str:
    """The statuses of failed calls: a row for each of the server's errors."""
    lines = ["| status | reason | meaning |", "|---|---|---|"]
    for error in _all_below(CallError):
        meaning = " ".join((inspect.getdoc(error) or "").split())
        lines.append(f"| `{error.status.name}` | `{error.reason}` | {meaning} |")
    lines.append("| `INTERNAL` | `BUG` | A bug of the server. The message names an id that is also in the log. |")
    return "\n".join(lines)


def _all_below(error: type[CallError]) -> Iterator[type[CallError]]:
    for each in error.__subclasses__():
        yield each
        yield from _all_below(each)


def limits(message: Message) -> Iterator[str]:
    """The sentences of a field's validation rules."""
    for field, value in sorted(message.ListFields(), key=lambda rule: _ORDER.get(rule[0].name, len(_ORDER))):
        if isinstance(value, Message):
            inner = list(limits(value))
            yield from [f"each {text}" for text in inner] if field.name == "items" else inner
        elif field.name == "cel":
            yield from (rule.message for rule in value)
        else:
            shown = value if isinstance(value, bool | int | float | str) else ", ".join(map(str, value))
            if isinstance(shown, float) and shown.is_integer():
                shown = int(shown)
            said = _RULES.get(field.name, f"{field.name} {{}}").format(shown)
            yield re.sub(r"\b1 (\w+)s$", r"1 \1", said)


def _services(file: descriptors.FileDescriptorProto, said: Comments) -> Iterator[str]:
    for number, service in enumerate(file.service):
        lines = [f"### {service.name} {{ #{service.name} }}", "", said.get((_SERVICES, number), ""), ""]
        lines += ["| call | asks with | answers with | what |", "|---|---|---|---|"]
        for index, call in enumerate(service.method):
            asks = ("a stream of " if call.client_streaming else "") + _type_link(call.input_type)
            answers = ("a stream of " if call.server_streaming else "") + _type_link(call.output_type)
            what = _cell(said.get((_SERVICES, number, _CALLS, index), ""))
            lines.append(f"| `{service.name}.{call.name}` | {asks} | {answers} | {what} |")
        yield "\n".join(lines)


def _types(file: descriptors.FileDescriptorProto, said: Comments) -> Iterator[str]:
    for number, message in enumerate(file.message_type):
        yield from _message(message, (_MESSAGES, number), said, f".{file.package}")
    for number, enum in enumerate(file.enum_type):
        yield _enum(enum, (_ENUMS, number), said, f".{file.package}")


def _message(message: descriptors.DescriptorProto, path: tuple[int, ...], said: Comments, scope: str) -> Iterator[str]:
    if message.options.map_entry:
        return
    name = f"{scope}.{message.name}"
    lines = [_heading(name), "", said.get(path, ""), ""]
    entries = {f"{name}.{each.name}": each for each in message.nested_type if each.options.map_entry}
    if message.field:
        lines += ["| field | type | limits | meaning |", "|---|---|---|---|"]
    for index, field in enumerate(message.field):
        held = "; ".join(limits(field.options.Extensions[rules.field]))
        meaning = said.get((*path, _FIELDS, index), "")
        if others := [each.name for each in message.field if _excludes(field, each)]:
            meaning += f" Excludes {', '.join(f'`{other}`' for other in others)}."
        lines.append(f"| `{field.name}` | {_field_type(field, entries)} | {_cell(held)} | {_cell(meaning)} |")
    yield "\n".join(lines)
    for index, inner in enumerate(message.nested_type):
        yield from _message(inner, (*path, _NESTED, index), said, name)
    for index, enum in enumerate(message.enum_type):
        yield _enum(enum, (*path, _NESTED_ENUMS, index), said, name)


def _excludes(field: descriptors.FieldDescriptorProto, other: descriptors.FieldDescriptorProto) -> bool:
    """Whether only one of the two can be set."""
    if not (field.HasField("oneof_index") and other.HasField("oneof_index")):
        return False
    return field.name != other.name and field.oneof_index == other.oneof_index


def _enum(enum: descriptors.EnumDescriptorProto, path: tuple[int, ...], said: Comments, scope: str) -> str:
    lines = [_heading(f"{scope}.{enum.name}"), "", said.get(path, ""), ""]
    lines += ["| value | number | meaning |", "|---|---|---|"]
    for index, value in enumerate(enum.value):
        lines.append(f"| `{value.name}` | {value.number} | {_cell(said.get((*path, _VALUES, index), ''))} |")
    return "\n".join(lines)


def _field_type(field: descriptors.FieldDescriptorProto, entries: Mapping[str, descriptors.DescriptorProto]) -> str:
    if entry := entries.get(field.type_name):
        key, value = entry.field
        return f"map of {_field_type(key, {})} to {_field_type(value, {})}"
    scalar = descriptors.FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    said = _type_link(field.type_name) if field.type_name else scalar
    if field.label == descriptors.FieldDescriptorProto.LABEL_REPEATED:
        return f"list of {said}"
    return f"{said}, optional" if field.proto3_optional else said


def _heading(name: str) -> str:
    return f"### {_short(name)} {{ #{_short(name)} }}"


def _type_link(name: str) -> str:
    return f"[{_short(name)}](#{_short(name)})"


def _short(name: str) -> str:
    return name.removeprefix(f".{PUBLIC}.")


def _cell(text: Any) -> str:
    return str(text).replace("|", "\\|")
