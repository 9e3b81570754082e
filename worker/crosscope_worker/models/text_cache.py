"""Keys and values of one text, which later runs of its end share: a cache for transformers' models.

The first run reads the text whole and keeps them. A later run reads the tokens from some token on, in any number of
rows; what comes before that token is the same in all of them. Knows no tokens.
"""

from typing import Any, Self

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

_States = tuple[Tensor, Tensor]
"""Keys and values, [row, head, column, width] each."""


class _Layer(CacheLayerMixin):
    """One layer's. Windows are left to the attention mask: every column is there."""

    is_sliding = False

    def __init__(self, length: int, before: _States | None) -> None:
        super().__init__()
        self.length = length
        self.before = before
        """Of the tokens before the run's own, one row; None if there are none, or if no run reads the layer."""
        self.kept: _States | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Does nothing: a run makes all that it needs."""

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> _States:
        """The keys and values of all tokens so far; those of a text's first run are kept, without their gradients."""
        if not self.length:
            self.kept = key_states.detach(), value_states.detach()
            return key_states, value_states
        assert self.before is not None, "the text's first run did not reach this layer"
        keys, values = (
            torch.cat([before.expand(len(own), -1, -1, -1), own], dim=-2)
            for before, own in zip(self.before, (key_states, value_states), strict=True)
        )
        return keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns after a run of so many, and the first of them."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens before the run's own."""
        return self.length

    def get_max_length(self) -> int:
        """No limit."""
        return -1


class TextCache(Cache):
    """Keys and values of the layers that have read a text. The same object serves one run."""

    def __init__(self, num_layers: int) -> None:
        """For a text's first run, of one row, by a model with so many layers."""
        super().__init__(layers=[_Layer(0, None) for _ in range(num_layers)])

    def before(self, token: int) -> Self:
        """For a run that begins at this token of the text; at least 1. Takes no memory until it runs."""
        found = type(self)(0)
        for each in self.layers:
            kept = each.kept and tuple(states[:, :, :token] for states in each.kept)
            found.layers.append(_Layer(token, kept))
        return found
