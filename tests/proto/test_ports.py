"""Ports that gRPC would take modulo 65536."""

import subprocess
import sys

import grpc
import pytest

from crosscope_proto.ports import is_wrong_port


@pytest.mark.parametrize(
    ("address", "is_wrong"),
    [
        *(("localhost:1", False), ("[::1]:65535", False), ("10.0.0.2:00080", False), ("dns:///lab:443", False)),
        *(("localhost:0", True), ("localhost:65536", True), ("dns:///lab:99999", True), (f"h:{'9' * 5000}", True)),
        *(("unix:/run/a:99999", False), ("unix-abstract:99999", False), ("vsock:2:99999", False)),
        *(("localhost", False), ("localhost:http", False), ("localhost:²", False)),
    ],
)
def test_ports_of_tcp_are_from_1_to_65535(address: str, is_wrong: bool) -> None:
    assert is_wrong_port(address) == is_wrong


def test_a_server_may_ask_for_any_free_port() -> None:
    assert not is_wrong_port("localhost:0", first=0)
    assert is_wrong_port("localhost:65536", first=0)


def test_grpc_takes_ports_modulo_65536() -> None:
    """Once it refuses them itself, our own rule can go."""
    channel = grpc.insecure_channel("127.0.0.1:65537")
    with channel, pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary("/a/b")(b"", timeout=10)
    assert "127.0.0.1:1" in str(refused.value)


@pytest.mark.parametrize(
    ("module", "variable"),
    [
        (("crosscope_server",), "CROSSCOPE_SERVER_LISTEN"),
        (("crosscope_server",), "CROSSCOPE_SERVER_WORKERS"),
        (("crosscope_worker", "serve"), "CROSSCOPE_WORKER_LISTEN"),
    ],
)
def test_a_process_refuses_such_a_port(module: tuple[str, ...], variable: str) -> None:
    environment = {variable: "127.0.0.1:99999", "CROSSCOPE_WORKER_TOKEN": "a" * 32}
    command = [sys.executable, "-m", *module, "--check"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{variable}: has a port that is not between ")
