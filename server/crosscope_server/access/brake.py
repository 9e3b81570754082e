"""Slows down guesses of tokens, each host by itself. Knows no tokens.

Time and memory are bounded: a guess beyond FREE waits for its turn, at most MAX_WAITING of a host wait, and of the
hosts that guessed at most MAX_HOSTS are remembered.
"""

import asyncio
import logging
from collections import OrderedDict
from dataclasses import dataclass

from crosscope_server.errors import Overloaded

FREE = 5
"""Wrong guesses of a host that cost nothing."""
FIRST_DELAY_S, MAX_DELAY_S = 0.1, 2.0
"""The pause before the first guess that costs something; each further one doubles it, up to the second."""
MAX_WAITING = 8
MAX_HOSTS = 10_000
FORGIVEN_AFTER_S = 600.0
"""A host that has not guessed wrong for so long begins anew."""

log = logging.getLogger(__name__)


@dataclass
class _Host:
    wrong: int = 0
    last_at: float = 0.0
    next_at: float = 0.0
    """When the last of the guesses that wait will be looked at."""
    waiting: int = 0


class Brake:
    """The guesses of all hosts. For one event loop."""

    def __init__(self) -> None:
        self._hosts: OrderedDict[str, _Host] = OrderedDict()

    async def before(self, host: str) -> None:
        """Waits until a host may have a guess looked at. Raises Overloaded if too many of its guesses wait."""
        found = self._hosts.get(host)
        now = asyncio.get_running_loop().time()
        if found is None or now - found.last_at > FORGIVEN_AFTER_S:
            self._hosts.pop(host, None)
            return
        if found.wrong < FREE:
            return
        # The bound is for guesses that were given up while they waited: they must not keep others out for long.
        next_at = min(max(found.next_at, now) + self._delay(found.wrong), now + MAX_WAITING * MAX_DELAY_S)
        wait_s = next_at - now
        if found.waiting >= MAX_WAITING:
            sentence = f"{found.wrong} wrong tokens came from your host: it has to wait {wait_s:.1f} s for its next try"
            raise Overloaded(sentence, retry_after_s=wait_s)
        found.next_at = next_at
        found.waiting += 1
        try:
            await asyncio.sleep(wait_s)
        finally:
            found.waiting -= 1

    def wrong(self, host: str) -> int:
        """Counts a wrong guess; returns how many the host has made. Logs the fifth, the tenth, the twentieth, …"""
        found = self._hosts.setdefault(host, _Host())
        self._hosts.move_to_end(host)
        while len(self._hosts) > MAX_HOSTS:
            self._hosts.popitem(last=False)
        found.wrong += 1
        found.last_at = asyncio.get_running_loop().time()
        if is_told(found.wrong):
            log.warning("wrong tokens", extra={"host": host, "count": found.wrong})
        return found.wrong

    @staticmethod
    def _delay(wrong: int) -> float:
        return min(FIRST_DELAY_S * 2.0 ** min(wrong - FREE, 30), MAX_DELAY_S)


def is_told(count: int) -> bool:
    """Whether a line is written at this count: 5, 10, 20, 40, …"""
    return count % FREE == 0 and (count // FREE).bit_count() == 1
