"""Statuses with details fit into the headers that gRPC allows, whatever the sentence holds."""

import base64
from urllib.parse import quote

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from crosscope_proto.rich_status import bad_request, cut, retry_info, rich_status

UNCHANGED = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
"""What gRPC sends as it is; every other byte takes three."""


def travel_bytes(status: status_pb2.Status) -> int:
    return len(quote(status.message, safe=UNCHANGED)) + len(base64.b64encode(status.SerializeToString()))


@pytest.mark.parametrize("sign", ["a", "%", "ä", "\n", "𝄞", "\ud800"])
def test_a_status_fits_into_the_headers(sign: str) -> None:
    status = rich_status(grpc.StatusCode.RESOURCE_EXHAUSTED, sign * 100_000, [retry_info(1.5)])
    assert travel_bytes(status) < 8192 - 900
    assert status.message.endswith("…")
    retry = error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 1500
    assert rpc_status.to_status(status).code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_short_sentence_stays_as_it_is() -> None:
    assert rich_status(grpc.StatusCode.NOT_FOUND, "there is no crosscoder 'ä'").message == "there is no crosscoder 'ä'"
    assert cut("abcä", 9) == "abcä"
    assert cut("abcä", 8) == "abc…"
    assert cut("50%", 5) == "50%"
    assert cut("50%", 4) == "50…"


@pytest.mark.parametrize("sign", ["x", "%", "é", "字", "🦊", "\ud800", "\n"])
@pytest.mark.parametrize("num", [1, 10, 500])
def test_details_are_cut_until_they_fit_and_say_so(sign: str, num: int) -> None:
    wrong = bad_request([(f"field[{i}].{sign * 10_000}", sign * 10_000) for i in range(num)])
    info = error_details_pb2.ErrorInfo(reason="STALE", metadata={"now": "γ" * 10_000, "revision": "7"})
    status = rich_status(grpc.StatusCode.ABORTED, sign * 10_000, [info, wrong, retry_info(2)])
    assert travel_bytes(status) < 8192 - 900
    read = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    assert all(packed.Unpack(kind) for packed, kind in zip(status.details, read, strict=True))
    assert read[0].metadata["revision"] == "7"
    assert read[0].metadata["now"].endswith("γ…")
    named = read[1].field_violations
    assert len(named) == min(num, 10)
    assert all(each.description.endswith("…") and each.field.endswith("…") for each in named[:9])
    if num > 10:
        assert (named[9].field, named[9].description) == ("…", f"and {num - 9} more")


def test_what_fits_is_whole() -> None:
    long = "λ" * 1000
    status = rich_status(grpc.StatusCode.INVALID_ARGUMENT, "no", [bad_request([("a", long)])])
    read = error_details_pb2.BadRequest()
    assert status.details[0].Unpack(read)
    assert read.field_violations[0].description == long


def test_more_details_than_fit_are_left_out() -> None:
    info = error_details_pb2.ErrorInfo(metadata={str(i): "x" for i in range(10_000)})
    assert not rich_status(grpc.StatusCode.ABORTED, "no", [info]).details
