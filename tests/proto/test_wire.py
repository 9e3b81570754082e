"""Servers, workers and cached codes of the release before (proto/baseline.binpb) and of this one read each other."""

import struct
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given
from hypothesis import strategies as st

from crosscope_proto.v1 import types_pb2
from crosscope_proto.worker.v1 import inference_pb2

BASELINE = Path(__file__).resolve().parents[2] / "proto/baseline.binpb"
UINT32 = st.lists(st.integers(0, 2**32 - 1), max_size=300)


def before(name: str) -> Any:
    """A message class of the baseline."""
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(BASELINE.read_bytes()).file:
        pool.Add(file)  # pyright: ignore[reportAttributeAccessIssue]
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))


OLD_REPLY = before("crosscope.worker.v1.EncodeResponse")


@given(UINT32, UINT32, st.lists(st.floats(width=32, allow_nan=False), max_size=300))
def test_a_workers_reply_is_the_same_bytes_as_in_the_baseline(
    row_starts: list[int], latents: list[int], activations: list[float]
) -> None:
    code = types_pb2.SparseCode(row_starts=row_starts, latents=latents, activations=activations)
    new = inference_pb2.EncodeResponse(tokens=types_pb2.Tokens(ids=[7]), code=code, compute_ms=1.5, queue_ms=2)
    old = OLD_REPLY.FromString(new.SerializeToString())
    assert old.code.row_starts == struct.pack(f"<{len(row_starts)}I", *row_starts)
    assert old.code.latents == struct.pack(f"<{len(latents)}I", *latents)
    assert old.code.activations == struct.pack(f"<{len(activations)}f", *activations)
    assert inference_pb2.EncodeResponse.FromString(old.SerializeToString()) == new
