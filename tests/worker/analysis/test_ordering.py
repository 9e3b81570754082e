"""Orders by several keys, against numpy's."""

import numpy as np
import pytest

from crosscope_worker.analysis.ordering import descending, ordered_by


@pytest.mark.parametrize("width", [3, 25, 62], ids=["with the index", "without it", "too wide to pack"])
def test_rows_are_ordered_by_the_first_key_then_by_the_next_and_stay_in_place_among_equals(width: int) -> None:
    draw = np.random.default_rng(0)
    first = draw.integers(-3, 3, 3000)
    second = draw.choice([-(1 << width), 0, 1, (1 << width) - 1], 3000)
    third = draw.integers(0, 1 << 33, 40)[draw.integers(0, 40, 3000)]
    order = ordered_by(first, second, third)
    assert order.tolist() == np.lexsort((third, second, first)).tolist()
    assert order.tolist() != np.arange(3000).tolist()


def test_no_row_has_an_order_too() -> None:
    assert ordered_by(np.empty(0, np.int64), np.empty(0, np.uint32)).tolist() == []


def test_unsigned_keys_are_compared_as_numbers() -> None:
    keys = np.array([3, 0, 2**32 - 1], np.uint32), np.array([0, 0, 0], np.uint16)
    assert ordered_by(*keys).tolist() == [1, 0, 2]


def test_the_larger_a_float_the_smaller_its_number() -> None:
    values = np.array([1.5, -2.0, 0.0, np.inf, 1e-40, -1e-40, 1.5], np.float32)
    assert np.argsort(descending(values), kind="stable").tolist() == [3, 0, 6, 4, 2, 5, 1]
