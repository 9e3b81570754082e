"""Results from reply messages about what both models do; `_decode` makes the others. Knows nothing about channels."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from crosscope import _decode
from crosscope._answers import Answer, NewToken
from crosscope._arms import Arm
from crosscope._attribution import AttributedLatent, Attribution
from crosscope._comparison import Comparison, ModelPredictions
from crosscope._contrast import Contrast, ContrastLatent, ContrastPlace
from crosscope._encoding import Encoding
from crosscope._errors import ServerError
from crosscope._steering import ModelName
from crosscope._types import Estimate, Tokens
from crosscope_proto.roles import LeftOut
from crosscope_proto.v1 import effects_pb2, prompts_pb2

if TYPE_CHECKING:
    import numpy as np

_REASONS = {
    effects_pb2.END_REASON_TURN_END: "turn_end",
    effects_pb2.END_REASON_STOP: "stop",
    effects_pb2.END_REASON_LENGTH: "length",
    effects_pb2.END_REASON_CONTEXT: "context",
    effects_pb2.END_REASON_OUT_OF_MEMORY: "out_of_memory",
}


def _floats(values: Any) -> "np.ndarray":
    import numpy as np  # here, as in _decode: it takes a third of the package's import

    return np.asarray(values, np.float32)


def comparison(message: effects_pb2.CompareResponse, source: str) -> Comparison:
    """Both models' predictions at every token. Raises ServerError for a reply whose lists have unequal lengths."""
    num_tokens, top_n = len(message.tokens.ids), message.top_n
    lists = [message.kl_chat_base, message.kl_base_chat]
    for model in (message.base, message.chat):
        lists += [model.log_probabilities, model.ranks, model.entropies]
    whole = all(len(each) == num_tokens for each in lists)
    if not whole or any(len(m.top_ids) != num_tokens * top_n for m in (message.base, message.chat)):
        raise ServerError(f"the comparison of {source} has lists that do not fit its {num_tokens} tokens")
    return Comparison(
        source=source,
        version_id=message.version_id,
        tokens=_decode.tokens(message.tokens),
        kl_chat_base=_floats(message.kl_chat_base),
        kl_base_chat=_floats(message.kl_base_chat),
        base=_predictions(message.base, num_tokens, top_n),
        chat=_predictions(message.chat, num_tokens, top_n),
        difference_norms=_floats(message.difference_norms),
        cosines=_floats(message.cosines),
        pieces=dict(message.pieces),
        compute_ms=message.compute_ms,
    )


def _predictions(message: effects_pb2.ModelPredictions, num_tokens: int, top_n: int) -> ModelPredictions:
    import numpy as np

    return ModelPredictions(
        log_probabilities=_floats(message.log_probabilities),
        ranks=np.asarray(message.ranks, np.int64),
        entropies=_floats(message.entropies),
        top_ids=np.asarray(message.top_ids, np.int64).reshape(num_tokens, top_n),
        top_log_probabilities=_floats(message.top_log_probabilities).reshape(num_tokens, top_n),
        norms=_floats(message.norms),
        error_norms=_floats(message.error_norms),
    )


def attribution(
    message: effects_pb2.AttributeResponse, crosscoder: str, model: ModelName, continuations: tuple[str, str] | None
) -> Attribution:
    """The latents that carry a difference."""
    import numpy as np

    return Attribution(
        crosscoder=crosscoder,
        version_id=message.version_id,
        model=model,
        tokens=_decode.tokens(message.tokens),
        explained=tuple(message.explained),
        continuations=continuations,
        value=message.value,
        entries=tuple(map(_attributed, message.entries)),
        row_starts=np.asarray(message.row_starts, np.int64),
        token_entries=np.asarray(message.token_entries, np.int64),
        token_estimates=_floats(message.token_estimates),
        num_latents=message.num_latents,
        effect_of_all=message.effect_of_all,
        effect_of_stream=message.effect_of_stream,
        num_left_out=message.num_left_out,
        compute_ms=message.compute_ms,
    )


def _attributed(entry: effects_pb2.AttributeResponse.Entry) -> AttributedLatent:
    return AttributedLatent(
        latent=entry.latent,
        estimate=entry.estimate,
        effect=entry.effect if entry.HasField("effect") else None,
        share=entry.share if entry.HasField("share") else None,
        num_active=entry.num_active,
        peak_token=entry.peak_token,
        max=entry.max,
    )


