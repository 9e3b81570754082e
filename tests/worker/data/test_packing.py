"""Packing: every text once, none over another, no forward over its budget, little padding."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosscope_worker.data.packing import Forward, pack


def layout(forward: Forward) -> list[tuple[int, int, int]]:
    columns = (forward.texts.tolist(), forward.rows.tolist(), forward.starts.tolist())
    return list(zip(*columns, strict=True))


def test_the_longest_text_that_fits_fills_the_rest_of_a_row():
    lengths = [4, 10, 7, 1, 2, 3]
    first, second = pack(lengths, 20, share_rows=True)
    assert first.shape == (2, 10)
    # The longest fills a row; 7 leaves 3 for the 3.
    assert layout(first) == [(1, 0, 0), (2, 1, 0), (5, 1, 7)]
    # Rows are as long as the longest that is left.
    assert second.shape == (2, 4)
    assert layout(second) == [(0, 0, 0), (4, 1, 0), (3, 1, 2)]


def test_a_long_row_takes_as_many_texts_as_the_forward_may_hold():
    (forward,) = pack([4, 10, 7, 1, 2, 3], 30, share_rows=True, long_rows=True)
    assert forward.shape == (1, 30)
    assert layout(forward) == [(1, 0, 0), (2, 0, 10), (0, 0, 17), (5, 0, 21), (4, 0, 24), (3, 0, 26)]


def test_a_long_row_is_as_long_as_a_forward_or_its_only_text_and_tells_positions():
    first, second = pack([9, 4], 8, share_rows=True, long_rows=True)
    assert [first.shape, second.shape] == [(1, 9), (1, 8)]
    _, positions = second.fill([np.array([5, 6, 7, 8])])
    assert positions is not None
    assert positions.tolist() == [[0, 1, 2, 3, 0, 0, 0, 0]]


def test_rows_are_not_shared_where_they_may_not_be():
    forwards = list(pack([4, 10, 7, 1], 20, share_rows=False, long_rows=True))
    assert [forward.shape for forward in forwards] == [(2, 10), (2, 4)]
    assert not any(forward.starts.any() or forward.shares_rows for forward in forwards)


def test_rows_hold_ids_and_each_text_counts_its_own_positions():
    (forward,) = pack([3, 2, 6], 12, share_rows=True)
    texts = [np.array([1, 2, 3]), np.array([4, 5]), np.array([6, 7, 8, 9, 10, 11])]
    ids, positions = forward.fill([texts[index] for index in forward.texts])
    assert ids.tolist() == [[6, 7, 8, 9, 10, 11], [1, 2, 3, 4, 5, 0]]
    assert positions is not None
    assert positions.tolist() == [[0, 1, 2, 3, 4, 5], [0, 1, 2, 0, 1, 0]]


def test_there_are_no_positions_where_each_row_has_one_text():
    (forward,) = pack([3, 2], 12, share_rows=False)
    ids, positions = forward.fill([np.array([1, 2, 3]), np.array([4, 5])])
    assert ids.tolist() == [[1, 2, 3], [4, 5, 0]]
    assert positions is None


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=60),
    budget=st.integers(1, 100),
    share_rows=st.booleans(),
    long_rows=st.booleans(),
)
def test_every_text_lies_once_and_over_no_other(lengths: list[int], budget: int, share_rows: bool, long_rows: bool):
    seen: list[int] = []
    for forward in pack(lengths, budget, share_rows, long_rows):
        taken = np.zeros(forward.shape, int)
        for index, row, start in layout(forward):
            assert start + lengths[index] <= forward.shape[1]
            taken[row, start : start + lengths[index]] += 1
            seen.append(index)
        assert taken.max() == 1
        assert taken.any(axis=1).all(), "no row is empty"
        assert taken.size <= budget or forward.shape[0] == 1
        assert taken.size <= budget or len(forward.texts) == 1 or forward.shape[1] == max(lengths)
        assert not (share_rows and long_rows) or forward.shape in {(1, budget), (1, taken.sum())}
    assert sorted(seen) == list(range(len(lengths)))


@pytest.mark.parametrize(("long_rows", "at_most"), [(False, 0.05), (True, 0.001)])
def test_shared_rows_have_little_padding(long_rows: bool, at_most: float):
    """Of long rows, the last one apart."""
    draw = np.random.default_rng(0)
    lengths = np.clip(np.exp(draw.normal(5.5, 1.0, 220)), 20, 1024).astype(int)

    def padding(**how: bool) -> float:
        forwards = list(pack(lengths.tolist(), 8192, **how))
        forwards = forwards[:-1] if forwards[0].is_long else forwards
        num_tokens = sum(lengths[forward.texts].sum() for forward in forwards)
        return 1 - num_tokens / sum(int(np.prod(forward.shape)) for forward in forwards)

    assert padding(share_rows=True, long_rows=long_rows) < at_most
    assert padding(share_rows=False) > 0.1
