"""Ends streams whose token is refused meanwhile: a stream may go on for as long as its caller likes."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from crosscope_server.access.gate import Gate
from crosscope_server.errors import NoToken

LOOK_EVERY_S = 0.5


class Streams:
    """The streams under way. For one event loop."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._tokens: dict[asyncio.Task[Any], str] = {}
        """The hash of each stream's token, by the task that serves it."""
        self._refused: dict[asyncio.Task[Any], NoToken] = {}
        self._timer: asyncio.TimerHandle | None = None

    @contextlib.asynccontextmanager
    async def watched(self, hashed: str | None) -> AsyncGenerator[None]:
        """Breaks off what is within once the token with this hash is refused. Raises NoToken then."""
        task = asyncio.current_task()
        if hashed is None or task is None:
            yield
            return
        self._tokens[task] = hashed
        self._timer = self._timer or asyncio.get_running_loop().call_later(LOOK_EVERY_S, self._look)
        try:
            yield
        except asyncio.CancelledError:
            if (refusal := self._refused.get(task)) is None:
                raise
            task.uncancel()
            raise refusal from None
        finally:
            self._tokens.pop(task, None)
            self._refused.pop(task, None)

    def _look(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(LOOK_EVERY_S, self._look) if self._tokens else None
        for task, hashed in self._tokens.items():
            if task not in self._refused and (refusal := self._gate.refusal(hashed)) is not None:
                self._refused[task] = refusal
                task.cancel()
