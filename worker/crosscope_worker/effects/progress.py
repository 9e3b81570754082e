"""Orders on their way: what was read of the prompt, and the answers so far. Runs nothing."""

import functools
from dataclasses import dataclass, field

import numpy as np

from crosscope_proto.roles import LeftOut, TokenRole
from crosscope_worker.effects.answer import Answer
from crosscope_worker.effects.interventions import Steering
from crosscope_worker.effects.lane import Row
from crosscope_worker.effects.orders import ArmOrder, Event, Order, Started, Token, TokenCode


@dataclass(eq=False)
class Job:
    """An order on its way."""

    order: Order
    number: int
    """Orders are numbered as they come."""
    reasons: np.ndarray | None
    """[pos] uint8, LeftOut, by the token policy; None without a crosscoder."""
    prompts: "list[PromptRow]" = field(default_factory=list["PromptRow"])
    num_open: int = 0
    """Answers that have not ended."""
    has_started: bool = False
    lost: list[Event] = field(default_factory=list[Event])
    """Ends of arms for which there was no memory before the order started."""

    @functools.cached_property
    def role(self) -> TokenRole:
        """The role of new tokens: the assistant's, or what the prompt's last token is where the prompt breaks off."""
        last = TokenRole(int(self.order.roles[-1]))
        if last in (TokenRole.HEADER, TokenRole.TURN_END):
            return TokenRole.ASSISTANT
        return TokenRole.TEXT if last in (TokenRole.BOS, TokenRole.PAD) else last


@dataclass(eq=False)
class PromptRow(Row):
    """A prompt as one model reads it for some arms of an order."""

    job: Job
    model: int
    arms: dict[int, Steering | None] = field(default_factory=dict[int, Steering | None])
    """The arms that go on from it, and what changes their answers."""
    counts: np.ndarray = field(default_factory=lambda: np.zeros(2, np.int64))
    """Tokens changed and tokens left alone."""
    outlying: list[np.ndarray] = field(default_factory=list[np.ndarray])
    """[pos] bool, in pieces."""
    codes: list[TokenCode] = field(default_factory=list[TokenCode])
    """In the same pieces."""

    @property
    def needs_other(self) -> bool:
        """Whether the other model reads it too, now or in an answer."""
        return self.with_code or any(each is not None and each.needs_code for each in self.arms.values())

    def samples(self, end_ids: frozenset[int], room: int) -> "list[SampleRow]":
        """The answers that go on from the prompt; the models can read `room - 1` tokens of them."""
        order = self.job.order
        found: list[SampleRow] = []
        for arm, steering in self.arms.items():
            settings = order.arms[arm].sampling
            for sample in range(settings.num_samples):
                answer = Answer(order.tokenizer, end_ids, settings.stop, settings.max_new_tokens, room)
                found.append(
                    SampleRow(steering, order.with_code, self.length, self.job, arm, sample, answer, self.counts.copy())
                )
        return found

    def started(self) -> Started:
        """The event that tells that the prompt was read."""
        reasons = self.job.reasons
        if reasons is not None and self.outlying:
            reasons = reasons.copy()
            reasons[(reasons == LeftOut.KEPT) & np.concatenate(self.outlying)] = LeftOut.NORM
        return Started(self.job.order, reasons, TokenCode.joined(self.codes) if self.with_code else None)


@dataclass(eq=False)
class SampleRow(Row):
    """One answer."""

    job: Job
    arm: int
    sample: int
    answer: Answer
    counts: np.ndarray
    """Tokens changed and tokens left alone."""
    next_id: int = 0
    """The token that was drawn and not yet read."""
    held: Token | None = None
    """Its event, which waits for its code."""

    @property
    def ordered(self) -> ArmOrder:
        """The arm as it was ordered."""
        return self.job.order.arms[self.arm]
