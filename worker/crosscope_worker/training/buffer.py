"""A bounded shuffle buffer: blocks of activations in, random batches out, every token exactly once.

It holds `capacity` tokens of `4 · both` bytes each, and the rest of one block for which there was no room yet. Knows
nothing about models: a block is a tensor. Its state can be saved and restored, so that a resumed training draws the
same batches.
"""

import json
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from crosscope_worker.transfer import sent


class ShuffleBuffer:
    """Fills from the stream, and is drawn from at random.

    Filled before each batch, it takes as many tokens from the stream as are trained on, and a token stays for `capacity
    / batch_size` steps on average. After the end of the stream the remaining tokens are drawn.
    """

    def __init__(
        self, blocks: Iterator[Tensor], capacity: int, batch_size: int, seed: int | np.random.SeedSequence
    ) -> None:
        """`blocks` yields `[token, both]` float32 on one device. `capacity` is raised to two batches if smaller."""
        self._blocks = blocks
        self._capacity = max(capacity, 2 * batch_size)
        self._generator = np.random.default_rng(seed)
        self._tokens: Tensor | None = None
        """[capacity, both], of which the first `_size` rows are held."""
        self._size = 0
        self._waiting: Tensor | None = None
        """[token, both]: the rest of the last block."""

    def fill(self) -> Tensor:
        """Fills the buffer and returns what it holds, [token, both]; for measuring before training."""
        while self._size < self._capacity:
            if self._waiting is None or len(self._waiting) == 0:
                self._waiting = next(self._blocks, None)
                if self._waiting is None:
                    break
            if self._tokens is None:
                self._tokens = self._waiting.new_empty(self._capacity, self._waiting.shape[1])
            room = self._capacity - self._size
            taken, self._waiting = self._waiting[:room], self._waiting[room:]
            self._tokens[self._size : self._size + len(taken)] = taken
            self._size += len(taken)
        return torch.empty(0, 0) if self._tokens is None else self._tokens[: self._size]

    def draw(self, number: int) -> Tensor:
        """Takes `number` tokens out, [token, both], or all that it holds if these are fewer.

        Moves tokens from the end into the rows that become free before it.
        """
        if not self._size or self._tokens is None:
            return torch.empty(0, 0)
        held = self._tokens[: self._size]
        drawn = self._generator.choice(len(held), min(number, len(held)), replace=False)
        self._size = len(held) - len(drawn)
        stays = np.ones(len(drawn), dtype=bool)
        stays[drawn[drawn >= self._size] - self._size] = False
        free, moved = drawn[drawn < self._size], self._size + np.flatnonzero(stays)
        batch = held[self._index(drawn)]
        held[self._index(free)] = held[self._index(moved)]
        return batch

    def _index(self, places: np.ndarray) -> Tensor:
        assert self._tokens is not None
        return sent(torch.from_numpy(places), self._tokens.device)

    @property
    def num_held(self) -> int:
        """Tokens from which the next batch is drawn."""
        return self._size

    @property
    def num_waiting(self) -> int:
        """Tokens that were read from the stream and not yet drawn."""
        return self._size + (0 if self._waiting is None else len(self._waiting))

    def state(self) -> dict[str, Tensor]:
        """Everything that decides the next batches, except the stream."""
        none = torch.empty(0, 0)
        generator = json.dumps(self._generator.bit_generator.state).encode()
        return {
            "tokens": none if self._tokens is None else self._tokens[: self._size],
            "waiting": none if self._waiting is None else self._waiting,
            "generator": torch.frombuffer(bytearray(generator), dtype=torch.uint8),
        }

    def restore(self, state: dict[str, Tensor], device: torch.device | str = "cpu") -> None:
        """Continues from a copy, on `device`, of a saved state; the stream must stand where it stood at that time."""
        held = state["tokens"]
        self._size, self._tokens = len(held), None
        if held.numel():
            self._tokens = held.new_empty(self._capacity, held.shape[1], device=device)
            self._tokens[: len(held)] = held
        self._waiting = state["waiting"].to(device, copy=True) if state["waiting"].numel() else None
        self._generator.bit_generator.state = json.loads(bytes(state["generator"].cpu().numpy()))
