"""The SDK's default retries where processes end, many prompts beside other callers, and conversations of a mebibyte.

Server and worker are processes of their own, with a random pair of the demo's shape.
`python tests/stress/rate.py [ROW …]` prints the rows.
"""

import asyncio
import contextlib
import os
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from fixtures_server import run_cache

from bench import callers
from crosscope import AsyncClient, AsyncCrosscoder, CrosscopeError, Encoding, Unavailable
from tests.stress.rows import minutes, say

SECONDS = min(60.0, max(6.0, 12 * minutes()))
"""Length of each measurement."""
Part = str
COMMANDS: dict[Part, tuple[str, ...]] = {"worker": ("crosscope_worker", "serve"), "server": ("crosscope_server",)}


@dataclass
class System:
    """A server and its worker, which may be ended and started again."""

    home: Path
    processes: dict[Part, asyncio.subprocess.Process] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """Where the server is."""
        return f"unix:{self.home}/front.sock"

    async def start(self, part: Part) -> None:
        """Starts a process; does not wait for it."""
        environment = os.environ | {
            "CROSSCOPE_HOME": str(self.home),
            "CROSSCOPE_SERVER_ALLOW_ANYONE": "true",
            "CROSSCOPE_SERVER_LISTEN": self.address,
            "CROSSCOPE_SERVER_WORKERS": f"unix:{self.home}/worker.sock",
            "CROSSCOPE_SERVER_CACHE_URL": f"unix://{self.home}/cache.sock",
            "CROSSCOPE_WORKER_LISTEN": f"unix:{self.home}/worker.sock",
        }
        with (self.home / f"{part}.log").open("ab") as log:
            command = sys.executable, "-m", *COMMANDS[part]
            self.processes[part] = await asyncio.create_subprocess_exec(*command, env=environment, stderr=log)

    async def end(self, part: Part, how: signal.Signals = signal.SIGTERM) -> None:
        """Ends a process."""
        with contextlib.suppress(ProcessLookupError):
            self.processes[part].send_signal(how)
        await self.processes[part].wait()


