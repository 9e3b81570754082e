"""Inference thresholds of a trained dictionary with k, from a sample of its training tokens (math §2).

Reads a finished crosscoder and changes nothing. Does not know where the tokens came from or how the dictionary was
trained.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from crosscope_proto.training_memory import SAMPLE_TOKENS
from crosscope_worker.dictionary.crosscoder import Crosscoder
from crosscope_worker.training.budget import Budget

_BLOCK_ENTRIES = 1 << 24
"""Entries of the code that are computed at once, about 16 bytes each."""


class TokenSample:
    """Every n-th token of a training, in training order; n doubles whenever the sample is full.

    Batches are drawn at random, so every token of the training has the same chance to be in the sample, whatever its
    data set and epoch. The sample depends only on the tokens and their number, so a resumed training has the same one.
    """

    def __init__(self, capacity: int = SAMPLE_TOKENS) -> None:
        self._capacity = capacity
        self._held: Tensor | None = None
        """[capacity, both], of which the first `_size` rows are held."""
        self._size = 0

    def add(self, before: int, batch: Tensor) -> None:
        """Adds from `batch: [token, both]`, which comes after `before` earlier tokens."""
        if self._held is None:
            self._held = batch.new_empty(self._capacity, batch.shape[1])
        stride, thinner = self._stride(before), self._stride(before + len(batch))
        if thinner > stride:
            stays = self._held[: self._size : thinner // stride].clone()
            self._held[: len(stays)], self._size = stays, len(stays)
        taken = batch[-before % thinner :: thinner]
        self._held[self._size : self._size + len(taken)] = taken
        self._size += len(taken)

    def _stride(self, num_tokens: int) -> int:
        """The n of "every n-th token" after so many tokens, a power of two."""
        return 1 << (max(1, -(-num_tokens // self._capacity)) - 1).bit_length()

    def tokens(self) -> Tensor:
        """The sample, [token, both]."""
        return torch.empty(0, 0) if self._held is None else self._held[: self._size]

    def restore(self, tokens: Tensor, device: torch.device) -> None:
        """Continues from a copy, on `device`, of a saved sample."""
        self._held, self._size = None, len(tokens)
        if len(tokens):
            self._held = tokens.new_empty(self._capacity, tokens.shape[1], device=device)
            self._held[: self._size] = tokens


def calibrate(crosscoder: Crosscoder, shares: Sequence[Budget], tokens: Tensor) -> tuple[float, ...]:
    """The threshold of each budget that keeps `k` entries a token on average over `tokens: [token, both]`.

    The threshold is the `k · token + 1`-th largest scaled activation, so that exactly `k · token` lie above it. It is 0
    if fewer activations are positive. The cost is one encoder product of the tokens, in pieces; `k · token` values are
    held for each budget.
    """
    norms = [_norms(crosscoder, budget)[budget.latents] for budget in shares]
    found = [_Largest(budget.k * len(tokens) + 1) for budget in shares]
    for piece in tokens.split(max(1, _BLOCK_ENTRIES // crosscoder.num_latents)):
        code = crosscoder.pre_activations(piece).relu_()
        for budget, norm, largest in zip(shares, norms, found, strict=True):
            largest.add(code[:, budget.latents] * norm)
    return tuple(largest.smallest() for largest in found)


def _norms(crosscoder: Crosscoder, budget: Budget) -> Tensor:
    """The factors that scale the code, [latent]."""
    return budget.norms(crosscoder.W_dec, crosscoder.d_model, crosscoder.code_normalisation)


class _Largest:
    """The `count` largest of all positive values that were added."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._values: Tensor | None = None
        self._floor = 0.0
        """Only values above this floor can still be among the largest."""

    def add(self, values: Tensor) -> None:
        fresh = values[values > self._floor]
        held = fresh if self._values is None else torch.cat([self._values, fresh])
        if len(held) >= self._count:
            held = held.topk(self._count, sorted=False).values
            self._floor = float(held.min())
        self._values = held

    def smallest(self) -> float:
        """The `count`-th largest value; 0 if fewer were positive."""
        return self._floor
