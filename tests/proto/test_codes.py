"""Sparse codes as whole arrays are the messages that lists make."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from crosscope_proto.codes import sparse_code, sparse_code_arrays
from crosscope_proto.v1 import types_pb2

UINT32 = st.lists(st.integers(0, 2**32 - 1), max_size=300)


@given(UINT32, UINT32, st.lists(st.floats(width=32, allow_nan=False), max_size=300))
def test_arrays_and_lists_make_the_same_message(row_starts: list[int], latents: list[int], activations: list[float]):
    lists = types_pb2.SparseCode(row_starts=row_starts, latents=latents, activations=activations)
    arrays = (
        struct.pack(f"<{len(row_starts)}I", *row_starts),
        struct.pack(f"<{len(latents)}I", *latents),
        struct.pack(f"<{len(activations)}f", *activations),
    )
    assert sparse_code(*arrays) == lists
    assert sparse_code_arrays(lists) == arrays
