"""The errors of a call, and the one mapping from exceptions to gRPC statuses. Knows nothing about services."""

import logging

import grpc
from google.protobuf.message import Message
from google.rpc import status_pb2

from crosscope_proto.rich_status import bad_request, retry_info, rich_status
from crosscope_store.errors import StoreError
from crosscope_worker.dictionary.crosscoder import CrosscoderError
from crosscope_worker.effects.attribute import QuestionError
from crosscope_worker.effects.interventions import InterventionError
from crosscope_worker.effects.orders import DoesNotFit
from crosscope_worker.models.places import PairError
from crosscope_worker.tokenizer.tokens import PromptError
from crosscope_worker.work import exhausted, is_out_of_memory

log = logging.getLogger(__name__)


class UnknownName(LookupError):
    """A crosscoder, version or pair that is not in the artefact folder."""


class ModelTooLarge(Exception):
    """A crosscoder or pair that takes more than all memory for models."""


class FieldError(ValueError):
    """A field of a request that only the worker can judge, and that must be changed."""

    def __init__(self, field: str, sentence: str) -> None:
        super().__init__(f"{field}: {sentence}")
        self.field = field
        """Path in the public request, for instance "arms[1].interventions[0]"."""
        self.sentence = sentence


class Overloaded(Exception):
    """Too many tokens wait for the device, or one prompt is too long for it."""

    def __init__(self, sentence: str, retry_after_s: float | None = None) -> None:
        super().__init__(sentence)
        self.retry_after_s = retry_after_s


class TooLate(Exception):
    """The caller's deadline passed while the prompt waited."""


_CODES: dict[type[Exception], grpc.StatusCode] = {
    PromptError: grpc.StatusCode.INVALID_ARGUMENT,
    FieldError: grpc.StatusCode.INVALID_ARGUMENT,
    InterventionError: grpc.StatusCode.INVALID_ARGUMENT,
    QuestionError: grpc.StatusCode.INVALID_ARGUMENT,
    DoesNotFit: grpc.StatusCode.INVALID_ARGUMENT,
    UnknownName: grpc.StatusCode.NOT_FOUND,
    ModelTooLarge: grpc.StatusCode.FAILED_PRECONDITION,
    CrosscoderError: grpc.StatusCode.DATA_LOSS,
    PairError: grpc.StatusCode.FAILED_PRECONDITION,
    StoreError: grpc.StatusCode.FAILED_PRECONDITION,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    TooLate: grpc.StatusCode.DEADLINE_EXCEEDED,
}


def status_of(error: Exception) -> status_pb2.Status:
    """The status that the server gets for an exception. Anything unexpected is a bug: INTERNAL, and logged."""
    code = next((code for kind, code in _CODES.items() if isinstance(error, kind)), None)
    if code is None and is_out_of_memory(error):
        sentence = f"{exhausted(error)}'s memory ran out; ask again later, for less, or with a shorter prompt"
        return rich_status(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{sentence} ({error})")
    if code is None:
        log.error("bug", exc_info=error)
        sentence = f"the inference worker has a bug ({type(error).__name__}); see its log"
        return rich_status(grpc.StatusCode.INTERNAL, sentence)
    details: list[Message] = []
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        details.append(bad_request([_violation(error)]))
    if isinstance(error, Overloaded) and error.retry_after_s is not None:
        details.append(retry_info(error.retry_after_s))
    return rich_status(code, str(error), details)


def _violation(error: Exception) -> tuple[str, str]:
    """The field of the public request that is wrong, and what is wrong with it."""
    if isinstance(error, FieldError):
        return error.field, error.sentence
    fields = {DoesNotFit: "arms", InterventionError: "model", QuestionError: "tokens"}
    return next((field for kind, field in fields.items() if isinstance(error, kind)), "prompt"), str(error)
