"""A Ray cluster that does not answer, or is no such cluster: a sentence, soon."""

import socket
import time

import pytest
from fixtures_ports import free_port

from crosscope_worker.cluster import driver
from crosscope_worker.cluster.driver import Driver
from crosscope_worker.cluster.errors import ClusterError


def test_an_address_where_nobody_answers() -> None:
    begun = time.monotonic()
    with pytest.raises(ClusterError, match=r"no Ray cluster answers at 127\.0\.0\.1:\d+ .*refused.*; start one with"):
        Driver(f"127.0.0.1:{free_port()}")
    assert time.monotonic() - begun < 10


def test_an_address_where_something_else_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "CONNECT_S", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ClusterError, match=f"no Ray cluster answers at {address} within 1 s"):
            Driver(address)


@pytest.mark.parametrize("address", ["ray://head:10001", "head", "head:http", ":6379"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ClusterError, match="which is not host:port"):
        Driver(address)
