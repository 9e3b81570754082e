"""Why a connection does not stand: a sentence with what to do, from gRPC's own words. Knows no calls."""

import re

from crosscope._errors import CrosscopeError, Unauthorized, Unavailable

NOT_REACHED = (
    "failed to connect to all addresses",
    "errors resolving",
    "DNS resolution failed",
    "Name resolution failed",
)
"""How gRPC's own errors of calls begin that were never sent."""
_SILENT = re.compile(r"timed out before receiving SETTINGS")
"""A connection that was accepted, by the system for a process that does nothing."""
_CLOSED = re.compile(r"Socket closed|Connection reset by peer")
_TLS = re.compile(r"ssl|tls|certificate|handshake|Hostname Verification", re.IGNORECASE)
_GIVE_CA = "CROSSCOPE_TLS_CA, or Client(tls=Tls(ca=…))"
_TLS_PROBLEMS = {
    r"WRONG_VERSION_NUMBER|HTTP_REQUEST": (
        "does not speak TLS, and this client does: write the address without grpcs://, and leave tls out; or have the "
        "server started with CROSSCOPE_SERVER_TLS_CERT"
    ),
    r"certificate has expired": (
        "has a certificate that has expired: whoever runs it makes a new one with `crosscope certs`, and starts it anew"
    ),
    r"certificate is not yet valid": (
        "has a certificate that is not valid yet: the clock of this machine or of the one that made it is wrong"
    ),
    r"issuer certificate|self.signed certificate|certificate signature failure": (
        "has a certificate of an authority that this client does not know: give the server's ca.pem, which "
        f"`crosscope certs` made, with {_GIVE_CA}"
    ),
    r"Hostname Verification": (
        "has a certificate for other names: write the address as the certificate has it, or have one made for this "
        "name with `crosscope certs DIR --host NAME`"
    ),
}
"""gRPC's words for what is wrong with TLS, and the rest of the sentence that begins with the address."""


def no_server(address: str, details: str, *, has_tls: bool) -> CrosscopeError:
    """The exception for a connection that failed; `has_tls` says whether this client speaks TLS."""
    last = details.rsplit(": ", 1)[-1].removesuffix("]")
    # The details repeat the address, whose name may say "tls" by chance.
    said = details.replace(address.removeprefix("unix:").removeprefix("//"), "")
    if _TLS.search(said):
        for words, sentence in _TLS_PROBLEMS.items():
            if re.search(words, said):
                return Unauthorized(f"the server at {address} {sentence}")
        return Unauthorized(f"{address} and this client do not agree about TLS: {details}; check Client(tls=Tls(…))")
    if _SILENT.search(details):
        return Unavailable(
            f"what listens at {address} does not answer; if it is the server, it hangs: end its process with kill -9, "
            f"and start it again ({last})"
        )
    if details.startswith(NOT_REACHED) and _CLOSED.search(said) and not address.startswith("unix:"):
        return Unavailable(f"{_closed(address, has_tls=has_tls)} ({last})")
    return Unavailable(
        f"no server answers at {address}; start one with `crosscope up`, or give the address of another with "
        f"--address, Client(address) or CROSSCOPE_ADDRESS ({last})"
    )


def _closed(address: str, *, has_tls: bool) -> str:
    if has_tls:
        return (
            f"what listens at {address} closed the connection while TLS was agreed: it may ask for a certificate of "
            "this client, or not know the one it has: give yours with CROSSCOPE_TLS_CERT and CROSSCOPE_TLS_KEY, or "
            "Client(tls=Tls(certificate=…, key=…)); `crosscope certs DIR --client NAME` makes one"
        )
    return (
        f"what listens at {address} closed the connection at once: it may speak TLS, and this client does not: write "
        f"grpcs://{address}, and give the server's ca.pem with {_GIVE_CA}"
    )
