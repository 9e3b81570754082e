"""A source that makes its blocks ahead of time, on a thread of its own: both models run while the trainer trains.

On a GPU the thread has a CUDA stream of its own. Knows neither models nor what the activations are used for.
"""

import copy
import threading
from collections.abc import Generator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crosscope_worker.data.activation_source import ActivationSource
from crosscope_worker.data.ahead import ahead

BLOCKS_AHEAD = 2
"""Most blocks that wait for the trainer while one more is made; each takes `4 · both` bytes a token."""


@dataclass(frozen=True, eq=False)
class _Made:
    """A block and the source's state after it; no block at the source's end."""

    x: Tensor | None
    state: dict[str, Any]
    fraction: float
    ready: torch.Event | None


class PrefetchedSource:
    """The blocks of another ActivationSource, bit for bit. Its state is that of the block given last."""

    def __init__(self, source: ActivationSource, device: torch.device, turn: "threading.Lock | None" = None) -> None:
        """`turn`: held while a block is made, where several sources share the models, which run one block at a time."""
        self._source, self._turn = source, turn
        self._device = device
        self._state = copy.deepcopy(source.state())
        self._fraction = source.fraction()

    def blocks(self) -> Generator[Tensor]:
        """See ActivationSource. Raises what the other source raises. Closing this waits for the thread to end."""
        with closing(ahead(self._made(), BLOCKS_AHEAD, "prefetch")) as made:
            for block in made:
                self._state, self._fraction = block.state, block.fraction
                if block.x is None:
                    return
                if block.ready is not None:
                    stream = torch.cuda.current_stream(self._device)
                    stream.wait_event(block.ready)
                    block.x.record_stream(stream)
                yield block.x

    def _made(self) -> Generator[_Made]:
        """The source's blocks and their states, all made on the thread that reads this."""
        on_gpu = self._device.type == "cuda"
        with (
            torch.no_grad(),
            torch.cuda.stream(torch.cuda.Stream(self._device)) if on_gpu else nullcontext(),
            closing(self._source.blocks()) as blocks,
        ):
            while True:
                with self._turn or nullcontext():
                    x = next(blocks, None)
                    ready = torch.cuda.current_stream(self._device).record_event() if on_gpu else None
                    if self._turn is not None and ready is not None:
                        ready.synchronize()
                yield _Made(x, copy.deepcopy(self._source.state()), self._source.fraction(), ready)
                if x is None:
                    return

    def fraction(self) -> float:
        """See ActivationSource."""
        return self._fraction

    def state(self) -> dict[str, Any]:
        """See ActivationSource."""
        return self._state

    def restore(self, state: dict[str, Any]) -> None:
        """See ActivationSource."""
        self._source.restore(state)
        self._state, self._fraction = copy.deepcopy(state), self._source.fraction()
