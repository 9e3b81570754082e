"""How much the home may hold: beyond that no job is accepted. Measures the home in a thread, once a minute at most."""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

from crosscope_proto.folders import bytes_of
from crosscope_server.errors import Conflict

MEASURED_EVERY_S = 60.0
_PATIENCE_S = 0.5
"""How long somebody who only wants to know waits for a measurement; a home on a slow disk takes minutes."""


@dataclass(frozen=True)
class Held:
    """What a home holds, and may hold."""

    held_bytes: int
    max_bytes: int

    @property
    def left_bytes(self) -> int:
        """What may still be added; 0 if nothing."""
        return max(0, self.max_bytes - self.held_bytes)


class Quota:
    """The size of a home against its limit, for one event loop."""

    def __init__(self, home: Path, max_bytes: int | None) -> None:
        """Without `max_bytes` the home may hold anything, and is never measured."""
        self._home, self._max_bytes = home, max_bytes
        self._held: Held | None = None
        self._measured_at = -MEASURED_EVERY_S
        self._measuring: asyncio.Task[None] | None = None

    async def held(self) -> Held | None:
        """What the home held when it was last measured; None without a limit, or if that takes long the first time."""
        if (measuring := self._measure()) is not None:
            await asyncio.wait({measuring}, timeout=_PATIENCE_S)
        return self._held

    async def check(self) -> None:
        """Raises Conflict if the home holds as much as it may, as of a minute ago at most."""
        if (measuring := self._measure()) is not None:
            await asyncio.shield(measuring)
        found = self._held
        if found is not None and not found.left_bytes:
            raise Conflict(
                f"the home holds {_gb(found.held_bytes)} of the {_gb(found.max_bytes)} that it may "
                "(CROSSCOPE_SERVER_HOME_GB), so no job is accepted: `crosscope gc --dry-run` says what is of no use "
                f"any more; the home is measured again after {MEASURED_EVERY_S:.0f} s"
            )

    def _measure(self) -> asyncio.Task[None] | None:
        """The measurement that runs, which is begun if the last one is too old; None if none has to be waited for."""
        if self._max_bytes is None or time.monotonic() - self._measured_at < MEASURED_EVERY_S:
            return None
        if self._measuring is None:
            self._measuring = asyncio.create_task(self._look(self._max_bytes))
        return self._measuring

    async def _look(self, max_bytes: int) -> None:
        try:
            self._held = Held(await asyncio.to_thread(bytes_of, self._home), max_bytes)
            self._measured_at = time.monotonic()
        finally:
            self._measuring = None


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.4g} GB"
