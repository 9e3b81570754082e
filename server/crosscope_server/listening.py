"""The addresses at which the server answers: gRPC's options, ports, the private socket, TLS. Knows no service."""

import os

import grpc
import grpc.aio

from crosscope_server.settings import Settings

MAX_REQUEST_BYTES = 4 * 1024 * 1024
_OPTIONS = [
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    # gRPC itself cancels calls at random where more than these wait to be begun; our own door says why.
    ("grpc.server.max_pending_requests", 20_000),
    ("grpc.server.max_pending_requests_hard_limit", 30_000),
    ("grpc.http.overload_protection", 0),  # else it resets streams at random long before `most_streams` of them
    ("grpc.http2.bdp_probe", 0),  # else each connection's unread requests may grow to megabytes
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
]


class StartError(Exception):
    """The server cannot start; the message says why and what to do, in one sentence."""


def options(settings: Settings) -> list[tuple[str, int]]:
    """What gRPC is told of messages and connections."""
    return [*_OPTIONS, ("grpc.max_concurrent_streams", settings.most_streams)]


def listen(server: grpc.aio.Server, settings: Settings) -> int:
    """Binds the address and the private socket of the settings; returns the port, 1 for a Unix socket.

    Raises StartError.
    """
    port = _bind(server, settings)
    if settings.socket is not None:
        _bind_private(server, settings.socket)
    return port


def _bind(server: grpc.aio.Server, settings: Settings) -> int:
    try:
        if settings.tls_cert is None:
            port = server.add_insecure_port(settings.listen)
        else:
            port = server.add_secure_port(settings.listen, _credentials(settings))
    except RuntimeError as error:
        raise StartError(_why_not(settings)) from error
    if port == 0:
        raise StartError(_why_not(settings))
    return port


def _bind_private(server: grpc.aio.Server, socket: str) -> None:
    """Listens on a socket that is its owner's alone (0600). Raises StartError."""
    before = os.umask(0o177)
    try:
        server.add_insecure_port(socket)
    except RuntimeError as error:
        raise StartError(f"cannot listen on {socket}; set CROSSCOPE_SERVER_SOCKET to another path") from error
    finally:
        os.umask(before)


def _credentials(settings: Settings) -> grpc.ServerCredentials:
    """The server's certificate, and the authority of its clients. Raises StartError."""
    assert settings.tls_cert is not None
    assert settings.tls_key is not None
    try:
        pair = (settings.tls_key.read_bytes(), settings.tls_cert.read_bytes())
        authority = settings.tls_client_ca.read_bytes() if settings.tls_client_ca else None
    except OSError as error:
        raise StartError(f"cannot read {error.filename}: {error.strerror}; see CROSSCOPE_SERVER_TLS_CERT") from error
    return grpc.ssl_server_credentials([pair], authority, require_client_auth=authority is not None)


def _why_not(settings: Settings) -> str:
    sentence = (
        f"cannot listen on {settings.listen}: it is in use or not an address; set CROSSCOPE_SERVER_LISTEN to a free one"
    )
    if settings.tls_cert is None:
        return sentence
    return f"{sentence}; or {settings.tls_cert} and {settings.tls_key} are no certificate with its key, in PEM"
