"""Ports of gRPC's addresses. gRPC takes a port modulo 65536, so a mistyped one leads to whatever listens elsewhere."""

from typing import Final

LAST_PORT: Final = 65_535
_NO_PORT: Final = ("unix:", "unix-abstract:", "vsock:")
"""How addresses begin that are not of TCP."""


def is_wrong_port(address: str, first: int = 1) -> bool:
    """Whether an address names a port of TCP that is not from `first` to LAST_PORT."""
    port = address.rpartition(":")[2]
    if address.startswith(_NO_PORT) or not (port.isascii() and port.isdigit()):
        return False
    return len(port.lstrip("0")) > len(str(LAST_PORT)) or not first <= int(port) <= LAST_PORT
