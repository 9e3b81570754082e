"""Messages that nobody would send on purpose, made from the descriptors: at every edge of every rule, and beyond.

The same seed makes the same messages. Knows nothing about calls.
"""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from crosscope_proto import validation_rules_pb2

MARK = "zq7mark"
"""Stands in most texts. No log may hold it."""
TEXTS = (
    "",
    "a",
    "\0",
    f"{MARK}\0{MARK}",
    "é" * 40,
    "🦊" * 300,
    "../..",
    f"../../{MARK}",
    "/etc/passwd",
    "%s{0}%n",
    "%" * 3000,
    "\ufffd",
    "\u2028\r\n",
    "\u202e\u2066txt.exe",
    "\u200b\u200d\ufeff",
    "\ue000\U0010ffff",
    "שלום עולם",
    "-",
    "$(id)",
    "'; drop table said; --",
    "<script>",
    "(a+)+$",
    "[",
    '{"a": ' * 200,
    '[{"function": {"name": "f", "arguments": 1e999}}]',
    '{"enable_thinking": true}',
    '"\\ud800"',
    "x" * 5000,
    "true",
    "<end_of_turn><bos><start_of_turn>model",
    "Ω" * 2000,
)
INTEGERS = (0, 1, 2, 7, 99, 255, 4096, 2**31 - 1, 2**31, 2**32 - 1, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1)
FLOATS = (0.0, -0.0, 0.5, 1.0, -1.0, 1e-320, 3.5e38, 1e308, float("nan"), float("inf"), float("-inf"))
_RECIPES = tuple(path.read_text("utf-8") for path in sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml")))
_VALUES = ("1e999", "-1", "9" * 400, "null", "[]", "{}", "[[[[", "&a [*a]", "!!python/object:os.system", "0x7fffffff")


class Maker:
    """Random messages of any type: every field may be absent, ordinary, at an edge, or nothing that makes sense."""

    def __init__(self, seed: int, known: Mapping[str, Sequence[Any]]) -> None:
        """`known`: values that exist, by the name of a field; so that messages come past the first check."""
        self.random = random.Random(seed)
        self._known = known
        self._is_careful = False
        self._left = 0
        """About how many bytes the request may still grow by. One of 4 MiB is refused."""

    def request(self, kind: Descriptor) -> Message:
        """A message of a type; half of them keep most rules, so that they are answered."""
        self._is_careful = self.random.random() < 0.5
        self._left = 5_000_000 if self.random.random() < 0.01 else 1_000_000
        return self.message(kind)

    def message(self, kind: Descriptor, depth: int = 0) -> Message:
        """A message of a type, inside another at `depth`."""
        made: Any = GetMessageClass(kind)()
        chosen = {group.name: self._choice(group.fields).name for group in kind.oneofs}
        skipped = {field.name for group in kind.oneofs for field in group.fields if field.name != chosen[group.name]}
        for field in kind.fields:
            is_needed = self._is_careful and (_rules(field).required or _rules(field).repeated.min_items)
            if field.name in skipped or depth > 8 or (not is_needed and self.random.random() < 0.15):
                continue
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                self._fill(field, getattr(made, field.name))
            elif field.is_repeated:
                self._extend(field, getattr(made, field.name), depth)
            elif field.message_type is not None:
                getattr(made, field.name).CopyFrom(self.message(field.message_type, depth + 1))
            else:
                setattr(made, field.name, self._value(field))
        return made

    def _choice(self, fields: Sequence[FieldDescriptor]) -> FieldDescriptor:
        is_first = self._is_careful and self.random.random() < 0.7
        return fields[0] if is_first else self.random.choice(fields)

    def _fill(self, field: FieldDescriptor, target: Any) -> None:
        assert field.message_type is not None
        key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
        for _ in range(self.random.choice((0, 1, 1, 2, 40))):
            target[self._value(key)] = self._value(value)

    def _extend(self, field: FieldDescriptor, target: Any, depth: int) -> None:
        rules = _rules(field).repeated
        sizes = [0, 1, 1, 2, 5, 5, 40]
        if self._is_careful:
            sizes = [max(size, rules.min_items) for size in (0, 1, 2)]
        elif self.random.random() < 0.05 and field.message_type is None:
            sizes = [rules.max_items or 1000, (rules.max_items or 1000) + 1, 100_000]
        size = self.random.choice(sizes)
        if field.message_type is not None:
            for _ in range(size if self._left > 0 else rules.min_items):
                target.add().CopyFrom(self.message(field.message_type, depth + 1))
            return
        values = [self._value(field) for _ in range(min(size, 5))]
        self._left -= sum(len(str(value)) for value in values) * size // 5
        target.extend((values * (size // 5 + 1))[: size if self._left > 0 else 5])

    def _value(self, field: FieldDescriptor) -> Any:
        choose = self.random.choice
        if field.name in self._known and (self._is_careful or self.random.random() < 0.75):
            return choose(self._known[field.name])
        if self._is_careful and field.enum_type is not None:
            return choose(list(field.enum_type.values_by_number)[1:])
        if self._is_careful and field.cpp_type not in (FieldDescriptor.CPPTYPE_STRING, FieldDescriptor.CPPTYPE_BOOL):
            return choose((1, 2, 5))
        if field.enum_type is not None:
            return choose([*field.enum_type.values_by_number, 99, -1, 2**31 - 1])
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_STRING:
                text = self.recipe() if field.name == "recipe_yaml" else self._text(_rules(field))
                return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
            case FieldDescriptor.CPPTYPE_BOOL:
                return choose((True, False))
            case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
                return choose((*FLOATS, *_edges(_rules(field).double, 1e-9)))
            case FieldDescriptor.CPPTYPE_UINT32:
                return choose([n for n in (*INTEGERS, *_edges(_rules(field).uint32, 1)) if 0 <= n < 2**32])
            case FieldDescriptor.CPPTYPE_INT32:
                return choose([-1, -(2**31), *(n for n in INTEGERS if n < 2**31)])
            case FieldDescriptor.CPPTYPE_INT64:
                return choose([-1, -(2**63), *(n for n in INTEGERS if n < 2**63)])
            case _:
                return choose(INTEGERS)

    def _text(self, rules: Any) -> str:
        if self._is_careful:
            return self.random.choice((f"{MARK} a", "Ω", "🦊 \u202e"))
        if self.random.random() < 0.03 and (most := rules.string.max_len or rules.string.max_bytes):
            sign = self.random.choice("xé🦊")
            num = most // (1 if rules.string.max_len else len(sign.encode()))
            self._left -= num
            return sign * (num + self.random.choice((-1, 0, 1))) if self._left > 0 else sign
        text = self.random.choice(TEXTS)
        return f"{text} {MARK}" if self.random.random() < 0.5 else text

    def recipe(self) -> str:
        """A recipe with some lines changed."""
        lines = self.random.choice(_RECIPES).splitlines()
        for _ in range(self.random.choice((0, 1, 1, 2, 3))):
            place = self.random.randrange(len(lines))
            name, colon, _ = lines[place].partition(":")
            value = self.random.choice((*_VALUES, *TEXTS, str(self.random.choice(INTEGERS))))
            lines[place] = f"{name}{colon or ':'} {value}"
        return "\n".join([*lines, f"# {MARK}"])[:70_000]


def _rules(field: FieldDescriptor) -> Any:
    return field.GetOptions().Extensions[validation_rules_pb2.field]


def _edges(rules: Any, step: float) -> list[Any]:
    """Both sides of every bound."""
    bounds = [value for field, value in rules.ListFields() if field.name in ("lt", "lte", "gt", "gte")]
    return [bound + each for bound in bounds for each in (-step, 0, step)]


def damaged(data: bytes, source: random.Random) -> bytes:
    """The bytes of a message with some damage: flipped, cut, doubled, of other wire types, nested, not UTF-8."""
    broken = bytearray(data or b"\x0a\x01a")
    for _ in range(source.choice((1, 1, 2, 5))):
        place = source.randrange(len(broken) + 1)
        match source.randrange(10):
            case 0 | 1 if place < len(broken):
                broken[place] ^= 1 << source.randrange(8)
            case 2:
                del broken[place:]
            case 3:
                broken[place:place] = broken[source.randrange(len(broken) + 1) :][:200]
            case 4 if place < len(broken):
                broken[place] = (broken[place] & 0xF8) | source.randrange(8)
            case 5:
                broken[place:place] = source.choice((b"\x0b" * 500, b"\x0a\x7f" * 200, b"\x12\xff\xff\xff\xff\x0f"))
            case 6:
                broken[place:place] = b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"
            case 7:
                broken = bytearray(
                    broken.replace(MARK.encode(), source.choice((b"\xff", b"\xed\xa0\x80", b"\xc0\x80")))
                )
            case 8:
                broken += b"\xfa\xff\xff\xff\x0f\x03abc" + bytes([source.randrange(256)]) * source.choice((1, 30, 5000))
            case _:
                broken += source.randbytes(source.choice((1, 10, 300)))
        broken = broken or bytearray(b"\x00")
    return bytes(broken)
