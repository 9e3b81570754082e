"""Keys and values of one text, which later runs of its end share: a cache for transformers' models.

The first run reads the text whole and keeps them. A later run reads the tokens from some token on, in any number of
rows; what comes before that token is the same in all of them. Knows no tokens.
"""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

_States = tuple[Tensor, Tensor]
"""Keys and values, [row, head, column, width] each."""


class Reached(BaseException):
    """Stops a run at the top layer, whose keys and values are all that is wanted of it."""


class _Layer(CacheLayerMixin):
    """One layer's. Windows are left to the attention mask: every column is there."""

    is_sliding = False

    def __init__(self, length: int, before: _States | None) -> None:
        super().__init__()
        self.length = length
        self.before = before
        """Of the tokens before the run's own, in one row or in all; None if there are none, or if no run reads them."""
        self.keeps = self.stops = False
        self.kept: _States | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Does nothing: a run makes all that it needs."""

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> _States:
        """The keys and values of all tokens so far. Kept ones have no gradients."""
        states = key_states, value_states
        if self.length:
            assert self.before is not None, "the text's first run did not reach this layer"
            keys, values = (
                torch.cat([before.expand(len(own), -1, -1, -1), own], dim=-2)
                for before, own in zip(self.before, states, strict=True)
            )
            states = keys, values
        if self.keeps:
            self.kept = states[0].detach(), states[1].detach()
        if self.stops:
            raise Reached
        return states

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

    def __init__(self, layers: Sequence[_Layer]) -> None:
        """See `of_first_run` and `before`."""
        super().__init__(layers=list(layers))
        self.layers: list[Any] = list(layers)

    @classmethod
    def of_first_run(cls, num_layers: int) -> Self:
        """For a text's first run, of one row, by a model with so many layers; keeps what they write."""
        found = cls([_Layer(0, None) for _ in range(num_layers)])
        for each in found.layers:
            each.keeps = True
        return found

    def before(self, token: int) -> Self:
        """For a run that begins at this token of the text. Takes no memory until it runs."""
        return type(self)([_Layer(token, _cut(each.kept, token)) for each in self.layers])

    def stop_at_top(self) -> None:
        """Lets the run stop with Reached when the top layer has written."""
        self.layers[-1].keeps = self.layers[-1].stops = True

    def top_before(self, num_tokens: int) -> Self:
        """After such a run, for one of the top layer alone, which begins so many tokens later."""
        top = self.layers[-1]
        length = top.length + num_tokens
        below = [_Layer(length, None) for _ in self.layers[:-1]]
        return type(self)([*below, _Layer(length, _cut(top.kept, length))])


def _cut(states: _States | None, length: int) -> _States | None:
    return None if states is None else (states[0][:, :, :length], states[1][:, :, :length])
