"""Continues prompts, many at once: a step reads the next token of every answer, and a piece of the prompts that wait.

A row is one answer. Arms of one prompt that change it alike share one reading of it. Runs on the device's thread,
synchronously; knows no requests and no clock.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from crosscope_proto.roles import BASE, CHAT, LeftOut, TokenRole
from crosscope_worker.effects.changing import Chunk
from crosscope_worker.effects.interventions import Intervention, InterventionError, Reach, Steering
from crosscope_worker.effects.lane import Lane
from crosscope_worker.effects.orders import (
    ArmOrder,
    DoesNotFit,
    Ended,
    EndReason,
    Event,
    Order,
    Token,
    in_order,
)
from crosscope_worker.effects.prefill import Entries, Prefill, next_prompts
from crosscope_worker.effects.progress import Job, PromptRow, SampleRow
from crosscope_worker.effects.sampling import draw
from crosscope_worker.effects.subject import Subject
from crosscope_worker.effects.trial import TokenBytes, bytes_per_token
from crosscope_worker.models.probes import long_text_limits
from crosscope_worker.tokenizer.token_policy import policy_reasons
from crosscope_worker.tokenizer.tokens import TextTokenizer
from crosscope_worker.work import is_out_of_memory

_NO_LIMIT = 1 << 62
_WIDE = 512
"""Width of a model from which a product with its weights is shared among threads even for one token."""
_MIN_PARALLEL_ELEMENTS = 1 << 15
"""Tokens times width from which more than one CPU thread pays in a narrower one."""


class Decoder:
    """Continues prompts with the models of one subject. Not thread-safe."""

    def __init__(
        self,
        subject: Subject,
        cache_bytes: int,
        prefill_tokens: int,
        max_tokens: int | None = None,
        token_bytes: TokenBytes | None = None,
    ) -> None:
        """Plans for at most `cache_bytes` of keys and values, and reads about `prefill_tokens` of prompts in a step.

        A text has at most `max_tokens` tokens, and no more than the models can read. `token_bytes` are those of another
        decoder of the subject; without them the models are tried. Raises PairError for a model that cannot read a text
        in pieces.
        """
        self._subject = subject
        self._cache_bytes = cache_bytes
        self._prefill_tokens = prefill_tokens
        pair = subject.pair
        changes = (limit for model in pair.models for limit in long_text_limits(model))
        limits = (max_tokens, pair.max_positions, *changes)
        self._max_tokens = min((limit for limit in limits if limit is not None), default=_NO_LIMIT)
        self.token_bytes = token_bytes or (bytes_per_token(subject, BASE), bytes_per_token(subject, CHAT))
        self._lanes: list[Lane[SampleRow]] = [Lane(subject, model) for model in (BASE, CHAT)]
        self._waiting: deque[Job] = deque()
        self._prompts: deque[PromptRow] = deque()
        """Prompts that have room and that nobody reads yet."""
        self._prefill: Prefill | None = None
        self._jobs: dict[int, Job] = {}
        """Orders that have room, by the identity of the order."""
        self._next_number = 0
        self._num_skipped = 0 if subject.reading is None else subject.reading.policy.skip_first
        self._steerings: WeakValueDictionary[tuple[int, tuple[Intervention, ...]], Steering] = WeakValueDictionary()

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._jobs and not self._waiting

    @property
    def num_rows(self) -> int:
        """Answers that are being decoded."""
        return sum(len(lane.rows) for lane in self._lanes)

    def num_threads(self, at_most: int) -> int:
        """CPU threads with which the next step is fastest: one where a step is less than torch's own grain of work."""
        width = max(self._subject.pair.d_model)
        num_tokens = self.num_rows + (self._prefill_tokens if self._prompts or self._prefill else 0)
        return 1 if width < _WIDE and num_tokens * width < _MIN_PARALLEL_ELEMENTS else at_most

    @property
    def planned_bytes(self) -> int:
        """Bytes of keys and values for which the orders in progress have room."""
        return self._planned_bytes(list(self._jobs.values()))

    @property
    def waits_since(self) -> int | None:
        """Number of the oldest order that waits for room; None if none does."""
        return self._waiting[0].number if self._waiting else None

    def admit(self, order: Order, number: int | None = None) -> None:
        """Takes an order; it starts when its keys and values have room, after those before it.

        `number` tells its age among the orders of several decoders; by default the next one of this decoder.
        Raises InterventionError, and DoesNotFit for one that could never start.
        """
        reading = self._subject.reading
        if reading is None and (order.with_code or any(arm.interventions for arm in order.arms)):
            raise InterventionError("a code or an intervention needs a crosscoder; name one, or leave them out")
        if len(order.ids) > self._max_tokens:
            raise DoesNotFit(
                f"the prompt has {len(order.ids)} tokens, but a text may have {self._max_tokens} here; shorten it"
            )
        number = self._next_number if number is None else number
        job = Job(order, number, None if reading is None else policy_reasons(order.roles, reading.policy))
        job.prompts = self._readings(job)
        job.num_open = sum(arm.sampling.num_samples for arm in order.arms)
        if (needed := self._planned_bytes([job])) > self._cache_bytes:
            raise DoesNotFit(
                f"{job.num_open} answers of up to {self._longest(job)} tokens, prompt included, need {needed} bytes of "
                f"keys and values, but this worker has {self._cache_bytes}; ask for fewer samples or tokens"
            )
        self._next_number = number + 1
        self._waiting.append(job)

    @torch.inference_mode()
    def drop(self, order: Order) -> None:
        """Frees the places of an order at once. Does nothing for one that has ended."""
        self._waiting = deque(job for job in self._waiting if job.order is not order)
        job = self._jobs.pop(id(order), None)
        if job is None:
            return
        for lane in self._lanes:
            for row in [row for row in lane.rows if row.job is job]:
                lane.remove(row)
        for prompt in job.prompts:
            self._forget(prompt)

    @torch.inference_mode()
    def step(self, elsewhere_bytes: int = 0, before: int | None = None) -> list[Event]:
        """One more token of every answer, and a piece of the prompts. Returns what came of it, order by order.

        `elsewhere_bytes` of the room for keys and values belong to others at present. Only orders with a number below
        `before` may start: an older one waits elsewhere for the same room.
        Where memory runs out, the newest answers end and the others go on with the next step.
        """
        self._let_in(elsewhere_bytes, before)
        events: list[Event] = []
        for lane in self._lanes:
            if lane.rows:
                events += self._decode(lane)
        if self._prefill is not None or self._prompts:
            events += self._read_prompts()
        by_order: dict[int, list[Event]] = {}
        for event in events:
            by_order.setdefault(id(event.order), []).append(event)
        return [event for some in by_order.values() for event in in_order(some)]

    def _readings(self, job: Job) -> list[PromptRow]:
        """The readings of the prompt that the arms of an order need."""
        found: dict[tuple[int, tuple[Intervention, ...]], PromptRow] = {}
        for index, arm in enumerate(job.order.arms):
            steering = self._steering(arm)
            here = arm.model, tuple(each for each in arm.interventions if each.reach is not Reach.GENERATED)
            if here not in found:
                found[here] = PromptRow(steering if here[1] else None, job.order.with_code, 0, job, arm.model)
            found[here].arms[index] = steering
        return list(found.values())

    def _steering(self, arm: ArmOrder) -> Steering | None:
        """What changes an arm. Equal arms, of whatever callers, have the same one and are changed together."""
        reading, key = self._subject.reading, (arm.model, arm.interventions)
        if reading is None or not arm.interventions:
            return None
        steering = self._steerings.get(key)
        if steering is None:
            steering = Steering(reading.crosscoder, reading.maxima, *key, reading.sparsifier)
            self._steerings[key] = steering
        return steering

    def _longest(self, job: Job) -> int:
        """Tokens of the longest text that an order may become."""
        most = len(job.order.ids) + max(arm.sampling.max_new_tokens for arm in job.order.arms)
        return min(most, self._max_tokens)

    def _planned_bytes(self, jobs: Sequence[Job]) -> int:
        """Bytes of keys and values that orders take when all answers are as long as they may be; all rows are as wide
        as the longest.
        """
        per_token = 0
        for job in jobs:
            for prompt in job.prompts:
                num_rows = 1 + sum(job.order.arms[arm].sampling.num_samples for arm in prompt.arms)
                below = self.token_bytes[1 - prompt.model][1] if prompt.needs_other else 0
                per_token += num_rows * (self.token_bytes[prompt.model][0] + below)
        return per_token * max((self._longest(job) for job in jobs), default=0)

    def _let_in(self, elsewhere_bytes: int, before: int | None) -> None:
        """Gives room to orders that wait, in their order."""
        while self._waiting and (before is None or self._waiting[0].number < before):
            if self._planned_bytes([*self._jobs.values(), self._waiting[0]]) + elsewhere_bytes > self._cache_bytes:
                return
            job = self._waiting.popleft()
            self._jobs[id(job.order)] = job
            self._prompts.extend(job.prompts)

    def _decode(self, lane: Lane[SampleRow]) -> list[Event]:
        """One more token of every row of a lane."""
        rows = list(lane.rows)
        chunk = Chunk(
            np.array([[row.next_id] for row in rows], np.int64),
            np.array([[row.length] for row in rows], np.int64),
            np.array([[row.job.role] for row in rows], np.uint8),
            np.array([[row.length < self._num_skipped] for row in rows]),
            is_generated=True,
        )
        try:
            lane.trim()
            outcome = lane.read(chunk)
            entries = None if outcome.code is None else Entries.of(outcome.code, self._subject.reading)
            drawn = _drawn(outcome.logits, rows)
        except Exception as error:
            lane.roll_back()
            if not is_out_of_memory(error):
                raise
            newest = max((row.job.number, row.arm) for row in rows)
            return self._out_of_memory(lane, [row for row in rows if (row.job.number, row.arm) == newest])
        lane.commit(chunk)
        events: list[Event] = []
        for place, (row, id_, log_probability) in enumerate(zip(rows, *drawn, strict=True)):
            if outcome.counts is not None:
                row.counts += outcome.counts[place]
            if row.held is not None and entries is not None:
                outlying = outcome.outlying is not None and outcome.outlying[place, 0]
                by_norm = LeftOut.NORM if outlying else LeftOut.KEPT
                left_out = LeftOut.FIRST if chunk.left_out[place, 0] else by_norm
                events.append(replace(row.held, code=entries.cut(place, place + 1), left_out=left_out))
                row.held = None
            events += self._take(lane, row, id_, log_probability)
        return events

    def _take(self, lane: Lane[SampleRow], row: SampleRow, id_: int, log_probability: float) -> list[Event]:
        """Gives a row its next token; an answer that ends frees its place."""
        order = row.job.order
        piece, reason = row.answer.take(id_)
        role = TokenRole.TURN_END if reason is EndReason.TURN_END else row.job.role
        token = Token(order, row.arm, row.sample, id_, piece, log_probability, role, None)
        if reason is not None:
            lane.remove(row)
            return [token, self._ended(row, reason)]
        row.next_id = id_
        if order.with_code:
            row.held = token
            return []
        return [token]

    def _ended(self, row: SampleRow, reason: EndReason) -> Ended:
        job, answer = row.job, row.answer
        job.num_open -= 1
        if not job.num_open:
            del self._jobs[id(job.order)]
        num_changed, num_left_out = row.counts.tolist()
        return Ended(job.order, row.arm, row.sample, reason, answer.text, answer.num_tokens, num_changed, num_left_out)

    def _out_of_memory(self, lane: Lane[SampleRow], rows: Sequence[SampleRow]) -> list[Event]:
        events: list[Event] = []
        for row in rows:
            lane.remove(row)
            if row.held is not None:
                events.append(row.held)
            events.append(self._ended(row, EndReason.OUT_OF_MEMORY))
        return events

    def _read_prompts(self) -> list[Event]:
        """Reads a piece of the prompts at hand; those that are through go on as answers."""
        if self._prefill is None:
            self._prefill = Prefill(self._subject, next_prompts(self._prompts, self._prefill_tokens))
        prefill = self._prefill
        lane = self._lanes[prefill.model]
        try:
            if prefill.logits is None:
                prefill.read(self._prefill_tokens)
            if prefill.logits is None:
                return []
            pairs = [(row, prompt) for prompt in prefill.prompts for row in self._samples(prompt)]
            rows = [row for row, _ in pairs]
            places = {id(prompt): place for place, prompt in enumerate(prefill.prompts)}
            drawn = _drawn(prefill.logits[[places[id(prompt)] for _, prompt in pairs]], rows)
            lane.append(prefill.lane, rows, [prompt for _, prompt in pairs])
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return self._end_newest_arm(prefill)
        self._prefill = None
        events: list[Event] = []
        for prompt in prefill.prompts:
            if not prompt.job.has_started:
                prompt.job.has_started = True
                events += [prompt.started(), *prompt.job.lost]
        for row, id_, log_probability in zip(rows, *drawn, strict=True):
            events += self._take(lane, row, id_, log_probability)
        return events

    def _samples(self, prompt: PromptRow) -> list[SampleRow]:
        order = prompt.job.order
        ends = end_ids(self._subject.pair.models[prompt.model], order.tokenizer)
        return prompt.samples(ends, max(1, self._max_tokens - len(order.ids) + 1))

    def _end_newest_arm(self, prefill: Prefill) -> list[Event]:
        """Ends the newest arm of the prompts that are being read, for which there was no memory.

        The ends wait for the start of their order, unless no arm is left that could start.
        """
        prompt = max(prefill.prompts, key=lambda each: (each.job.number, max(each.arms)))
        arm = max(prompt.arms)
        job, rows = prompt.job, [row for row in self._samples(prompt) if row.arm == arm]
        del prompt.arms[arm]
        if not prompt.arms:
            self._forget(prompt)
        ends: list[Event] = [self._ended(row, EndReason.OUT_OF_MEMORY) for row in rows]
        if job.has_started:
            return ends
        job.lost += ends
        return [] if job.num_open else job.lost

    def _forget(self, prompt: PromptRow) -> None:
        if prompt in self._prompts:
            self._prompts.remove(prompt)
        if self._prefill is not None:
            self._prefill.remove(prompt)
            if not self._prefill.prompts:
                self._prefill = None


def end_ids(model: PreTrainedModel, tokenizer: TextTokenizer) -> frozenset[int]:
    """Tokens that end an answer: the model's own, and what the chat template prints at the end of a turn."""
    found = set(tokenizer.turn_end_ids)
    for config in (model.generation_config, model.config.get_text_config()):
        ids = getattr(config, "eos_token_id", None)
        found |= set(ids if isinstance(ids, list) else [] if ids is None else [ids])
    return frozenset(found)


def _drawn(logits: Tensor, rows: Sequence[SampleRow]) -> tuple[list[int], list[float]]:
    settings = [row.ordered.sampling for row in rows]
    return draw(logits, settings, [row.sample for row in rows], [row.answer.num_tokens for row in rows])
