"""A code on the wire, from its memory."""

import numpy as np
import pytest

from crosscope_proto.v1 import types_pb2
from crosscope_worker.serve.encoding import PromptCode
from crosscope_worker.serve.orders import code_message


@pytest.mark.parametrize("num_entries", [0, 1, 31, 32, 5000])  # 31 take 124 bytes, and 32 a length of two
def test_a_code_is_the_message_that_protobuf_makes_of_its_numbers(num_entries: int) -> None:
    draw = np.random.default_rng(0)
    latents = draw.integers(0, 2**32, num_entries)
    activations = draw.random(num_entries, dtype=np.float32)
    code = PromptCode(np.array([0, 0, num_entries]), latents, activations, np.zeros(2, bool))
    plain = types_pb2.SparseCode(
        row_starts=[0, 0, num_entries], latents=latents.tolist(), activations=activations.tolist()
    )
    assert code_message(code) == plain
    assert code_message(code).SerializeToString() == plain.SerializeToString()


def test_a_small_code_by_hand() -> None:
    code = PromptCode(np.array([0, 1]), np.array([258]), np.array([1.5], np.float32), np.zeros(1, bool))
    words = bytes.fromhex("0a 08 00000000 01000000 12 04 02010000 1a 04 0000c03f")
    assert code_message(code).SerializeToString() == words
