"""The protocol of what gives a training its activations."""

from collections.abc import Generator
from typing import Any, Protocol

from torch import Tensor


class ActivationSource(Protocol):
    """A stream of activations that can go on from a saved state."""

    def blocks(self) -> Generator[Tensor]:
        """Yields `[token, both]` float32; call once, and close it when no more are wanted."""
        ...

    def fraction(self) -> float:
        """Share of all passes that has been read, 0 to 1; an estimate where the length is unknown."""
        ...

    def state(self) -> dict[str, Any]:
        """Plain values that say where the stream stands."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state; called before `blocks`."""
        ...
