# Written by client/generate.py from _async/handle.py. Do not edit.
"""A handle of one version of a published crosscoder. Knows no call."""

from typing import Any

from crosscope import _cards
from crosscope._errors import VersionGone
from crosscope._sync.transport import Transport
from crosscope._types import CrosscoderInfo
from crosscope_proto.v1.latents_pb2_grpc import LatentsStub
from crosscope_proto.v1.prompts_pb2_grpc import PromptsStub


class Handle:
    """The name, the version and the stubs that every call about a crosscoder uses."""

    info: CrosscoderInfo
    """Its card, as it was when this handle was made."""

    def __init__(self, transport: Transport, info: CrosscoderInfo) -> None:
        self.info = info
        self._transport = transport

    @property
    def name(self) -> str:
        """Its name."""
        return self.info.name

    @property
    def version_id(self) -> str:
        """The version that every call is answered from."""
        return self.info.version_id

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self._transport, self.info)

    @property
    def _version(self) -> str | None:
        """The version that requests name; None if the server did not say which version this is."""
        return self.version_id or None

    def _checked(self, version_id: str) -> str:
        """The version that a reply names. Raises VersionGone for another one, from which an old server may answer."""
        check_version(self.name, self._version, version_id, self._transport.address)
        return version_id

    @property
    def _source(self) -> dict[str, Any]:
        """The fields of a request that name what is asked."""
        return {"crosscoder": self.name, "version_id": self._version}

    @property
    def _latents(self):
        return self._transport.stub(LatentsStub)

    @property
    def _prompts(self):
        return self._transport.stub(PromptsStub)

    def __repr__(self) -> str:
        return _cards.crosscoder_line(self.info)

    def __str__(self) -> str:
        return _cards.crosscoder_card(self.info)

    def _repr_html_(self) -> str:
        return _cards.crosscoder_html(self.info)


def check_version(name: str, wanted: str | None, found: str, address: str) -> None:
    """Raises VersionGone if a version was asked for and another one answered."""
    if wanted and found and found != wanted:
        raise VersionGone(
            f"{address} was asked for version {wanted} of {name} and answered from {found}: its software is older than "
            "this client's and knows the current version only; take a new handle with client.crosscoder(name)",
            found,
        )
