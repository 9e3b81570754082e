"""A client of one server, which everything else starts from."""

import os
from types import TracebackType
from typing import Any, Self

from crosscope import __version__, _decode, _decode_capabilities, _decode_looks
from crosscope._async.annotations import AsyncAnnotations
from crosscope._async.crosscoder import AsyncCrosscoder, open_crosscoder
from crosscope._async.jobs import AsyncJobs
from crosscope._async.looks import AsyncLook
from crosscope._async.pair import AsyncPair
from crosscope._async.transport import AsyncTransport
from crosscope._capabilities import Capabilities
from crosscope._connection import Connection, Tls, login_name
from crosscope._errors import NotFound
from crosscope._explanation import Explanation
from crosscope._looks import LookInfo
from crosscope._prompts import check_count, check_text
from crosscope._public import public
from crosscope_proto.v1 import latents_pb2, looks_pb2, system_pb2
from crosscope_proto.v1.latents_pb2_grpc import LatentsStub
from crosscope_proto.v1.looks_pb2_grpc import LooksStub
from crosscope_proto.v1.system_pb2_grpc import SystemStub

_DEFAULT_ADDRESS = "localhost:50051"


@public
class AsyncClient:
    """A client of one crosscope server.

        async with AsyncClient() as client:
            crosscoder = await client.crosscoder("demo")
            print(await crosscoder.latents(order_by="-rel_norm"))

    The client connects when it is first used; `async with` or `close` closes it. A call that can safely be repeated is
    repeated when the connection breaks. Every call ends after `timeout_s`, and one that generates, attributes or
    contrasts after ten times as long; every error is a CrosscopeError.
    """

    jobs: AsyncJobs
    """Submit, follow and cancel jobs."""

    def __init__(
        self,
        address: str | None = None,
        token: str | None = None,
        timeout_s: float = 60.0,
        tls: Tls | None = None,
        author: str | None = None,
    ) -> None:
        """`address` is host:port or unix:PATH; else CROSSCOPE_ADDRESS, else localhost:50051.

        `token` goes with every call; else CROSSCOPE_TOKEN. `tls=Tls()` encrypts. `author` is the name that changes of
        labels, notes, stars and lists are recorded with; else CROSSCOPE_AUTHOR, else the login name.
        """
        chosen = address if address is not None else os.environ.get("CROSSCOPE_ADDRESS") or _DEFAULT_ADDRESS
        secret = token if token is not None else os.environ.get("CROSSCOPE_TOKEN") or None
        writer = author if author is not None else os.environ.get("CROSSCOPE_AUTHOR") or login_name()
        self._transport = AsyncTransport(Connection(chosen, secret, timeout_s, tls, writer))
        self.jobs = AsyncJobs(self._transport)

    @property
    def address(self) -> str:
        """Address of the server."""
        return self._transport.address

    def __reduce__(self) -> tuple[object, ...]:
        made = self._transport.connection
        return AsyncClient, (made.address, made.token, made.timeout_s, made.tls, made.author)

    async def crosscoders(self) -> list[AsyncCrosscoder]:
        """All published crosscoders, newest first, each bound to its current version.

        A crosscoder that the server cannot read comes last: `info.broken` says why, and every call about it fails.
        """
        stub = self._transport.stub(LatentsStub)
        reply = await self._transport.unary(stub.ListCrosscoders, latents_pb2.ListCrosscodersRequest())
        return [AsyncCrosscoder(self._transport, _decode.crosscoder_info(message)) for message in reply.crosscoders]

    async def crosscoder(self, name: str, version: str | None = None) -> AsyncCrosscoder:
        """One version of a crosscoder: the one with the id `version`, else the current one.

        The handle keeps this version, whatever is published later. Raises NotFound, or VersionGone.
        """
        return await open_crosscoder(self._transport, name, version)

    async def annotations(self, name: str, version: str | None = None) -> AsyncAnnotations:
        """The words about a crosscoder, by its name alone: `export` gives them even if it is published no longer."""
        return AsyncAnnotations(self._transport, check_text(name, "name"), version)

    async def looks(self) -> list[LookInfo]:
        """All looks, newest first. One that the server cannot read comes last: `broken` says why."""
        stub = self._transport.stub(LooksStub)
        reply = await self._transport.unary(stub.ListLooks, looks_pb2.ListLooksRequest())
        return [_decode_looks.look_info(message) for message in reply.looks]

    async def look(self, name: str, *, max_findings: int | None = None) -> AsyncLook:
        """One look, with its largest findings, all by default. Raises NotFound."""
        request = looks_pb2.GetLookRequest(name=check_text(name, "name"))
        if max_findings is not None:
            request.max_findings = check_count(max_findings, "max_findings")
        reply = await self._transport.unary(self._transport.stub(LooksStub).GetLook, request)
        return AsyncLook(**_decode_looks.look_fields(reply))

    async def pair(self, name: str) -> AsyncPair:
        """A pair of models below the server's home, without a crosscoder. Its calls raise NotFound if there is none."""
        return AsyncPair(self._transport, name)

    async def explain(self, crosscoder: str, text: str | None = None, **options: Any) -> Explanation:
        """Why both models differ on a prompt: `explain` of the crosscoder's current version, which has the options."""
        return await (await self.crosscoder(crosscoder)).explain(text, **options)

    async def health(self) -> dict[str, bool]:
        """Which services answer: latents (browsing), prompts (needs an inference worker), jobs (needs the queue)."""
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        stub = self._transport.stub(health_pb2_grpc.HealthStub)

        async def serves(service: str) -> bool:
            try:
                reply = await self._transport.unary(stub.Check, health_pb2.HealthCheckRequest(service=service))
            except NotFound:
                return False
            return reply.status == health_pb2.HealthCheckResponse.SERVING

        return {name: await serves(f"crosscope.v1.{name.capitalize()}") for name in ("latents", "prompts", "jobs")}

    async def capabilities(self) -> Capabilities:
        """What can be asked of this server now, and how its parts are; `problems` says what is wrong and what to do."""
        request = system_pb2.GetCapabilitiesRequest(client_version=__version__)
        reply = await self._transport.unary(self._transport.stub(SystemStub).GetCapabilities, request)
        return _decode_capabilities.capabilities(reply)

    async def close(self) -> None:
        """Closes the connection. Closing twice does nothing."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncClient({self.address!r})"
