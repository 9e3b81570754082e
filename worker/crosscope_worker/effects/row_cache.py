"""Keys and values of rows that come and go: a cache for transformers' models. Knows no tokens.

All rows end at the same column, so a row that is shorter has padding on its left. Buffers grow by doubling, so that a
step writes its own columns and copies nothing else.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

_FIRST_COLUMNS = 64


class _Layer(CacheLayerMixin):
    """Keys and values of one layer. Windows are left to the attention mask: every column is kept."""

    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self.num_rows = 0
        self.length = 0
        self.buffers: tuple[Tensor, Tensor] | None = None
        """Keys and values, [row, head, column, width] each; rows and columns beyond those in use are free."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Makes room for the first columns."""
        self.num_rows = key_states.shape[0]
        self.buffers = _empty(key_states, self.num_rows, _columns(0)), _empty(value_states, self.num_rows, _columns(0))
        self.is_initialized = True

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        *_args: Any,
        **_kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Writes new columns; returns all of them."""
        if self.buffers is None:
            self.lazy_initialization(key_states, value_states)
        assert self.buffers is not None
        end = self.length + key_states.shape[-2]
        if end > self.buffers[0].shape[2]:
            self.buffers = self.moved(self.buffers[0].shape[0], _columns(end), 0)
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[: self.num_rows, :, self.length : end] = states
        self.length = end
        keys, values = (buffer[: self.num_rows, :, :end] for buffer in self.buffers)
        return keys, values

    def moved(self, num_rows: int, num_columns: int, shift: int) -> tuple[Tensor, Tensor]:
        """New buffers with these numbers of rows and columns, in which every column stands `shift` further right."""
        assert self.buffers is not None
        found: list[Tensor] = []
        for old in self.buffers:
            new = _empty(old, num_rows, num_columns)
            kept = old[: self.num_rows, :, max(0, -shift) : self.length]
            new[: self.num_rows, :, max(0, shift) : self.length + shift] = kept
            new[: self.num_rows, :, : max(0, shift)] = 0
            found.append(new)
        return found[0], found[1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns after a step of so many, and the first of them."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Columns in use."""
        return self.length

    def get_max_length(self) -> int:
        """No limit."""
        return -1


class RowCache(Cache):
    """Keys and values of all layers that a model has run."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=_Layer)
        self.layers: list[Any] = []
        self.length = 0
        """Columns of every row, padding included, that are kept for good."""
        self.num_rows = 0

    def commit(self) -> None:
        """Keeps the columns that a step has written."""
        self.length = self.layers[0].length if self.layers else 0
        self.num_rows = self.layers[0].num_rows if self.layers else 0

    def roll_back(self) -> None:
        """Forgets the columns that a step has written."""
        if not self.num_rows:
            self.layers, self.length = [], 0
        for layer in self.layers:
            layer.length, layer.num_rows = self.length, self.num_rows

    def bytes_per_token(self, num_layers: int | None = None) -> int:
        """Bytes that one token of one row takes in the lowest layers; None: in all."""
        buffers = [buffer for layer in self.layers[:num_layers] for buffer in layer.buffers or ()]
        return sum(buffer.shape[1] * buffer.shape[3] * buffer.element_size() for buffer in buffers)

    def append(self, other: "RowCache", rows: Sequence[int]) -> None:
        """Adds copies of some rows of another cache, in this order. Changes nothing if memory runs out."""
        num_rows, length = self.num_rows + len(rows), max(self.length, other.length)
        layers = self.layers or [_like(layer) for layer in other.layers]
        shift = length - self.length
        held = layers[0].buffers[0].shape
        if num_rows > held[0] or length > held[2] or (shift and self.num_rows):
            at_least = max(num_rows, 2 * held[0] if num_rows > held[0] and self.num_rows else num_rows)
            moved = [layer.moved(at_least, max(held[2], _columns(length)), shift) for layer in layers]
            for layer, buffers in zip(layers, moved, strict=True):
                layer.buffers = buffers
        devices = {layer.buffers[0].device for layer in other.layers}
        index = {device: torch.tensor(list(rows), device=device) for device in devices}
        start = length - other.length
        for layer, source in zip(layers, other.layers, strict=True):
            for buffer, states in zip(layer.buffers, source.buffers, strict=True):
                new = buffer[self.num_rows : num_rows, :, :length]
                new[:, :, start:] = states[index[states.device], :, : other.length]
                new[:, :, :start] = 0
        self.layers = layers
        self._set(num_rows, length)

    def truncate(self, num_rows: int) -> None:
        """Forgets the last rows."""
        self._set(num_rows, self.length)

    def remove(self, row: int) -> None:
        """Forgets a row; the last one takes its place."""
        last = self.num_rows - 1
        if row != last:
            for layer in self.layers:
                for buffer in layer.buffers:
                    buffer[row, :, : self.length] = buffer[last, :, : self.length]
        self._set(last, self.length)

    def trim(self, columns: int) -> None:
        """Forgets the first columns, which hold padding in every row. Changes nothing if memory runs out."""
        kept = self.length - columns
        moved = [layer.moved(layer.buffers[0].shape[0], _columns(kept), -columns) for layer in self.layers]
        for layer, buffers in zip(self.layers, moved, strict=True):
            layer.buffers = buffers
        self._set(self.num_rows, kept)

    def _set(self, num_rows: int, length: int) -> None:
        self.num_rows, self.length = num_rows, length
        self.roll_back()


def _like(layer: _Layer) -> _Layer:
    """An empty layer with one free row of the same shape."""
    new = _Layer()
    assert layer.buffers is not None
    new.buffers = _empty(layer.buffers[0], 1, 1), _empty(layer.buffers[1], 1, 1)
    new.is_initialized = True
    return new


def _empty(like: Tensor, num_rows: int, num_columns: int) -> Tensor:
    return like.new_empty(num_rows, like.shape[1], num_columns, like.shape[3])


def _columns(needed: int) -> int:
    columns = _FIRST_COLUMNS
    while columns < needed:
        columns *= 2
    return columns
