"""Every field of a reply about prompts reaches the SDK: filled with values of its own, each is found in the result."""

import dataclasses
import enum
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from crosscope import Arm
from crosscope import _decode as decode
from crosscope import _decode_effects as effects
from crosscope_proto.v1 import effects_pb2, prompts_pb2

NUM_TOKENS, NUM_NEXT = 3, 2
LENGTHS = {"top_ids": NUM_TOKENS * NUM_NEXT, "top_log_probabilities": NUM_TOKENS * NUM_NEXT}
FIXED: dict[str, Any] = {"top_n": NUM_NEXT, "row_starts": [0, 1, 2, 3]}
ELSEWHERE = {
    "CompareResponse.top_n": "the shape of top_ids",
    "GenerationEnd.arm": "Answer.arm_index",
    "GenerationEnd.num_tokens": "the length of Answer.tokens",
    "GenerationEnd.reason": "a word, by test_tokens_come_one_by_one_and_the_answer_is_whole",
}
"""Fields that an attribute shows in another form."""
REPLIES: dict[type[Message], Callable[[Any], Any]] = {
    prompts_pb2.TokenizeResponse: lambda reply: (
        decode.tokens(reply.tokens),
        decode.token_count(reply),
        reply.version_id,
    ),
    prompts_pb2.EncodeResponse: lambda reply: decode.encoding(reply, "demo"),
    prompts_pb2.TopLatentsResponse: lambda reply: decode.top_latents(reply, "demo", "max"),
    prompts_pb2.ContrastResponse: lambda reply: effects.contrast(reply, "demo"),
    effects_pb2.CompareResponse: lambda reply: effects.comparison(reply, "demo"),
    effects_pb2.AttributeResponse: lambda reply: effects.attribution(reply, "demo", "chat", None),
    effects_pb2.NewToken: effects.new_token,
    effects_pb2.GenerationStart: lambda start: effects.answer_code("demo", start, []),
    effects_pb2.GenerationEnd: lambda end: effects.answer(
        [Arm()] * (end.arm + 1), (end.arm, end.sample), [], end, is_over=True
    ),
}


def fill(message: Message, numbers: Iterator[int]) -> None:
    """Gives every field a value that no other has; enums get the first that means something, bools True."""
    for field in message.DESCRIPTOR.fields:
        if field.name in FIXED:
            value = FIXED[field.name]
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            if field.message_type.GetOptions().map_entry:
                getattr(message, field.name)[next(numbers)] = f"text {next(numbers)}"
            elif field.is_repeated:
                for _ in range(NUM_TOKENS):
                    fill(getattr(message, field.name).add(), numbers)
            else:
                fill(getattr(message, field.name), numbers)
            continue
        else:
            length = LENGTHS.get(field.name, NUM_TOKENS) if field.is_repeated else 1
            values = [scalar(field, next(numbers)) for _ in range(length)]
            value = values if field.is_repeated else values[0]
        if isinstance(value, list):
            getattr(message, field.name).extend(value)
        else:
            setattr(message, field.name, value)


def scalar(field: FieldDescriptor, number: int) -> Any:
    if field.type == FieldDescriptor.TYPE_ENUM:
        return 3
    if field.type == FieldDescriptor.TYPE_BOOL:
        return True
    if field.type == FieldDescriptor.TYPE_STRING:
        return f"text {number}"
    return number + 0.5 if field.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE) else number


def leaves(value: Any) -> Iterator[Any]:
    """The numbers and texts of a value, and of all that it holds."""
    if isinstance(value, enum.IntEnum):
        yield int(value)
    elif isinstance(value, str | int | float):
        yield value
    elif isinstance(value, np.ndarray):
        yield from value.flatten().tolist()
    elif isinstance(value, Mapping):
        yield from itertools.chain.from_iterable(map(leaves, itertools.chain(value.keys(), value.values())))
    elif dataclasses.is_dataclass(value):
        yield from itertools.chain.from_iterable(leaves(getattr(value, f.name)) for f in dataclasses.fields(value))
    elif isinstance(value, Sequence) or hasattr(value, "__iter__"):
        yield from itertools.chain.from_iterable(map(leaves, value))


def missing(message: Message, result: Any) -> Iterator[str]:
    """Fields of a message whose values are not in the attribute of that name, or, without one, not in the result."""
    for field in message.DESCRIPTOR.fields:
        name = f"{message.DESCRIPTOR.full_name.removeprefix('crosscope.v1.')}.{field.name}"
        if name in ELSEWHERE:
            continue
        given, shown = getattr(message, field.name), getattr(result, field.name, result)
        is_map = field.type == FieldDescriptor.TYPE_MESSAGE and field.message_type.GetOptions().map_entry
        if field.type != FieldDescriptor.TYPE_MESSAGE or is_map:
            if not set(leaves(given)) <= set(leaves(shown)):
                yield name
        elif field.is_repeated:
            for each, part in zip(given, shown, strict=True):
                yield from missing(each, part)
        else:
            yield from missing(given, shown)


@pytest.mark.parametrize("kind", REPLIES, ids=lambda kind: kind.DESCRIPTOR.name)
def test_every_field_is_shown(kind: type[Message]) -> None:
    message = kind()
    fill(message, itertools.count(5))
    assert sorted(set(missing(message, REPLIES[kind](message)))) == []


def test_a_field_that_is_not_shown_is_found() -> None:
    message = prompts_pb2.EncodeResponse()
    fill(message, itertools.count(5))
    result = decode.encoding(message, "demo")
    assert list(missing(message, dataclasses.replace(result, compute_ms=0.0))) == ["EncodeResponse.compute_ms"]
    tokens = dataclasses.replace(result.tokens, left_out=())
    assert list(missing(message, dataclasses.replace(result, tokens=tokens))) == ["Tokens.left_out"]


def test_every_reply_about_prompts_is_among_them() -> None:
    methods = prompts_pb2.DESCRIPTOR.services_by_name["Prompts"].methods
    unary = {method.output_type.name for method in methods if not method.server_streaming}
    streamed = {"GenerationStart", "NewToken", "GenerationEnd"}
    assert {kind.DESCRIPTOR.name for kind in REPLIES} == unary | streamed
