"""Probes that say whether a process answers, by gRPC, the Redis protocol or HTTP. Knows nothing about the processes."""

import http.client
import socket
import ssl

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from crosscope_local.child import Probe

_TIMEOUT_S = 1.0


def grpc_serving(target: str, service: str = "") -> Probe:
    """A probe that is true once grpc.health.v1 of `target` says SERVING for a service, by default for the whole."""
    request = health_pb2.HealthCheckRequest(service=service)

    def probe() -> bool:
        with grpc.insecure_channel(target) as channel:
            try:
                reply = health_pb2_grpc.HealthStub(channel).Check(request, timeout=_TIMEOUT_S)
            except grpc.RpcError:
                return False
        return reply.status == health_pb2.HealthCheckResponse.SERVING

    return probe


def redis_answers(socket_path: str) -> Probe:
    """A probe that is true once PING over the unix socket is answered with PONG."""

    def probe() -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_TIMEOUT_S)
            try:
                connection.connect(socket_path)
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
            except OSError:
                return False

    return probe


def http_answers(host: str, port: int, path: str, *, tls: bool = False) -> Probe:
    """A probe that is true once GET `path` is answered with 200, whoever signed the certificate."""

    def probe() -> bool:
        if tls:
            anyone = ssl.create_default_context()
            anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
            connection = http.client.HTTPSConnection(host, port, timeout=_TIMEOUT_S, context=anyone)
        else:
            connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    return probe
