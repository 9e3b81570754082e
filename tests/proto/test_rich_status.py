"""Statuses with details fit into the headers that gRPC allows, whatever the sentence holds."""

import base64
from urllib.parse import quote

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from crosscope_proto.rich_status import cut, retry_info, rich_status


@pytest.mark.parametrize("sentence", ["a" * 100_000, "ä" * 100_000, "\n" * 100_000, "𝄞" * 100_000, "\ud800" * 100_000])
def test_a_status_fits_into_the_headers(sentence: str) -> None:
    status = rich_status(grpc.StatusCode.RESOURCE_EXHAUSTED, sentence, [retry_info(1.5)])
    assert len(quote(status.message)) + len(base64.b64encode(status.SerializeToString())) < 8192
    assert status.message.endswith("…")
    retry = error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 1500
    assert rpc_status.to_status(status).code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_short_sentence_stays_as_it_is() -> None:
    assert rich_status(grpc.StatusCode.NOT_FOUND, "there is no crosscoder 'ä'").message == "there is no crosscoder 'ä'"
    assert cut("abcä", 9) == "abcä"
    assert cut("abcä", 8) == "abc…"
