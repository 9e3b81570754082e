"""gRPC statuses with details (google.rpc), as server and inference worker send them.

A status travels in the headers: its sentence percent-encoded, and all of it once more in base64. gRPC drops a call
whose headers exceed 8 KiB, and the caller then sees another error, so what is too long is cut and ends with "…".
Knows no exceptions: each process decides which error gets which status.
"""

from collections.abc import Iterator, Sequence
from typing import NoReturn

import grpc
import grpc.aio
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

MAX_SENTENCE_BYTES = 1200
"""Longest sentence as it travels, percent-encoded."""
MAX_STATUS_BYTES = 4500
"""Largest status with its details; 6000 bytes in base64. 900 bytes are left for all other headers."""
MAX_VIOLATIONS = 10
"""Most wrong fields that a status names."""
_TEXT_BYTES = (2000, 1000, 500, 250, 120, 60, 30)
"""Lengths to which the texts in details are cut, one after the other, until the status fits."""


def rich_status(code: grpc.StatusCode, sentence: str, details: Sequence[Message] = ()) -> status_pb2.Status:
    """A status with a sentence and details. Texts are cut as far as its headers ask for, and then end with "…"."""
    number: tuple[int, str] = code.value
    status = status_pb2.Status(code=number[0], message=cut(sentence, MAX_SENTENCE_BYTES))
    for length in (None, *_TEXT_BYTES):
        del status.details[:]
        for detail in details:
            status.details.add().Pack(detail if length is None else _shortened(detail, length))
        if status.ByteSize() <= MAX_STATUS_BYTES:
            return status
    del status.details[:]
    return status


def bad_request(violations: Sequence[tuple[str, str]]) -> error_details_pb2.BadRequest:
    """The detail that names wrong fields, each with a sentence; behind the ninth of many it says how many follow."""
    detail = error_details_pb2.BadRequest()
    is_whole = len(violations) <= MAX_VIOLATIONS
    for field, sentence in violations if is_whole else violations[: MAX_VIOLATIONS - 1]:
        detail.field_violations.add(field=encodable(field), description=encodable(sentence))
    if not is_whole:
        num_more = len(violations) - len(detail.field_violations)
        detail.field_violations.add(field="…", description=f"and {num_more} more")
    return detail


def retry_info(retry_after_s: float) -> error_details_pb2.RetryInfo:
    """The detail that says after how many seconds to ask again."""
    info = error_details_pb2.RetryInfo()
    info.retry_delay.FromMilliseconds(round(retry_after_s * 1000))
    return info


async def abort(context: grpc.aio.ServicerContext, status: status_pb2.Status) -> NoReturn:
    """Ends a call with a status. Never returns."""
    plain = rpc_status.to_status(status)
    await context.abort(plain.code, plain.details, plain.trailing_metadata)
    raise AssertionError("unreachable: abort raises")


def encodable(text: str) -> str:
    """A text as a message can hold it: lone surrogates are written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def cut(text: str, max_bytes: int) -> str:
    """The beginning of a text that fits into max_bytes percent-encoded: "%" and a byte that is not ASCII take three."""
    text = encodable(text)
    room = max_bytes
    for i, character in enumerate(text):
        room -= 1 if " " <= character <= "~" and character != "%" else 3 * len(character.encode())
        if room < 0:
            return f"{text[:i]}…"
    return text


def _shortened(detail: Message, max_bytes: int) -> Message:
    """A copy of a detail, whose texts have at most max_bytes bytes each, and an ellipsis."""
    copy = type(detail)()
    copy.CopyFrom(detail)
    for part in _parts(copy):
        for field, value in part.ListFields():
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                texts = getattr(part, field.name)
                for key in [key for key in texts if isinstance(texts[key], str)]:
                    texts[key] = _beginning(texts[key], max_bytes)
            elif isinstance(value, str):
                setattr(part, field.name, _beginning(value, max_bytes))
    return copy


def _parts(message: Message) -> Iterator[Message]:
    """A message and all messages in it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for inner in value if field.is_repeated else (value,):
            yield from _parts(inner)


def _beginning(text: str, max_bytes: int) -> str:
    data = text.encode()
    return text if len(data) <= max_bytes else f"{data[:max_bytes].decode('utf-8', 'ignore')}…"
