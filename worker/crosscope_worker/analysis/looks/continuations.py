"""Greedy continuations of prompts by both models, all side by side. Does not know why the prompts were chosen."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from crosscope_proto.roles import BASE, CHAT
from crosscope_worker.effects.decoding import Decoder
from crosscope_worker.effects.orders import ArmOrder, DoesNotFit, Ended, EndReason, Order, SamplingSettings, Token
from crosscope_worker.effects.subject import Subject
from crosscope_worker.effects.trial import bytes_per_token
from crosscope_worker.models.pair import Pair
from crosscope_worker.tokenizer.tokens import TextTokenizer

CACHE_BYTES = 1 << 30
"""Bytes of keys and values of the prompts that are continued at once; one prompt may need more."""
PREFILL_TOKENS = 512


@dataclass(frozen=True)
class Answer:
    """What a model says."""

    text: str
    """Without the end of the turn."""
    ended: bool
    """Whether it ended by itself."""


@dataclass(frozen=True)
class Continued:
    """What both models say after a prompt."""

    answers: tuple[Answer, Answer] | None
    """Base first; None if a model could not."""
    reason: str = ""
    """Why not."""


def continuations(
    pair: Pair,
    tokenizer: TextTokenizer,
    prompts: Sequence[tuple[np.ndarray, np.ndarray]],
    max_new_tokens: int,
    report: Callable[[float, str], None],
) -> list[Continued]:
    """What both models say after each prompt, ids and roles `[pos]`; an answer ends as those of `Decoder` do.

    Hears of every step through `report`. Raises PairError for a model that cannot generate.
    """
    subject = Subject(pair)
    token_bytes = bytes_per_token(subject, BASE), bytes_per_token(subject, CHAT)
    longest = max((len(ids) for ids, _ in prompts), default=0) + max_new_tokens
    alone = 2 * longest * sum(whole for whole, _ in token_bytes)  # a row of the prompt, and one of its answer
    decoder = Decoder(subject, max(CACHE_BYTES, alone), PREFILL_TOKENS, token_bytes=token_bytes)
    settings = SamplingSettings(max_new_tokens=max_new_tokens)
    arms = ArmOrder(BASE, sampling=settings), ArmOrder(CHAT, sampling=settings)
    reasons: dict[int, str] = {}
    places: dict[Order, int] = {}
    for place, (ids, roles) in enumerate(prompts):
        order = Order(ids, roles, arms, tokenizer)
        try:
            decoder.admit(order)
        except DoesNotFit as error:
            reasons[place] = str(error)
        else:
            places[order] = place
    found: dict[tuple[int, int], Answer] = {}
    num_tokens = 0
    while not decoder.is_idle:
        for event in decoder.step():
            num_tokens += isinstance(event, Token)
            if isinstance(event, Ended):
                num_tokens += max_new_tokens - event.num_tokens
                if event.reason is EndReason.OUT_OF_MEMORY:
                    reasons[places[event.order]] = "the device's memory ran out"
                found[places[event.order], event.arm] = Answer(event.text, event.reason is EndReason.TURN_END)
        share = num_tokens / (2 * len(places) * max_new_tokens)
        report(share, f"{len(found)} of {2 * len(places)} answers have ended")
    return [
        Continued(None, reasons[place]) if place in reasons else Continued((found[place, 0], found[place, 1]))
        for place in range(len(prompts))
    ]