@contextlib.asynccontextmanager
async def running() -> AsyncIterator[tuple[System, AsyncCrosscoder]]:
    """A system that answers prompts, and a client's crosscoder."""
    async with contextlib.AsyncExitStack() as stack:
        system = System(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rate-"))))
        callers.write_home(system.home, callers.FULL.pair)
        await stack.enter_async_context(run_cache(system.home / "cache.sock"))
        for part in COMMANDS:
            await system.start(part)
            stack.push_async_callback(lambda part=part: system.end(part))
        client = await stack.enter_async_context(AsyncClient(system.address))
        yield system, await answering(client)


async def answering(client: AsyncClient) -> AsyncCrosscoder:
    """The crosscoder, once a prompt is answered."""
    ends_at = time.monotonic() + 300
    while True:
        try:
            demo = await client.crosscoder("demo")
            await demo.encode("word1")
            return demo
        except Unavailable:
            if time.monotonic() > ends_at:
                raise
            await asyncio.sleep(0.2)


class Load:
    """Callers that ask for new prompts until they are told to stop: how long each answer took, and what failed."""

    def __init__(self, demo: AsyncCrosscoder, num_callers: int) -> None:
        self.took_s: list[float] = []
        self.failed: Counter[str] = Counter()
        self._demo = demo
        self._is_over = False
        self._tasks = [asyncio.create_task(self._ask(who)) for who in range(num_callers)]

    async def _ask(self, who: int) -> None:
        number = 0
        while not self._is_over:
            number += 1
            text = " ".join(f"word{1 + (who * 911 + number * (k + 1)) % 1700}" for k in range(64))
            started = time.monotonic()
            try:
                await self._demo.encode(text)
            except CrosscopeError as error:
                self.failed[f"{type(error).__name__}: {error}"[:100]] += 1
            self.took_s.append(time.monotonic() - started)

    async def stop(self) -> None:
        """Waits for the last answers."""
        self._is_over = True
        await asyncio.gather(*self._tasks)


def tell(row: str, load: Load) -> None:
    """The row of a load in which no call may fail."""
    num_failed, longest = load.failed.total(), max(load.took_s)
    unit = f"failed of {len(load.took_s)}; longest {longest:.1f} s {dict(load.failed) or ''}".strip()
    say(row, num_failed, unit, "0", ok=num_failed == 0 and len(load.took_s) > 0)


async def rolling_restart() -> None:
    """Server and worker are ended in turn by SIGTERM and started again, under load."""
    async with running() as (system, demo):
        load = Load(demo, 16)
        for part in COMMANDS:
            await asyncio.sleep(SECONDS / 3)
            await system.end(part)
            await system.start(part)
        await answering_again(load)
        tell("rolling restart of worker and server", load)


async def killed_worker() -> None:
    """The only worker is killed under load, and started again."""
    async with running() as (system, demo):
        load = Load(demo, 16)
        await asyncio.sleep(SECONDS / 3)
        await system.end("worker", signal.SIGKILL)
        await system.start("worker")
        await answering_again(load)
        tell("kill -9 of the only worker", load)


async def answering_again(load: Load) -> None:
    """Waits until answers come again, and ends the load."""
    before, ends_at = len(load.took_s), time.monotonic() + 120
    while len(load.took_s) < before + 64 and time.monotonic() < ends_at:
        await asyncio.sleep(0.1)
    await load.stop()


async def many_beside_others() -> None:
    """`encode_many` of 2 000 prompts, fewer in a short run, beside 48 callers."""
    async with running() as (_, demo):
        load, total = Load(demo, 48), min(2000, round(33 * SECONDS))
        prompts = (f"word7 word{number % 1700} word{number // 1700 + 8}" for number in range(total))
        found = [each async for each in demo.encode_many(prompts, return_errors=True)]
        await load.stop()
        answered = sum(isinstance(each, Encoding) for each in found)
        say("encode_many beside 48 others", answered, f"answered of {total}", str(total), ok=answered == total)
        tell("48 others beside encode_many", load)


async def mebibytes() -> None:
    """Eight callers ask for tokens of conversations of almost a mebibyte, beside two that encode."""
    async with running() as (system, demo):
        worker = psutil.Process(system.processes["worker"].pid)
        alone = Load(demo, 2)
        await asyncio.sleep(SECONDS / 2)
        await alone.stop()
        memory, over = worker.memory_info().rss, False
        messages = [{"role": "user", "content": "word7 " * 40_000} for _ in range(4)]

        async def hostile() -> Counter[str]:
            outcomes: Counter[str] = Counter()
            while not over:
                try:
                    await demo.tokenize(messages=messages)
                    outcomes["answered"] += 1
                except CrosscopeError as error:
                    outcomes[type(error).__name__] += 1
            return outcomes

        asking = [asyncio.create_task(hostile()) for _ in range(8)]
        beside = Load(demo, 2)
        await asyncio.sleep(SECONDS / 2)
        grown = worker.memory_info().rss - memory
        await beside.stop()
        over = True
        outcomes = sum(await asyncio.gather(*asking), Counter[str]())
        p99 = [1000 * statistics.quantiles(load.took_s, n=100)[-1] for load in (alone, beside)]
        more = p99[1] - p99[0]
        say(
            "1 MiB conversations: others' p99 beside 8",
            more,
            f"ms more than alone ({dict(outcomes)})",
            "< 50",
            ok=more < 50,
        )
        say("1 MiB conversations: memory of the worker", grown / 2**20, "MB more", "< 100", ok=grown < 100 << 20)


ROWS: dict[str, Callable[[], Awaitable[Any]]] = {
    each.__name__: each for each in (rolling_restart, killed_worker, many_beside_others, mebibytes)
}

if __name__ == "__main__":
    for name in sys.argv[1:] or ROWS:
        asyncio.run(ROWS[name]())  # pyright: ignore[reportArgumentType]
