"""Converts the messages of the effects' calls to and from what the device is asked. Knows nothing about calls."""

import numpy as np

from crosscope_proto.roles import BASE, CHAT
from crosscope_proto.v1 import effects_pb2
from crosscope_worker.effects.attribute import Attribution, Question
from crosscope_worker.effects.compare import Comparison, Predictions
from crosscope_worker.effects.subject import Reading
from crosscope_worker.serve.orders import MODELS
from crosscope_worker.tokenizer.pieces import lone_pieces
from crosscope_worker.tokenizer.tokens import TextTokenizer

_DEFAULT_TOP_N, _DEFAULT_NUM_EXACT, _DEFAULT_LIMIT = 5, 32, 100


def top_n(request: effects_pb2.CompareRequest) -> int:
    """Next tokens that a comparison lists a token."""
    return request.top_n if request.HasField("top_n") else _DEFAULT_TOP_N


def comparison(found: Comparison, tokenizer: TextTokenizer) -> effects_pb2.CompareResponse:
    """The reply with a comparison; tokens, version and time are the caller's."""
    ids = np.union1d(found.base.top_ids, found.chat.top_ids)
    return effects_pb2.CompareResponse(
        kl_chat_base=found.kl_chat_base.tolist(),
        kl_base_chat=found.kl_base_chat.tolist(),
        base=_predictions(found.base),
        chat=_predictions(found.chat),
        top_n=found.chat.top_ids.shape[1],
        pieces=dict(zip(ids.tolist(), lone_pieces(tokenizer, ids), strict=True)),
        difference_norms=found.difference_norms.tolist(),
        cosines=found.cosines.tolist(),
    )


def attribution_question(request: effects_pb2.AttributeRequest, tokenizer: TextTokenizer) -> Question:
    """What is to be explained. Raises PromptError for a continuation without tokens."""
    continuations = None
    if request.HasField("continuations"):
        first, second = request.continuations.first, request.continuations.second
        continuations = tokenizer.continuation(first), tokenizer.continuation(second)
    return Question(
        model=MODELS[request.model],
        tokens=tuple(request.tokens),
        continuations=continuations,
        num_exact=request.num_exact if request.HasField("num_exact") else _DEFAULT_NUM_EXACT,
        limit=request.limit if request.HasField("limit") else _DEFAULT_LIMIT,
        include_left_out=request.include_left_out,
    )


def attribution(found: Attribution) -> effects_pb2.AttributeResponse:
    """The reply with an attribution; tokens, version and time are the caller's."""
    return effects_pb2.AttributeResponse(
        explained=found.explained.tolist(),
        value=found.value,
        entries=[effects_pb2.AttributeResponse.Entry(**entry._asdict()) for entry in found.entries],
        row_starts=found.row_starts.tolist(),
        token_entries=found.token_entries.tolist(),
        token_estimates=found.token_estimates.tolist(),
        num_latents=found.num_latents,
        effect_of_all=found.effect_of_all,
        effect_of_stream=found.effect_of_stream,
        num_left_out=found.num_left_out,
    )


def outlying_norms(found: Comparison, reading: Reading) -> np.ndarray:
    """[pos] bool: the training leaves the token out because of its norm."""
    outlying = np.zeros(len(found.kl_chat_base), bool)
    if (bounds := reading.bounds) is not None:
        outlying |= np.isin(np.arange(len(outlying)), bounds.positions)
        outlying |= (found.base.norms > bounds.limits[BASE]) | (found.chat.norms > bounds.limits[CHAT])
    return outlying


def _predictions(found: Predictions) -> effects_pb2.ModelPredictions:
    return effects_pb2.ModelPredictions(
        log_probabilities=found.log_probabilities.tolist(),
        ranks=found.ranks.tolist(),
        entropies=found.entropies.tolist(),
        top_ids=found.top_ids.ravel().tolist(),
        top_log_probabilities=found.top_log_probabilities.ravel().tolist(),
        norms=found.norms.tolist(),
        error_norms=found.error_norms.tolist(),
    )
