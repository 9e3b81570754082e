"""Converts messages about generations to orders, and what comes of an order to messages. Knows nothing about calls."""

from collections.abc import Sequence

from crosscope_proto.roles import BASE, CHAT
from crosscope_proto.v1 import effects_pb2, types_pb2
from crosscope_worker.effects.interventions import (
    Action,
    DecoderRow,
    Intervention,
    InterventionError,
    Reach,
    check_intervention,
    check_once,
)
from crosscope_worker.effects.orders import (
    ArmOrder,
    Ended,
    EndReason,
    Event,
    Order,
    SamplingSettings,
    Started,
    Token,
    TokenCode,
)
from crosscope_worker.serve.encoding import PromptCode
from crosscope_worker.serve.errors import FieldError
from crosscope_worker.serve.loading import Loaded
from crosscope_worker.tokenizer.tokens import TokenisedText

MODELS = {effects_pb2.MODEL_UNSPECIFIED: CHAT, effects_pb2.MODEL_BASE: BASE, effects_pb2.MODEL_CHAT: CHAT}
_ACTIONS = {
    effects_pb2.ACTION_ADD: Action.ADD,
    effects_pb2.ACTION_SCALE: Action.SCALE,
    effects_pb2.ACTION_SET: Action.SET,
    effects_pb2.ACTION_ABLATE: Action.ABLATE,
    effects_pb2.ACTION_TRANSPLANT: Action.TRANSPLANT,
    effects_pb2.ACTION_SWAP_STREAM: Action.SWAP_STREAM,
}
_ROWS = {
    effects_pb2.DECODER_ROW_UNSPECIFIED: DecoderRow.OWN,
    effects_pb2.DECODER_ROW_OWN: DecoderRow.OWN,
    effects_pb2.DECODER_ROW_OTHER: DecoderRow.OTHER,
    effects_pb2.DECODER_ROW_DIFFERENCE: DecoderRow.DIFFERENCE,
}
_REACHES = {
    effects_pb2.REACH_UNSPECIFIED: Reach.ALL,
    effects_pb2.REACH_PROMPT: Reach.PROMPT,
    effects_pb2.REACH_GENERATED: Reach.GENERATED,
}
_REASONS = {
    EndReason.TURN_END: effects_pb2.END_REASON_TURN_END,
    EndReason.STOP: effects_pb2.END_REASON_STOP,
    EndReason.LENGTH: effects_pb2.END_REASON_LENGTH,
    EndReason.CONTEXT: effects_pb2.END_REASON_CONTEXT,
    EndReason.OUT_OF_MEMORY: effects_pb2.END_REASON_OUT_OF_MEMORY,
}
_DEFAULTS = SamplingSettings()


def order(request: effects_pb2.GenerateRequest, loaded: Loaded, text: TokenisedText) -> Order:
    """What is ordered for a prompt.

    Raises FieldError, which names the arm and the intervention, for what the crosscoder or the prompt does not allow.
    """
    arms = tuple(_arm(index, arm, loaded, len(text.ids)) for index, arm in enumerate(request.arms))
    if request.with_code and loaded.subject.reading is None:
        raise FieldError("with_code", "needs a crosscoder, but a pair alone is asked; name a crosscoder")
    return Order(text.ids, text.roles, arms, loaded.tokenizer, request.with_code)


def messages_of(
    events: Sequence[Event], tokens: types_pb2.Tokens, version_id: str
) -> list[effects_pb2.GenerateResponse]:
    """The messages about the events of one step, in their order. A sample has one token a message at most.

    `tokens` and `version_id` are those of the prompt, for its start.
    """
    found: list[effects_pb2.GenerateResponse] = []
    said: set[tuple[int, int]] = set()
    for event in events:
        match event:
            case Started():
                found.append(effects_pb2.GenerateResponse(start=_start(event, tokens, version_id)))
            case Token():
                place = event.arm, event.sample
                if not found or not found[-1].HasField("step") or place in said:
                    found.append(effects_pb2.GenerateResponse(step=effects_pb2.GenerationStep()))
                    said = set()
                said.add(place)
                found[-1].step.tokens.append(_new_token(event))
            case Ended():
                found.append(effects_pb2.GenerateResponse(end=_end(event)))
    return found


