"""Which reruns of a text's end share a batch (math §9). Knows no models."""

import numpy as np

BATCH_TOKENS = 2048
"""Tokens of a batch; one rerun of a longer text runs beside the unchanged one all the same."""
GROUP_TOKENS = 64
"""Tokens that take about as long as it takes to start a batch."""


def groups(firsts: np.ndarray, length: int) -> list[tuple[int, np.ndarray]]:
    """The token that each batch begins with, and its reruns: ascending indices, [rerun] int64.

    firsts: [rerun] int64, the first token that each changes; length: tokens of the text. A batch begins with the first
    token that any of its reruns changes and runs the unchanged text too. The groups are those that take least time.
    """
    order = np.argsort(firsts, kind="stable")
    lengths = length - firsts[order]
    least, begins = np.zeros(len(order) + 1), np.zeros(len(order) + 1, np.int64)
    for end in range(1, len(order) + 1):
        begin = np.arange(end)
        tokens = (end - begin + 1) * lengths[:end]
        tokens = np.where((tokens <= BATCH_TOKENS) | (begin == end - 1), tokens, np.inf)
        costs = least[:end] + tokens + GROUP_TOKENS
        begins[end] = costs.argmin()
        least[end] = costs.min()
    found: list[tuple[int, np.ndarray]] = []
    end = len(order)
    while end:
        begin = int(begins[end])
        found.append((int(firsts[order[begin]]), np.sort(order[begin:end])))
        end = begin
    return found[::-1]
