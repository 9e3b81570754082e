"""Which addresses a recipe may have called. Knows no recipes and opens no connection."""

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit


class AddressError(ValueError):
    """An address that jobs may not call; the message says what the operator can do."""


def is_local(address: str) -> bool:
    """Whether an address is one of this machine's own."""
    host = urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_address(address: str, allowed: Sequence[str]) -> None:
    """Raises AddressError for an address that is neither of this machine nor one of `allowed`, or below it.

    Whoever may submit a recipe could otherwise have this machine call any other, and send a key there.
    """
    below = (address == each or address.startswith(f"{each}/") for each in allowed)
    if not is_local(address) and not any(below):
        there = ", ".join(allowed) or "none"
        raise AddressError(
            f"jobs may not call {address}; they may call this machine, and the addresses of "
            f"CROSSCOPE_WORKER_LABEL_ADDRESSES or --label-address of `crosscope up` ({there})"
        )
