"""Decides who makes a call, and whether they may: token, brake, role."""

import ipaddress
from collections import Counter
from typing import NamedTuple
from urllib.parse import unquote

from crosscope_proto.access import digest
from crosscope_server.access.brake import Brake, is_told
from crosscope_server.access.methods import Rule
from crosscope_server.access.store import Known, Tokens
from crosscope_server.callers import Caller, Role
from crosscope_server.errors import NoToken, PermissionDenied

_HOW = 'send one as the metadata "authorization: Bearer TOKEN"'
_MAX_PROVEN = 100_000
_ASK = "ask whoever runs this server for a new one"


class Admitted(NamedTuple):
    """A caller who may make a call."""

    caller: Caller
    token: str | None
    """The hash of their token; None where nobody needs one."""


class Gate:
    """Admits calls. For one event loop."""

    def __init__(self, tokens: Tokens | None) -> None:
        """Without tokens anybody may do everything, under the address of the connection."""
        self._tokens = tokens
        self._brake = Brake()
        self._proven: set[str] = set()
        """Hashes of tokens that were right once. They never wait, whoever else guesses at their host."""
        self._refused: Counter[str] = Counter()
        """How often a token was refused that was valid once, by its name."""

    async def admit(self, authorization: bytes, peer: str, rule: Rule) -> Admitted:
        """The caller. Raises NoToken, PermissionDenied or Overloaded.

        `authorization` is the call's metadata of that name, empty if it has none.
        """
        if self._tokens is None:
            return Admitted(Caller(peer), None)
        if not authorization:
            raise NoToken(f"this server asks for a token: {_HOW}")
        scheme, _, token = authorization.partition(b" ")
        token = token if scheme.lower() == b"bearer" else b""
        hashed = digest(token)
        caller = await self._known(token, hashed, host_of(peer))
        if rule.role not in caller.roles and Role.ADMIN not in caller.roles:
            has = ", ".join(sorted(caller.roles))
            raise PermissionDenied(
                f"this call needs the role {rule.role.value!r}, but the token {caller.name!r} has {has}; ask whoever "
                "runs this server for a token with that role",
                caller.name,
            )
        return Admitted(caller, hashed)

    def refusal(self, hashed: str) -> NoToken | None:
        """Why a token that was let in is refused now; None while it is not."""
        assert self._tokens is not None
        return self._of_old(hashed, self._tokens.get(hashed))

    def _of_old(self, hashed: str, known: Known | None) -> NoToken | None:
        """Why a token that was valid once is refused; None for one that is valid, or never was."""
        assert self._tokens is not None
        name = known.caller.name if known is not None else self._tokens.revoked(hashed)
        if name is None or (known is not None and not known.expired):
            return None
        self._refused[name] += 1
        told = self._refused[name] if self._refused[name] == 1 or is_told(self._refused[name]) else 0
        return NoToken(f"the token {name!r} {'was revoked' if known is None else 'has expired'}; {_ASK}", told, name)

    async def _known(self, token: bytes, hashed: str, host: str) -> Caller:
        assert self._tokens is not None
        if hashed not in self._proven:
            await self._brake.before(host)
        known = self._tokens.find(hashed) if token else None
        count = 0
        if known is None:
            self._proven.discard(hashed)
            count = self._brake.wrong(host)
        if (refusal := self._of_old(hashed, known)) is not None:
            raise refusal
        if known is None:
            sentence = f"this server does not know that token (it may have been revoked): {_HOW}"
            raise NoToken(sentence, told=count if is_told(count) else 0)
        if len(self._proven) >= _MAX_PROVEN:
            self._proven.clear()
        self._proven.add(hashed)
        return known.caller


def host_of(peer: str) -> str:
    """The host of a gRPC peer such as "ipv4:127.0.0.1:4711"; all of a Unix socket's callers are one host.

    Of IPv6 it is the network of 64 bits, in which one machine may take any address.
    """
    kind, _, rest = peer.partition(":")
    host = unquote(rest.rpartition(":")[0]).strip("[]")
    if kind == "ipv6":
        try:
            address = ipaddress.IPv6Address(host.partition("%")[0])
        except ValueError:
            return f"{kind}:{host}"
        if address.ipv4_mapped is not None:
            return f"ipv4:{address.ipv4_mapped}"
        return f"{kind}:{ipaddress.IPv6Network((address, 64), strict=False)}"
    return f"{kind}:{host}" if kind == "ipv4" else kind
