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
    rows = [row for row, each in enumerate(settings) if each.temperature > 0]
    if rows:
        some = [settings[row] for row in rows]
        at = [uniform(settings[row].seed, samples[row], steps[row]) for row in rows]
        ids[rows] = _picked(logits[rows], some, at)
    chosen = logits.gather(1, ids[:, None])[:, 0] - logits.logsumexp(dim=-1)
    return ids.tolist(), chosen.tolist()


def _picked(logits: Tensor, settings: Sequence[SamplingSettings], at: Sequence[float]) -> Tensor:
    """A token a row, [row]."""
    temperatures = torch.tensor([each.temperature for each in settings], dtype=torch.float64, device=logits.device)
    probabilities = (logits.double() / temperatures[:, None]).softmax(dim=-1)
    ordered, ids = probabilities.sort(dim=-1, descending=True, stable=True)
    sums = ordered.cumsum(dim=-1)
    shares = [1.0 if each.top_p is None else each.top_p for each in settings]
    total = sums[:, -1:]
    reached = torch.searchsorted(sums, total.new_tensor(shares)[:, None] * total).clamp_max(ids.shape[1] - 1)
    place = torch.searchsorted(sums, total.new_tensor(at)[:, None] * sums.gather(1, reached), right=True)
    return ids.gather(1, place.clamp_max(ids.shape[1] - 1))[:, 0]
