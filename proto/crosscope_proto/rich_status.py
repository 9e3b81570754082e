"""gRPC statuses with details (google.rpc), as server and inference worker send them.

Knows no exceptions: each process decides which error gets which status.
"""

from collections.abc import Sequence
from typing import NoReturn

import grpc
import grpc.aio
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

MAX_SENTENCE_BYTES = 1200
"""Longest sentence as it travels. The headers hold it twice, and all headers together may have 8 KiB."""


def rich_status(code: grpc.StatusCode, sentence: str, details: Sequence[Message] = ()) -> status_pb2.Status:
    """A status with a sentence, cut to MAX_SENTENCE_BYTES, and details."""
    number: tuple[int, str] = code.value
    status = status_pb2.Status(code=number[0], message=cut(sentence, MAX_SENTENCE_BYTES))
    for detail in details:
        status.details.add().Pack(detail)
    return status


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


def cut(text: str, max_bytes: int) -> str:
    """The beginning of a text that fits into max_bytes as it travels, where a byte that is not ASCII takes three.

    Lone surrogates are written as escapes.
    """
    text = text.encode("utf-8", "backslashreplace").decode()
    room = max_bytes
    for i, character in enumerate(text):
        room -= 1 if " " <= character <= "~" else 3 * len(character.encode())
        if room < 0:
            return f"{text[:i]}…"
    return text