def contrast(message: prompts_pb2.ContrastResponse, crosscoder: str) -> Contrast:
    """The latents that tell two sets of prompts apart."""
    return Contrast(
        crosscoder=crosscoder,
        version_id=message.version_id,
        places=tuple(map(_place, message.places)),
        num_first=message.num_first,
        num_second=message.num_second,
        num_repeats=message.num_repeats,
    )


def _place(message: prompts_pb2.ContrastResponse.Place) -> ContrastPlace:
    return ContrastPlace(
        place=message.place,
        entries=tuple(
            ContrastLatent(e.latent, Estimate(e.auc, e.auc_se), e.mean_first, e.mean_second, e.p_value)
            for e in message.entries
        ),
        held_out_auc=Estimate(message.held_out_auc, message.held_out_auc_se),
        shuffled_auc=message.shuffled_auc,
        num_shuffles=message.num_shuffles,
        num_latents=message.num_latents,
        num_without_token=message.num_without_token,
    )


def new_token(message: effects_pb2.NewToken) -> NewToken:
    """A new token of one answer."""
    return NewToken(
        arm=message.arm,
        sample=message.sample,
        id=message.id,
        piece=message.piece,
        log_probability=message.log_probability,
        role=_decode.role(message.role),
        latents=tuple(message.latents),
        activations=tuple(message.activations),
        left_out=_decode.left_out_by(message.left_out) if message.HasField("left_out") else None,
    )


def answer(
    arms: Sequence[Arm],
    place: tuple[int, int],
    new: Sequence[NewToken],
    end: effects_pb2.GenerationEnd | None,
    *,
    is_over: bool,
) -> Answer:
    """The answer at a `place`, arm and sample, without its code.

    One without an end was cancelled if its call is over, else it is under way.
    """
    tokens = _new_tokens(new)
    return Answer(
        arm=arms[place[0]],
        arm_index=place[0],
        sample=place[1],
        text=tokens.text if end is None else end.text,
        tokens=tokens,
        log_probabilities=_floats([token.log_probability for token in new]),
        reason=_REASONS.get(end.reason, "length") if end else "cancelled" if is_over else "under_way",
        num_changed=end.num_changed if end else 0,
        num_left_out=end.num_left_out if end else 0,
    )


def _new_tokens(new: Sequence[NewToken]) -> Tokens:
    ids, pieces = tuple(token.id for token in new), tuple(token.piece for token in new)
    reasons = tuple(token.left_out for token in new)
    is_known = any(reason is not None for reason in reasons)
    left_out = tuple(LeftOut.KEPT if reason is None else reason for reason in reasons) if is_known else ()
    return Tokens(ids, pieces, tuple(token.role for token in new), left_out)


def answer_code(crosscoder: str, start: effects_pb2.GenerationStart, new: Sequence[NewToken]) -> Encoding:
    """The code of a prompt and an answer to it. Tokens of which nobody said whether training left them out count as
    kept: the last one, and all new ones if the worker is older.
    """
    import numpy as np

    prompt, code = _decode.tokens(start.tokens), start.code
    counts = np.array([len(token.latents) for token in new], np.int64)
    row_starts = np.asarray(code.row_starts, np.int64)
    told = _new_tokens(new)
    left_out = tuple(reason for each in (prompt, told) for reason in each.left_out or (LeftOut.KEPT,) * len(each))
    ids, pieces, roles = (*prompt.ids, *told.ids), (*prompt.pieces, *told.pieces), (*prompt.roles, *told.roles)
    tokens = Tokens(ids, pieces, roles, left_out, prompt.dropped_reasoning)
    return Encoding(
        crosscoder=crosscoder,
        version_id=start.version_id,
        tokens=tokens,
        row_starts=np.concatenate([row_starts, row_starts[-1] + np.cumsum(counts)]),
        latents=np.array([*code.latents, *(each for token in new for each in token.latents)], np.int64),
        activations=_floats([*code.activations, *(value for token in new for value in token.activations)]),
        cached=False,
        compute_ms=float("nan"),
    )
