"""Reads prompts of one model in pieces, several short ones side by side. Does not know what follows."""

from collections import deque
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from crosscope_proto.roles import LeftOut
from crosscope_worker.dictionary.sparse import SparseCode
from crosscope_worker.dictionary.strongest import by_strength
from crosscope_worker.effects.changing import Chunk
from crosscope_worker.effects.lane import Lane
from crosscope_worker.effects.orders import TokenCode
from crosscope_worker.effects.progress import PromptRow
from crosscope_worker.effects.subject import Reading, Subject


class Prefill:
    """Some prompts of one model while they are read."""

    def __init__(self, subject: Subject, prompts: list[PromptRow]) -> None:
        self._reading = subject.reading
        self.model = prompts[0].model
        self.lane: Lane[PromptRow] = Lane(subject, self.model)
        self.lane.add_empty(prompts)
        self._width = max(len(prompt.job.order.ids) for prompt in prompts)
        self._done = 0
        self.logits: Tensor | None = None
        """[prompt, vocabulary] behind the last tokens, once all are read; in the order of the lane's rows."""

    @property
    def prompts(self) -> list[PromptRow]:
        """The prompts, in the order of the lane."""
        return self.lane.rows

    def remove(self, prompt: PromptRow) -> None:
        """Forgets a prompt."""
        place = next((place for place, each in enumerate(self.prompts) if each is prompt), None)
        if place is None:
            return
        if self.logits is not None:
            self.logits[place] = self.logits[-1].clone()
            self.logits = self.logits[:-1]
        self.lane.remove(prompt)

    def read(self, num_tokens: int) -> None:
        """Reads the next piece, about `num_tokens` in all. Changes nothing if memory runs out."""
        end = min(self._width, self._done + max(1, num_tokens // len(self.prompts)))
        chunk = self._chunk(self._done, end)
        try:
            outcome = self.lane.read(chunk)
            entries = None if outcome.code is None else Entries.of(outcome.code, self._reading)
        except BaseException:
            self.lane.roll_back()
            raise
        self.lane.commit(chunk)
        self._done = end
        for place, prompt in enumerate(self.prompts):
            inside = chunk.positions[place] >= 0
            if outcome.counts is not None:
                prompt.counts += outcome.counts[place]
            if outcome.outlying is not None:
                prompt.outlying.append(outcome.outlying[place][inside])
            if entries is not None and prompt.with_code:
                last = (place + 1) * len(inside)
                prompt.codes.append(entries.cut(last - int(inside.sum()), last))
        if end == self._width:
            self.logits = outcome.logits

    def _chunk(self, start: int, end: int) -> Chunk:
        shape = len(self.prompts), end - start
        ids, positions = np.zeros(shape, np.int64), np.full(shape, -1, np.int64)
        roles, left_out = np.zeros(shape, np.uint8), np.zeros(shape, bool)
        for place, prompt in enumerate(self.prompts):
            order, reasons = prompt.job.order, prompt.job.reasons
            padding = self._width - len(order.ids)
            first, last = max(0, start - padding), end - padding
            if last <= 0:
                continue
            inside = slice(shape[1] - (last - first), shape[1])
            ids[place, inside], positions[place, inside] = order.ids[first:last], np.arange(first, last)
            roles[place, inside] = order.roles[first:last]
            if reasons is not None:
                left_out[place, inside] = reasons[first:last] != LeftOut.KEPT
        return Chunk(ids, positions, roles, left_out, is_generated=False)


@dataclass(frozen=True, eq=False)
class Entries:
    """Entries of a code by token, strongest first."""

    tokens: np.ndarray
    latents: np.ndarray
    activations: np.ndarray

    @classmethod
    def of(cls, code: SparseCode, reading: Reading | None) -> "Entries":
        """Those of a code that a lane has read."""
        assert reading is not None
        return cls(*by_strength(code, reading.sparsifier))

    def cut(self, start: int, end: int) -> TokenCode:
        """A copy of the code of the tokens from `start` to `end`: whoever keeps it keeps no others."""
        starts = np.searchsorted(self.tokens, np.arange(start, end + 1))
        entries = slice(starts[0], starts[-1])
        return TokenCode(starts - starts[0], self.latents[entries].copy(), self.activations[entries].copy())


def next_prompts(waiting: "deque[PromptRow]", num_tokens: int) -> list[PromptRow]:
    """Takes the oldest prompt, and those of its model that can be read beside it in one piece of `num_tokens`."""
    chosen = [waiting.popleft()]
    longest = len(chosen[0].job.order.ids)
    passed: list[PromptRow] = []
    while waiting:
        prompt = waiting.popleft()
        width = max(longest, len(prompt.job.order.ids))
        if prompt.model == chosen[0].model and (len(chosen) + 1) * width <= num_tokens:
            chosen.append(prompt)
            longest = width
        else:
            passed.append(prompt)
    waiting.extend(passed)
    return chosen
