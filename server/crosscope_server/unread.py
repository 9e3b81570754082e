"""Room for results that nobody has read yet, of all streams together. Knows nothing about what a result is."""

import asyncio
from collections.abc import Callable

from crosscope_server.errors import Overloaded
from crosscope_server.refusals import Reason, Refused

PATIENCE_S = 5.0
"""How long a stream may keep others waiting for room without reading."""
_LOOK_EVERY_S = 1.0
_FIRST_GUESS = 32
"""Before any result is known, one is taken for this part of the room."""
_MEMORY = 0.9


class Stream:
    """What one stream holds."""

    def __init__(self, unread: "Unread", forget: Callable[[], None]) -> None:
        self._unread = unread
        self._forget = forget
        self._task = asyncio.current_task()
        """What hands the results on."""
        self.num_bytes = 0
        self._reserved: list[int] = []
        """Room for each result that is worked on."""
        self.handing_bytes = 0
        """Those of them that are on their way to the reader."""
        self.read_at = asyncio.get_running_loop().time()
        """When its reader last took a result."""
        self.error: Overloaded | None = None
        """Why it was cut off."""

    async def room(self) -> None:
        """Waits until the stream may take more on: as `Unread.has_room` says."""
        while not self._unread.has_room(self) and self.error is None:
            await self._unread.changed()

    async def take(self) -> None:
        """Waits for room for one more result, and reserves it; `hold` says how large it is."""
        await self.room()
        if self.error is None:
            self._reserved.append(self._unread.reserve())

    @property
    def holds(self) -> bool:
        """Whether it has results that are not read, or are worked on."""
        return bool(self.num_bytes or self._reserved)

    def hold(self, num_bytes: int) -> None:
        """Counts a result that waits to be read; it may cut off this stream or another."""
        if self.error is None:
            self._unread.known(self._reserved.pop() if self._reserved else 0, num_bytes)
            if not self.num_bytes:
                self.read_at = asyncio.get_running_loop().time()
            self.num_bytes += num_bytes
            self._unread.grown(num_bytes)

    def hand(self, num_bytes: int) -> None:
        """Says that a result is on its way to the reader."""
        self.handing_bytes = num_bytes

    def handed(self) -> None:
        """Counts that result as read."""
        self.read_at = asyncio.get_running_loop().time()
        self._let_go(min(self.handing_bytes, self.num_bytes))
        self.handing_bytes = 0

    def cut(self, error: Overloaded) -> None:
        """Ends the stream: its results are forgotten, and its reader gets the error behind what is on its way."""
        self.error = error
        self._leave()
        self._let_go(self.num_bytes - self.handing_bytes)
        self._forget()

    def cancel(self) -> None:
        """Breaks the stream off, with what is on its way."""
        if self._task is not None:
            self._task.cancel()

    def close(self) -> None:
        """Says that the stream has ended."""
        self._leave()
        self._let_go(self.num_bytes)
        self._unread.streams.discard(self)

    def _leave(self) -> None:
        """Gives back what is reserved."""
        self._unread.num_reserved -= sum(self._reserved)
        self._reserved.clear()

    def _let_go(self, num_bytes: int) -> None:
        self.num_bytes -= num_bytes
        self._unread.shrunk(num_bytes)


class Unread:
    """All streams. For one event loop."""

    def __init__(self, most_bytes: int, refused: Refused) -> None:
        """Beyond `most_bytes` the stream that holds most is cut off; `refused` counts these."""
        self._most_bytes = most_bytes
        self._refused = refused
        self._waiting: list[asyncio.Future[None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self.streams: set[Stream] = set()
        self.num_bytes = 0
        """Bytes that all streams hold."""
        self.num_reserved = 0
        """Bytes of results that are worked on, as far as can be said before."""
        self._typical = most_bytes // _FIRST_GUESS

    def begin(self, forget: Callable[[], None]) -> Stream:
        """A new stream of the current task; `close` it. `forget` drops its results."""
        stream = Stream(self, forget)
        self.streams.add(stream)
        return stream

    def has_room(self, stream: Stream) -> bool:
        """Whether a stream may take more on: one that holds something while half of the room is free, others longer.

        What is worked on counts too: hundreds of streams that begin at once would else fill the room many times.
        """
        return self.num_bytes + self.num_reserved < (self._most_bytes / 2 if stream.holds else self._most_bytes)

    def reserve(self) -> int:
        """Reserves room for a result, as large as results were lately; returns the bytes."""
        self.num_reserved += self._typical
        return self._typical

    def known(self, reserved: int, num_bytes: int) -> None:
        """Takes back what was reserved for a result whose size is known now."""
        self._typical = max(num_bytes, round(_MEMORY * self._typical + (1 - _MEMORY) * num_bytes))
        self.num_reserved -= reserved
        if num_bytes < reserved:
            self._tell()

    async def changed(self) -> None:
        """Waits until a result was read. Streams that read nothing meanwhile are broken off."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_EVERY_S, self._break_off)
        self._waiting.append(waits := asyncio.get_running_loop().create_future())
        await waits

    def grown(self, num_bytes: int) -> None:
        """Counts what a stream holds more."""
        self.num_bytes += num_bytes
        while self.num_bytes > self._most_bytes:
            largest = max(self.streams, key=lambda each: each.num_bytes - each.handing_bytes)
            if largest.num_bytes == largest.handing_bytes:
                return
            sentence = (
                f"{largest.num_bytes} bytes of this stream's replies waited to be read, the most of all streams, which "
                f"together may leave {self._most_bytes} bytes unread; read faster, or ask for less with top_k"
            )
            self._refused.add(Reason.UNREAD)
            largest.cut(Overloaded(sentence, retry_after_s=1.0))

    def shrunk(self, num_bytes: int) -> None:
        """Counts what a stream holds less."""
        self.num_bytes -= num_bytes
        self._tell()

    def _tell(self) -> None:
        """Wakes who waits for room."""
        for waits in self._waiting:
            if not waits.done():
                waits.set_result(None)
        self._waiting.clear()

    def _break_off(self) -> None:
        """Breaks off streams that hold something and have read nothing for long, while others wait for room."""
        self._timer = None
        if not any(not waits.done() for waits in self._waiting):
            return
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(_LOOK_EVERY_S, self._break_off)
        for stream in self.streams if 2 * self.num_bytes >= self._most_bytes else ():
            if stream.num_bytes and loop.time() - stream.read_at > PATIENCE_S:
                self._refused.add(Reason.UNREAD)
                stream.cancel()
