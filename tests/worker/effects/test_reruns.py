"""Groups of reruns, worked out by hand."""

import numpy as np
import pytest

from crosscope_worker.effects import reruns
from crosscope_worker.effects.reruns import groups


def grouped(firsts: list[int], length: int) -> list[tuple[int, list[int]]]:
    return [(start, rows.tolist()) for start, rows in groups(np.array(firsts), length)]


def test_reruns_share_a_batch_where_an_unchanged_run_and_a_start_cost_more_than_they_save():
    """Together they are 7 x 100 tokens. Apart, 4 x 100 + 4 x 10, and a start more: 64. 98 and 99 save nothing alone."""
    assert grouped([90, 0, 98, 0, 99, 0], 100) == [(0, [1, 3, 5]), (90, [0, 2, 4])]
    assert grouped([90, 0], 100) == [(0, [1]), (90, [0])], "2 x 100 + 2 x 10 + 64 < 3 x 100"
    assert grouped([60, 0], 100) == [(0, [0, 1])], "2 x 100 + 2 x 40 + 64 > 3 x 100"


def test_a_batch_holds_no_more_tokens_than_it_may(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reruns, "BATCH_TOKENS", 40)
    assert [rows for _, rows in grouped([0] * 6, 10)] == [[0, 1, 2], [3, 4, 5]]
    assert [rows for _, rows in grouped([0, 0], 50)] == [[0], [1]], "a long text runs all the same"
