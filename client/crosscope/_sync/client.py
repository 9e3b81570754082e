# Written by client/generate.py from _async/client.py. Do not edit.
"""A client of one server, which everything else starts from."""

import os
from types import TracebackType
from typing import Any, Self

from crosscope import __version__, _decode, _decode_capabilities, _decode_looks
from crosscope._capabilities import Capabilities
from crosscope._connection import Connection, Tls, login_name
from crosscope._errors import NotFound
from crosscope._explanation import Explanation
from crosscope._looks import LookInfo
from crosscope._prompts import check_count, check_text
from crosscope._public import public
from crosscope._sync.annotations import Annotations
from crosscope._sync.crosscoder import Crosscoder, open_crosscoder
from crosscope._sync.jobs import Jobs
from crosscope._sync.looks import Look
from crosscope._sync.pair import Pair
from crosscope._sync.transport import Transport
from crosscope_proto.v1 import latents_pb2, looks_pb2, system_pb2
from crosscope_proto.v1.latents_pb2_grpc import LatentsStub
from crosscope_proto.v1.looks_pb2_grpc import LooksStub
from crosscope_proto.v1.system_pb2_grpc import SystemStub

_DEFAULT_ADDRESS = "localhost:50051"


@public
class Client:
    """A client of one crosscope server.

        with Client() as client:
            crosscoder = client.crosscoder("demo")
            print(crosscoder.latents(order_by="-rel_norm"))

    The client connects when it is first used; `with` or `close` closes it. A call that can safely be repeated is
    repeated when the connection breaks. Every call ends after `timeout_s`, and one that generates, attributes or
    contrasts after ten times as long; every error is a CrosscopeError.
    """

    jobs: Jobs
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
        self._transport = Transport(Connection(chosen, secret, timeout_s, tls, writer))
        self.jobs = Jobs(self._transport)

    @property
    def address(self) -> str:
        """Address of the server."""
        return self._transport.address

    def __reduce__(self) -> tuple[object, ...]:
        made = self._transport.connection
        return Client, (made.address, made.token, made.timeout_s, made.tls, made.author)

    def crosscoders(self) -> list[Crosscoder]:
        """All published crosscoders, newest first, each bound to its current version.

        A crosscoder that the server cannot read comes last: `info.broken` says why, and every call about it fails.
        """
        stub = self._transport.stub(LatentsStub)
        reply = self._transport.unary(stub.ListCrosscoders, latents_pb2.ListCrosscodersRequest())
        return [Crosscoder(self._transport, _decode.crosscoder_info(message)) for message in reply.crosscoders]

    def crosscoder(self, name: str, version: str | None = None) -> Crosscoder:
        """One version of a crosscoder: the one with the id `version`, else the current one.

        The handle keeps this version, whatever is published later. Raises NotFound, or VersionGone.
        """
        return open_crosscoder(self._transport, name, version)

    def annotations(self, name: str, version: str | None = None) -> Annotations:
        """The words about a crosscoder, by its name alone: `export` gives them even if it is published no longer."""
        return Annotations(self._transport, check_text(name, "name"), version)

    def looks(self) -> list[LookInfo]:
        """All looks, newest first. One that the server cannot read comes last: `broken` says why."""
        stub = self._transport.stub(LooksStub)
        reply = self._transport.unary(stub.ListLooks, looks_pb2.ListLooksRequest())
        return [_decode_looks.look_info(message) for message in reply.looks]

    def look(self, name: str, *, max_findings: int | None = None) -> Look:
        """One look, with its largest findings, all by default. Raises NotFound."""
        request = looks_pb2.GetLookRequest(name=check_text(name, "name"))
        if max_findings is not None:
            request.max_findings = check_count(max_findings, "max_findings")
        reply = self._transport.unary(self._transport.stub(LooksStub).GetLook, request)
        return Look(**_decode_looks.look_fields(reply))

    def pair(self, name: str) -> Pair:
        """A pair of models below the server's home, without a crosscoder. Its calls raise NotFound if there is none."""
        return Pair(self._transport, name)

    def explain(self, crosscoder: str, text: str | None = None, **options: Any) -> Explanation:
        """Why both models differ on a prompt: `explain` of the crosscoder's current version, which has the options."""
        return (self.crosscoder(crosscoder)).explain(text, **options)

    def health(self) -> dict[str, bool]:
        """Which services answer: latents (browsing), prompts (needs an inference worker), jobs (needs the queue)."""
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        stub = self._transport.stub(health_pb2_grpc.HealthStub)

        def serves(service: str) -> bool:
            try:
                reply = self._transport.unary(stub.Check, health_pb2.HealthCheckRequest(service=service))
            except NotFound:
                return False
            return reply.status == health_pb2.HealthCheckResponse.SERVING

        return {name: serves(f"crosscope.v1.{name.capitalize()}") for name in ("latents", "prompts", "jobs")}

    def capabilities(self) -> Capabilities:
        """What can be asked of this server now, and how its parts are; `problems` says what is wrong and what to do."""
        request = system_pb2.GetCapabilitiesRequest(client_version=__version__)
        reply = self._transport.unary(self._transport.stub(SystemStub).GetCapabilities, request)
        return _decode_capabilities.capabilities(reply)

    def close(self) -> None:
        """Closes the connection. Closing twice does nothing."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.address!r})"
