"""Decides who makes a call, and whether they may: token, brake, role."""

from crosscope_proto.access import digest
from crosscope_server.access.brake import Brake, is_told
from crosscope_server.access.methods import Rule
from crosscope_server.access.store import Tokens
from crosscope_server.callers import Caller, Role
from crosscope_server.errors import NoToken, PermissionDenied

_HOW = 'send one as the metadata "authorization: Bearer TOKEN"'
_MAX_PROVEN = 100_000


class Gate:
    """Admits calls. For one event loop."""

    def __init__(self, tokens: Tokens | None) -> None:
        """Without tokens anybody may do everything, under the address of the connection."""
        self._tokens = tokens
        self._brake = Brake()
        self._proven: set[str] = set()
        """Hashes of tokens that were right once. They never wait, whoever else guesses at their host."""

    async def admit(self, authorization: bytes, peer: str, rule: Rule) -> Caller:
        """The caller. Raises NoToken, PermissionDenied or Overloaded.

        `authorization` is the call's metadata of that name, empty if it has none.
        """
        if self._tokens is None:
            return Caller(peer)
        if not authorization:
            raise NoToken(f"this server asks for a token: {_HOW}")
        scheme, _, token = authorization.partition(b" ")
        caller = await self._known(token if scheme.lower() == b"bearer" else b"", host_of(peer))
        if rule.role not in caller.roles and Role.ADMIN not in caller.roles:
            has = ", ".join(sorted(caller.roles))
            raise PermissionDenied(
                f"this call needs the role {rule.role.value!r}, but the token {caller.name!r} has {has}; ask whoever "
                "runs this server for a token with that role",
                caller.name,
            )
        return caller

    async def _known(self, token: bytes, host: str) -> Caller:
        assert self._tokens is not None
        hashed = digest(token)
        if hashed not in self._proven:
            await self._brake.before(host)
        known = self._tokens.find(hashed) if token else None
        if known is None:
            self._proven.discard(hashed)
            count = self._brake.wrong(host)
            sentence = f"this server does not know that token (it may have been revoked): {_HOW}"
            raise NoToken(sentence, told=count if is_told(count) else 0)
        if known.expired:
            raise NoToken(f"the token {known.caller.name!r} has expired; ask whoever runs this server for a new one")
        if len(self._proven) >= _MAX_PROVEN:
            self._proven.clear()
        self._proven.add(hashed)
        return known.caller


def host_of(peer: str) -> str:
    """The host of a gRPC peer such as "ipv4:127.0.0.1:4711"; all of a Unix socket's callers are one host."""
    kind, _, rest = peer.partition(":")
    return f"{kind}:{rest.rpartition(':')[0]}" if kind in ("ipv4", "ipv6") else kind
