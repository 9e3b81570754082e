"""The errors of a call, and the one mapping from exceptions to gRPC statuses. Knows nothing about services."""

import logging

import grpc
from google.rpc import status_pb2

from crosscope_proto.rich_status import retry_info, rich_status
from crosscope_worker.dictionary.crosscoder import CrosscoderError
from crosscope_worker.models.places import PairError
from crosscope_worker.tokenizer.tokens import PromptError

log = logging.getLogger(__name__)


class UnknownCrosscoder(LookupError):
    """A crosscoder or version that is not in the artefact folder."""


class Overloaded(Exception):
    """Too many tokens wait for the device, or one prompt is too long for it."""

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


def status_of(error: Exception) -> status_pb2.Status:
    """The status that the server gets for an exception. Anything unexpected is a bug: INTERNAL, and logged."""
    code = next((code for kind, code in _CODES.items() if isinstance(error, kind)), None)
    if code is None:
        log.error("bug", exc_info=error)
        sentence = f"the inference worker has a bug ({type(error).__name__}); see its log"
        return rich_status(grpc.StatusCode.INTERNAL, sentence)
    retry_after_s = error.retry_after_s if isinstance(error, Overloaded) else None
    return rich_status(code, str(error), [] if retry_after_s is None else [retry_info(retry_after_s)])
