"""Whether the event loop and the device's thread of the inference process move. Does not know what they do.

Each second a question that does nothing goes through the device's thread, behind whatever runs there. While it is not
answered in time the process says that it does not serve, so that the server asks another; if the thread stays stuck,
for instance in a driver, the supervisor starts the process anew.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor

from crosscope_proto.beats import EVERY_S, Beats

LOOP_S = 30.0
"""The event loop may stand still for this long: reading a model's largest tensor holds the interpreter."""
LOAD_S = 600.0
"""The device's thread may take this long while a model is loaded: it compiles kernels and records runs."""
STUCK_ON_GPU_S, STUCK_ON_CPU_S = 30.0, 600.0
"""The device's thread may take this long for one batch. A full batch of a model of 2 B takes minutes on few cores."""
MORE_S = 15.0
"""How much longer a stuck thread has until the process counts as hung."""

log = logging.getLogger(__name__)


class Pulse:
    """Beats for both, and tells of a device's thread that is stuck or moves again."""

    def __init__(
        self,
        device_thread: Executor,
        stuck_after_s: float,
        is_loading: Callable[[], bool],
        on_change: Callable[[bool], Awaitable[None]],
        beats: Beats,
    ) -> None:
        """`on_change` is told whether the device's thread moves, each time that this changes."""
        self._device_thread, self._stuck_after_s, self._is_loading = device_thread, stuck_after_s, is_loading
        self._on_change, self._beats = on_change, beats

    async def run(self) -> None:
        """Beats for ever."""
        is_stuck = False
        while True:
            moves = await self._moves_within(float("inf") if is_stuck else self._stuck_after_s)
            if moves is is_stuck:
                is_stuck = not moves
                sentence = "the device's thread is stuck" if is_stuck else "the device's thread moves again"
                log.log(logging.ERROR if is_stuck else logging.INFO, sentence)
                await self._on_change(moves)
            await asyncio.sleep(EVERY_S)

    async def _moves_within(self, seconds: float) -> bool:
        """Whether a question through the device's thread is answered in time; the loop beats meanwhile."""
        question = asyncio.get_running_loop().run_in_executor(self._device_thread, _nothing)
        waited_s, promised_s = 0.0, 0.0
        while True:
            self._beats("event loop", LOOP_S)
            allowed_s = max(self._stuck_after_s, LOAD_S if self._is_loading() else 0.0)
            if allowed_s > promised_s:
                promised_s = allowed_s
                self._beats("device's thread", allowed_s + MORE_S)
            done, _ = await asyncio.wait([question], timeout=EVERY_S)
            if done:
                return True
            waited_s += EVERY_S
            if waited_s >= max(seconds, allowed_s):
                return False


def _nothing() -> None:
    """Takes no time on the device's thread."""
