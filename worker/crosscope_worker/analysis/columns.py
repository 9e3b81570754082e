"""Arrow columns from numpy arrays. Knows nothing about their meaning."""

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

if TYPE_CHECKING:
    Array = pa.Array[Any]

_MOST_ITEMS = 2**31 - 1


def plain(values: NDArray[Any] | list[str]) -> "Array":
    """A column of numbers or texts."""
    return cast("Array", pa.array(values))


def chosen(options: list[str], index: NDArray[np.int64]) -> "Array":
    """`options[index]` as a text column."""
    return cast("Array", pa.array(options, pa.string()).take(cast("pa.Int64Array", pa.array(index))))


def lists(lengths: NDArray[np.integer[Any]], items: "Array") -> "Array":
    """A list column of consecutive `items`, `lengths: [row]` of them in each row.

    Raises OverflowError beyond 2³¹ - 1 items, Arrow's limit.
    """
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    if offsets[-1] > _MOST_ITEMS:
        raise OverflowError(f"a list column of {offsets[-1]} items is more than Arrow's {_MOST_ITEMS}")
    return cast("Array", pa.ListArray.from_arrays(cast("pa.Int32Array", pa.array(offsets.astype(np.int32))), items))


def matrix(values: NDArray[Any]) -> "Array":
    """A list column with `values[row]` in each row."""
    rows, width = values.shape
    return lists(np.full(rows, width), plain(np.ascontiguousarray(values).reshape(-1)))
