"""What can go wrong with a call, and the one mapping from exceptions to gRPC statuses. Knows nothing about services."""

import logging

import grpc
from google.protobuf.any_pb2 import Any
from google.rpc import error_details_pb2, status_pb2

from crosscope_worker.dictionary.crosscoder import CrosscoderError
from crosscope_worker.models.places import PairError
from crosscope_worker.tokenizer.tokens import PromptError

STATUS_DETAILS = "grpc-status-details-bin"
_MAX_SENTENCE = 2000
"""Characters of a sentence; it travels in headers, which are limited to 8 KiB."""

log = logging.getLogger(__name__)


class UnknownCrosscoder(LookupError):
    """A crosscoder or version that is not in the artefact folder."""


class Overloaded(Exception):
    """Too much waits for the device, or one prompt is too much for it."""

    def __init__(self, sentence: str, retry_after_s: float | None = None) -> None:
        super().__init__(sentence)
        self.retry_after_s = retry_after_s


class TooLate(Exception):
    """The caller's deadline passed while the prompt waited."""


_CODES: dict[type[Exception], grpc.StatusCode] = {
    PromptError: grpc.StatusCode.INVALID_ARGUMENT,
    UnknownCrosscoder: grpc.StatusCode.NOT_FOUND,
    CrosscoderError: grpc.StatusCode.DATA_LOSS,
    PairError: grpc.StatusCode.FAILED_PRECONDITION,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    TooLate: grpc.StatusCode.DEADLINE_EXCEEDED,
}


def status_of(error: Exception) -> tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]]:
    """Code, sentence and trailing metadata for an exception. Anything unexpected is a bug: INTERNAL, and logged."""
    code = next((code for kind, code in _CODES.items() if isinstance(error, kind)), None)
    if code is None:
        log.error("bug", exc_info=error)
        return grpc.StatusCode.INTERNAL, f"the inference worker has a bug ({type(error).__name__}); see its log", ()
    sentence = str(error)
    sentence = sentence if len(sentence) <= _MAX_SENTENCE else f"{sentence[: _MAX_SENTENCE - 1]}…"
    if not isinstance(error, Overloaded) or error.retry_after_s is None:
        return code, sentence, ()
    number: tuple[int, str] = code.value
    retry, packed = error_details_pb2.RetryInfo(), Any()
    retry.retry_delay.FromMilliseconds(round(error.retry_after_s * 1000))
    packed.Pack(retry)
    status = status_pb2.Status(code=number[0], message=sentence, details=[packed])
    return code, sentence, ((STATUS_DETAILS, status.SerializeToString()),)
