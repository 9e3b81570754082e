"""Health check of a container: `healthcheck.py grpc HOST:PORT` or `healthcheck.py http URL`. Exit code 0: healthy."""

import sys
import urllib.error
import urllib.request

_TIMEOUT_S = 3.0


def grpc_serves(target: str) -> bool:
    """Whether grpc.health.v1 reports SERVING for the whole server."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(target) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_S)
        except grpc.RpcError:
            return False
    return reply.status == health_pb2.HealthCheckResponse.SERVING


def http_answers(url: str) -> bool:
    """Whether the server answers GET with status 200."""
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as reply:
            return reply.status == 200
    except (urllib.error.URLError, OSError):
        return False


if __name__ == "__main__":
    kind, address = sys.argv[1:3]
    sys.exit(not {"grpc": grpc_serves, "http": http_answers}[kind](address))
