"""Draws tokens from logits. A draw depends on the row's own logits, seed, sample and step alone."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from crosscope_worker.effects.orders import SamplingSettings


def uniform(seed: int, sample: int, step: int) -> float:
    """A number from [0, 1) by a counter-based generator (Philox), so that it depends on nothing else."""
    key, counter = np.array([seed, sample], np.uint64), np.array([step, 0, 0, 0], np.uint64)
    return float(np.random.Generator(np.random.Philox(key=key, counter=counter)).random())


def draw(
    logits: Tensor, settings: Sequence[SamplingSettings], samples: Sequence[int], steps: Sequence[int]
) -> tuple[list[int], list[float]]:
    """A token a row and its log-probability at temperature 1. logits: [row, vocabulary] float32.

    Temperature 0 takes the most probable token. Otherwise one uniform number picks from the tokens sorted by
    probability, ties by id, in float64.
    """
    ids = logits.argmax(dim=-1)
    for row, each in enumerate(settings):
        if each.temperature > 0:
            ids[row] = _picked(logits[row], each, uniform(each.seed, samples[row], steps[row]))
    chosen = logits.gather(1, ids[:, None])[:, 0] - logits.logsumexp(dim=-1)
    return ids.tolist(), chosen.tolist()


def _picked(logits: Tensor, settings: SamplingSettings, at: float) -> Tensor:
    probabilities = (logits.double() / settings.temperature).softmax(dim=-1)
    ordered, ids = probabilities.sort(descending=True, stable=True)
    sums = ordered.cumsum(dim=0)
    total = sums[-1]
    if settings.top_p is not None and settings.top_p < 1:
        total = sums[torch.searchsorted(sums, settings.top_p * total).clamp_max(len(ids) - 1)]
    place = torch.searchsorted(sums, at * total, right=True)
    return ids[place.clamp_max(len(ids) - 1)]
