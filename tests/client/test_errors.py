import threading
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from fixtures_waiting import PATIENCE_S
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from crosscope import (
    Busy,
    Client,
    Conflict,
    CrosscopeError,
    DeadlineExceeded,
    InvalidInput,
    NotFound,
    ServerError,
    Unauthorized,
    Unavailable,
)
from crosscope._unreachable import NOT_REACHED, no_server
from crosscope_proto.v1 import latents_pb2, latents_pb2_grpc


class Failing(latents_pb2_grpc.LatentsServicer):
    """Answers every listing of crosscoders with one status, after counting it."""

    def __init__(self, code: grpc.StatusCode, message: str = "a sentence", *details: Message) -> None:
        self.code, self.message, self.details, self.calls = code, message, details, 0

    def ListCrosscoders(self, request, context):
        self.calls += 1
        if not self.details:
            return context.abort(self.code, self.message)
        status = Status(code=self.code.value[0], message=self.message)
        for detail in self.details:
            packed = AnyMessage()
            packed.Pack(detail)
            status.details.append(packed)
        return context.abort_with_status(rpc_status.to_status(status))


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidInput),
        (grpc.StatusCode.OUT_OF_RANGE, InvalidInput),
        (grpc.StatusCode.NOT_FOUND, NotFound),
        (grpc.StatusCode.FAILED_PRECONDITION, Conflict),
        (grpc.StatusCode.ABORTED, Conflict),
        (grpc.StatusCode.ALREADY_EXISTS, Conflict),
        (grpc.StatusCode.UNAUTHENTICATED, Unauthorized),
        (grpc.StatusCode.PERMISSION_DENIED, Unauthorized),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Busy),
        (grpc.StatusCode.UNAVAILABLE, Unavailable),
        (grpc.StatusCode.INTERNAL, ServerError),
        (grpc.StatusCode.DATA_LOSS, ServerError),
        (grpc.StatusCode.UNKNOWN, ServerError),
        (grpc.StatusCode.UNIMPLEMENTED, ServerError),
    ],
)
def test_every_status_has_its_exception(serve: Callable[..., Any], code: grpc.StatusCode, kind: type) -> None:
    failing = Failing(code, "a sentence", ErrorInfo(reason="TEST"))
    with Client(serve(failing).address) as client, pytest.raises(CrosscopeError, match="a sentence") as caught:
        client.crosscoders()
    assert type(caught.value) is kind
    assert failing.calls == 1, "what the server said is not asked again"
    assert caught.value.__cause__ is None


def test_unavailable_without_details_is_taken_for_the_connection_and_asked_again(serve: Callable[..., Any]) -> None:
    failing = Failing(grpc.StatusCode.UNAVAILABLE, "upstream: connection reset")
    with Client(serve(failing).address) as client, pytest.raises(Unavailable, match=r"crosscope up.*connection reset"):
        client.crosscoders()
    assert failing.calls > 1


def test_violations_and_retry_delays_are_decoded(serve: Callable[..., Any]) -> None:
    bad = BadRequest(field_violations=[BadRequest.FieldViolation(field="top_k", description="must be 1 to 65536")])
    failing = Failing(grpc.StatusCode.INVALID_ARGUMENT, "top_k: must be …", ErrorInfo(), bad)
    with Client(serve(failing).address) as client, pytest.raises(InvalidInput) as caught:
        client.crosscoders()
    assert [tuple(violation) for violation in caught.value.violations] == [("top_k", "must be 1 to 65536")]

    retry = RetryInfo(retry_delay=Duration(seconds=1, nanos=500_000_000))
    failing = Failing(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many tokens wait", retry)
    with Client(serve(failing).address, timeout_s=1) as client, pytest.raises(Busy) as busy:
        client.crosscoders()
    assert busy.value.retry_after_s == 1.5


def test_no_server_says_how_to_start_one() -> None:
    with (
        Client("127.0.0.1:1") as client,
        pytest.raises(Unavailable, match=r"no server answers at 127\.0\.0\.1:1; start one with `crosscope up`"),
    ):
        client.crosscoders()


def test_a_host_without_an_address_was_not_reached() -> None:
    details = "errors resolving nosuch:1: [field:hostname lookup error:address lookup failed for nosuch:1: Not found]"
    assert details.startswith(NOT_REACHED)
    assert str(no_server("nosuch:1", details, has_tls=False)).endswith("CROSSCOPE_ADDRESS (Not found)")


@pytest.mark.parametrize("port", [0, 65_536, 99_999])
def test_a_port_that_does_not_exist(port: int) -> None:
    with pytest.raises(InvalidInput, match="is not between 1 and 65535"):
        Client(f"127.0.0.1:{port}")


@pytest.mark.parametrize("name", ["none.sock", "ssl-or-tls.sock"])
def test_no_socket(tmp_path, name: str) -> None:
    with Client(f"unix:{tmp_path}/{name}") as client, pytest.raises(Unavailable, match="no server answers at unix:"):
        client.crosscoders()


def test_a_lost_connection_is_asked_again(serve: Callable[..., Any]) -> None:
    class Once(latents_pb2_grpc.LatentsServicer):
        def ListCrosscoders(self, request, context):
            return latents_pb2.ListCrosscodersResponse()

    served = serve(Once())
    with Client(served.address) as client:
        assert client.crosscoders() == []
        served.stop()
        starter = threading.Timer(0.15, served.start)
        starter.start()
        assert client.crosscoders() == []
        starter.join()


def test_deadline(serve: Callable[..., Any]) -> None:
    release = threading.Event()

    class Slow(latents_pb2_grpc.LatentsServicer):
        def ListCrosscoders(self, request, context):
            release.wait(PATIENCE_S)
            return latents_pb2.ListCrosscodersResponse()

    with (
        Client(serve(Slow()).address, timeout_s=0.2) as client,
        pytest.raises(DeadlineExceeded, match=r"within 0\.2 s.*timeout_s"),
    ):
        client.crosscoders()
    release.set()


@pytest.mark.parametrize("address", ["", "localhost", "http://localhost:50051", "host:port", "a b:1", "unix:", "h:1\0"])
def test_malformed_addresses(address: str) -> None:
    with pytest.raises(InvalidInput, match="address"):
        Client(address)


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan")])
def test_timeouts_that_are_not_positive(timeout_s: float) -> None:
    with pytest.raises(InvalidInput, match="timeout_s"):
        Client(timeout_s=timeout_s)


def test_closed_client() -> None:
    client = Client()
    client.close()
    with pytest.raises(InvalidInput, match="closed"):
        client.crosscoders()