def code_message(code: TokenCode | PromptCode) -> types_pb2.SparseCode:
    """The message of a code."""
    columns = (code.row_starts, "<u4"), (code.latents, "<u4"), (code.activations, "<f4")
    parts = [_packed(number, values.astype(kind).tobytes()) for number, (values, kind) in enumerate(columns, 1)]
    return types_pb2.SparseCode.FromString(b"".join(parts))


def _packed(number: int, values: bytes) -> bytes:
    """A repeated field of four-byte numbers as protobuf writes it: its memory behind number and length.

    A code has a thousand numbers and more; handed over one by one they take five times as long.
    """
    length, size = bytearray(), len(values)
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes((number << 3 | 2, *length, size)) + values


def _arm(index: int, arm: effects_pb2.Arm, loaded: Loaded, num_tokens: int) -> ArmOrder:
    model, sampling = MODELS[arm.model], _sampling(arm.sampling)
    interventions = tuple(_intervention(each) for each in arm.interventions)
    reading = loaded.subject.reading
    if interventions and reading is None:
        sentence = "change latents of a crosscoder, but a pair alone is asked; name a crosscoder"
        raise FieldError(f"arms[{index}].interventions", sentence)
    for place, each in enumerate(interventions):
        field = f"arms[{index}].interventions[{place}]"
        _check_positions(field, each, num_tokens, sampling.max_new_tokens)
        try:
            assert reading is not None
            check_intervention(each, reading.crosscoder, reading.maxima, model)
        except InterventionError as error:
            raise FieldError(field, str(error)) from error
    try:
        check_once(interventions)
    except InterventionError as error:
        raise FieldError(f"arms[{index}].interventions", str(error)) from error
    return ArmOrder(model, interventions, sampling)


def _check_positions(field: str, each: Intervention, num_tokens: int, max_new_tokens: int) -> None:
    """Raises FieldError for a position that no token can have, or that is in the other part of the text."""
    first = num_tokens if each.reach is Reach.GENERATED else 0
    end = num_tokens if each.reach is Reach.PROMPT else num_tokens + max_new_tokens
    if outside := sorted(position for position in each.positions if not first <= position < end):
        raise FieldError(
            f"{field}.positions",
            f"there is no token {outside[0]} to change: the prompt has {num_tokens} tokens, at most {max_new_tokens} "
            f"are generated, and this intervention reaches {first} to {end - 1}",
        )


def _intervention(message: effects_pb2.Intervention) -> Intervention:
    return Intervention(
        latents=tuple(message.latents),
        action=_ACTIONS[message.action],
        amount=message.amount,
        row=_ROWS[message.row],
        reach=_REACHES[message.reach],
        roles=frozenset(int(role) for role in message.roles),
        positions=frozenset(message.positions),
        include_left_out=message.include_left_out,
    )


def _sampling(message: effects_pb2.Sampling) -> SamplingSettings:
    return SamplingSettings(
        temperature=message.temperature,
        top_p=message.top_p if message.HasField("top_p") else None,
        seed=message.seed,
        max_new_tokens=message.max_new_tokens if message.HasField("max_new_tokens") else _DEFAULTS.max_new_tokens,
        stop=tuple(message.stop),
        num_samples=message.num_samples if message.HasField("num_samples") else _DEFAULTS.num_samples,
    )


def _start(event: Started, tokens: types_pb2.Tokens, version_id: str) -> effects_pb2.GenerationStart:
    start = effects_pb2.GenerationStart(tokens=tokens, version_id=version_id)
    if event.left_out is not None:
        start.tokens.left_out.extend(event.left_out.tolist())
    if event.code is not None:
        start.code.CopyFrom(code_message(event.code))
    return start


def _new_token(event: Token) -> effects_pb2.NewToken:
    code = event.code
    return effects_pb2.NewToken(
        arm=event.arm,
        sample=event.sample,
        id=event.id,
        piece=event.piece,
        log_probability=event.log_probability,
        role=int(event.role),  # pyright: ignore[reportArgumentType]
        latents=[] if code is None else code.latents.tolist(),
        activations=[] if code is None else code.activations.tolist(),
        left_out=event.left_out,  # pyright: ignore[reportArgumentType]
    )


def _end(event: Ended) -> effects_pb2.GenerationEnd:
    return effects_pb2.GenerationEnd(
        arm=event.arm,
        sample=event.sample,
        reason=_REASONS[event.reason],
        text=event.text,
        num_tokens=event.num_tokens,
        num_changed=event.num_changed,
        num_left_out=event.num_left_out,
    )
