"""A source that makes its blocks ahead of time, on a thread of its own: both models run while the trainer trains.

On a GPU the thread has a CUDA stream of its own. Knows neither models nor what the activations are used for.
"""

import copy
import queue
import threading
from collections.abc import Generator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crosscope_worker.data.activation_source import ActivationSource

BLOCKS_AHEAD = 2
"""Most blocks that wait for the trainer while one more is made; each takes `4 · both` bytes a token."""


@dataclass(frozen=True, eq=False)
class _Made:
    """A block and the source's state after it, or why there is no block."""

    x: Tensor | None
    state: dict[str, Any]
    fraction: float
    ready: torch.Event | None = None
    error: BaseException | None = None


class PrefetchedSource:
    """The blocks of another ActivationSource, bit for bit. Its state is that of the block given last."""

    def __init__(self, source: ActivationSource, device: torch.device) -> None:
        self._source = source
        self._device = device
        self._state = copy.deepcopy(source.state())
        self._fraction = source.fraction()

    def blocks(self) -> Generator[Tensor]:
        """See ActivationSource. Raises what the other source raises. Closing this waits for the thread to end."""
        made: queue.Queue[_Made] = queue.Queue()
        room, stopped = threading.Semaphore(BLOCKS_AHEAD + 1), threading.Event()
        thread = threading.Thread(target=self._make, args=(made, room, stopped), name="prefetch", daemon=True)
        thread.start()
        try:
            while (block := made.get()).x is not None:
                self._state, self._fraction = block.state, block.fraction
                if block.ready is not None:
                    stream = torch.cuda.current_stream(self._device)
                    stream.wait_event(block.ready)
                    block.x.record_stream(stream)
                room.release()
                yield block.x
            if block.error is not None:
                raise block.error
            self._state, self._fraction = block.state, block.fraction
        finally:
            stopped.set()
            room.release()
            thread.join()

    def _make(self, made: "queue.Queue[_Made]", room: threading.Semaphore, stopped: threading.Event) -> None:
        on_gpu = self._device.type == "cuda"
        try:
            with (
                torch.no_grad(),
                torch.cuda.stream(torch.cuda.Stream(self._device)) if on_gpu else nullcontext(),
                closing(self._source.blocks()) as blocks,
            ):
                while room.acquire() and not stopped.is_set():
                    x = next(blocks, None)
                    ready = torch.cuda.current_stream(self._device).record_event() if on_gpu else None
                    state = copy.deepcopy(self._source.state())
                    made.put(_Made(x, state, self._source.fraction(), ready))
                    if x is None:
                        return
        except BaseException as error:  # The trainer's thread raises it.
            made.put(_Made(None, {}, 0.0, error=error))

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
