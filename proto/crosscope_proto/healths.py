"""The health service (grpc.health.v1) of server and inference worker: the library's, with sentences and a list."""

# ruff: noqa: ARG002 (gRPC passes a request and a context to every method)

from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

if TYPE_CHECKING:  # the stubs do not know health.aio
    _Servicer = health_pb2_grpc.HealthServicer
else:
    _Servicer = health.aio.HealthServicer


class Healths(_Servicer):
    """Says of each service whether it serves."""

    if TYPE_CHECKING:

        async def set(self, service: str, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
            """Says how a service is."""

        async def enter_graceful_shutdown(self) -> None:
            """Says of every service, from now on, that it does not serve."""

    def __init__(self) -> None:
        super().__init__()
        self._statuses: dict[str, Any] = self._server_status  # pyright: ignore[reportAttributeAccessIssue]

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        """How a service is."""
        status = self._statuses.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no such service; there are {self._names()}")
        return health_pb2.HealthCheckResponse(status=status)

    async def List(
        self, request: health_pb2.HealthListRequest, context: grpc.aio.ServicerContext
    ) -> health_pb2.HealthListResponse:
        """How all services are."""
        found = {name: health_pb2.HealthCheckResponse(status=status) for name, status in self._statuses.items()}
        return health_pb2.HealthListResponse(statuses=found)

    def _names(self) -> str:
        return ", ".join(sorted(filter(None, self._statuses)))
