"""The batches of a training: parts of all streams of texts, in the order of streams; the same on every rank.

A stream has activations and a shuffle buffer of its own, and lies on one rank. A batch takes equal parts of all streams
that still hold tokens, so batches depend on the number of streams alone. Knows nothing about models or weights.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from itertools import chain
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from crosscope_proto.specs import TrainingSpec
from crosscope_worker.data.activation_source import ActivationSource
from crosscope_worker.ranks import Ranks, parts
from crosscope_worker.training.buffer import ShuffleBuffer
from crosscope_worker.training.checkpoint import StreamState
from crosscope_worker.work import Stopped


class Standing(NamedTuple):
    """How far one stream is."""

    held: float
    """Tokens that its buffer holds: a whole number."""
    waiting: float
    """Tokens that were read and not yet drawn: a whole number."""
    fraction: float
    """Share of its texts that has been read."""


class Batch(NamedTuple):
    """The tokens of one step, and how far the reading is."""

    tokens: Tensor
    """[batch, both] float32"""
    read: float
    """Share of all texts that has been read, 0 to 1."""
    waiting: int
    """Tokens that were read and not trained on before this step."""


class Batches:
    """The batches of a training, drawn on every rank alike. A context: at its end all sources are closed."""

    def __init__(
        self,
        sources: Sequence[ActivationSource],
        training: TrainingSpec,
        ranks: Ranks,
        device: torch.device | str,
        width: int,
    ) -> None:
        """`sources`: of this rank's streams, which are its share of all; `width`: of their rows."""
        self._sources, self._training, self._ranks = sources, training, ranks
        self._device, self._width = device, width
        self.num_streams = round(sum(row[0] for row in ranks.table([len(sources)])))
        self._own = range(self.num_streams)[ranks.share(self.num_streams)]
        assert len(self._own) == len(sources), "a rank has its share of the streams"
        self._buffers: list[ShuffleBuffer] = []
        self._open = ExitStack()
        self.last = Batch(torch.empty(0, width), 0.0, 1)
        """The batch that was drawn last, without its tokens."""

    def __enter__(self) -> Self:
        training, number = self._training, self.num_streams
        sizes, capacities = _sizes(training.batch_size, number), _sizes(training.buffer_tokens, number)
        for stream, source in zip(self._own, self._sources, strict=True):
            seed = np.random.SeedSequence(training.seed, spawn_key=(stream,) if number > 1 else ())
            blocks = self._open.enter_context(closing(source.blocks()))
            self._buffers.append(ShuffleBuffer(blocks, capacities[stream], sizes[stream], seed))
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._open.close()

    def first(self) -> list[Tensor]:
        """Fills the buffers; what each of this rank's streams holds, [token, both]."""
        return [buffer.fill() for buffer in self._buffers]

    def sample(self, held: Sequence[Tensor]) -> Tensor:
        """As many of the first tokens of all streams as a batch has, [token, both]; `held` is from `first`."""
        sizes = _sizes(self._training.batch_size, self.num_streams)
        own = [tokens[: sizes[stream]] for stream, tokens in zip(self._own, held, strict=True) if len(tokens)]
        return self._ranks.join(self._joined(own))

    def next(self, stopping: bool = False) -> Batch | None:
        """The next batch; None at the end of all streams. Raises Stopped, on every rank, if one is `stopping`."""
        for buffer in self._buffers:
            buffer.fill()
        standing = self._standing(stopping)
        sizes = _taken(self._training.batch_size, [round(each.held) for each in standing])
        if not sum(sizes):
            return None
        own = [buffer.draw(sizes[stream]) for stream, buffer in zip(self._own, self._buffers, strict=True)]
        lengths = [sum(sizes[part]) for part in parts(self.num_streams, self._ranks.size)]
        tokens = self._ranks.join(self._joined([each for each in own if len(each)]), lengths)
        read = sum(each.fraction for each in standing) / len(standing)
        batch = Batch(tokens, read, round(sum(each.waiting for each in standing)))
        self.last = batch._replace(tokens=self.last.tokens)
        return batch

    def _standing(self, stopping: bool) -> list[Standing]:
        """How far every stream is. Raises Stopped if a rank is `stopping`."""
        own = [
            Standing(buffer.num_held, buffer.num_waiting, source.fraction())
            for buffer, source in zip(self._buffers, self._sources, strict=True)
        ]
        most = -(-self.num_streams // self._ranks.size)
        nothing = (most - len(own)) * [Standing(0, 0, 0)]
        table = self._ranks.table([stopping, *chain(*own, *nothing)])
        if any(row[0] for row in table):
            raise Stopped("the training was stopped on all devices")
        sizes = _sizes(self.num_streams, self._ranks.size)
        return [
            Standing(*row[at : at + 3]) for row, size in zip(table, sizes, strict=True) for at in range(1, 3 * size, 3)
        ]

    def _joined(self, tokens: Sequence[Tensor]) -> Tensor:
        if len(tokens) == 1:
            return tokens[0]
        return torch.cat([*tokens]) if tokens else torch.empty(0, self._width, device=self._device)

    def states(self) -> dict[int, StreamState]:
        """The state of each of this rank's streams, by its number; tensors are the buffers' own."""
        return {
            stream: StreamState(buffer.state(), source.state())
            for stream, buffer, source in zip(self._own, self._buffers, self._sources, strict=True)
        }

    def restore(self, saved: Callable[[int], StreamState]) -> None:
        """Goes on where the streams stood; `saved` gives a stream's state by its number. Before the first batch."""
        for stream, buffer, source in zip(self._own, self._buffers, self._sources, strict=True):
            state = saved(stream)
            source.restore(state.source)
            buffer.restore(state.tensors, self._device)


def _sizes(number: int, num_parts: int) -> list[int]:
    return [part.stop - part.start for part in parts(number, num_parts)]


def _taken(batch_size: int, held: Sequence[int]) -> list[int]:
    """How many tokens a batch takes of each stream, of those that it holds: equal parts of the streams with any."""
    with_any = [stream for stream, number in enumerate(held) if number]
    found = [0] * len(held)
    for stream, size in zip(with_any, _sizes(batch_size, len(with_any)) if with_any else (), strict=True):
        found[stream] = min(size, held[stream])
    return found
