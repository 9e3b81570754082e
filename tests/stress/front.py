"""The front door under load: overload, one caller beside many, a burst, cached prompts, streams that nobody reads, and
a worker that hangs or dies. Server and workers are processes of their own; the device is one of known speed. Where a
time is measured beside many calls, the many come from a process of their own too.

`python tests/stress/front.py [ROW …]` prints the rows.
"""

import asyncio
import contextlib
import functools
import itertools
import multiprocessing
import os
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psutil
from fixtures_artefacts import write_crosscoder
from fixtures_device import run_device
from fixtures_ports import free_port
from fixtures_server import Front, details_of, run_cache
from google.rpc import error_details_pb2

from crosscope_proto.v1 import prompts_pb2, types_pb2
from tests.stress.rows import minutes, say

WORDS = " ".join(f"word{i}" for i in range(62))
SECONDS = min(60.0, max(3.0, 12 * minutes()))
"""Length of each measurement."""


@contextlib.asynccontextmanager
async def system(
    num_workers: int = 1, cache: bool = False, **device: Any
) -> AsyncGenerator[tuple[Front, int, list[Any]]]:
    """A server in its own process, its process id, and its workers' processes."""
    async with contextlib.AsyncExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="front-")))
        write_crosscoder(home, "demo", 2048)
        sockets = [home / f"worker-{i}.sock" for i in range(num_workers)]
        workers = [await stack.enter_async_context(run_device(socket, **device)) for socket in sockets]
        environment = os.environ | {
            "CROSSCOPE_HOME": str(home),
            "CROSSCOPE_SERVER_ALLOW_ANYONE": "true",
            "CROSSCOPE_SERVER_LISTEN": f"127.0.0.1:{free_port()}",
            "CROSSCOPE_SERVER_WORKERS": ",".join(f"unix:{socket}" for socket in sockets),
        }
        if cache:
            await stack.enter_async_context(run_cache(home / "cache.sock"))
            environment["CROSSCOPE_SERVER_CACHE_URL"] = f"unix://{home}/cache.sock"
        with (home / "server.log").open("wb") as log:
            server = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "crosscope_server", env=environment, stderr=log
            )
        try:
            channel = await stack.enter_async_context(connect(environment["CROSSCOPE_SERVER_LISTEN"]))
            await asyncio.wait_for(channel.channel_ready(), 30)
            front = Front(channel, environment["CROSSCOPE_SERVER_LISTEN"])
            await front.prompts_serve()
            yield front, server.pid, workers
        finally:
            server.terminate()
            await server.wait()


def connect(address: str) -> grpc.aio.Channel:
    """A connection of its own."""
    return grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])


def encode(text: str, **fields: Any) -> prompts_pb2.EncodeRequest:
    return prompts_pb2.EncodeRequest(crosscoder="demo", prompt=types_pb2.Prompt(text=f"{WORDS} {text}"), **fields)


def retry_after_s(error: grpc.aio.AioRpcError) -> float:
    """The hint of a refusal."""
    retry = error_details_pb2.RetryInfo()
    hinted = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    found = hinted and any(packed.Unpack(retry) for packed in details_of(error)[0].details)
    return retry.retry_delay.ToMilliseconds() / 1000 if found else 0.5


class Asked:
    """What calls came to."""

    def __init__(self) -> None:
        self.codes: Counter[str] = Counter()
        self.ok_ms: list[float] = []
        self.refused_ms: list[float] = []
        self.number = 0

    async def ask(self, stub: Any, timeout: float | None = 10.0, **fields: Any) -> bool:
        """Asks for a prompt that nobody has asked for before."""
        self.number += 1
        begun = time.perf_counter()
        try:
            await stub.Encode(encode(f"{id(self)} {self.number}", **fields), timeout=timeout)
        except grpc.aio.AioRpcError as error:
            self.codes[error.code().name] += 1
            self.refused_ms.append((time.perf_counter() - begun) * 1000)
            return False
        self.codes["OK"] += 1
        self.ok_ms.append((time.perf_counter() - begun) * 1000)
        return True


async def for_a_while(seconds: float, callers: int, call: Callable[[], Awaitable[Any]]) -> float:
    """Has so many callers call one after the other. Returns the seconds that it took."""
    begun = time.perf_counter()

    async def one() -> None:
        while time.perf_counter() - begun < seconds:
            await call()

    await asyncio.gather(*(one() for _ in range(callers)))
    return time.perf_counter() - begun


def p(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else values[0]


def cpu_s(pid: int) -> float:
    """The time that a process has had of a core."""
    user_s, system_s, *_ = psutil.Process(pid).cpu_times()
    return user_s + system_s


def memory_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


@dataclass
class Flood:
    """What calls from a process of their own came to."""

    codes: Counter[str] = field(default_factory=Counter[str])
    refused_ms: list[float] = field(default_factory=list[float])
    late_ms: list[float] = field(default_factory=list[float])
    """How late each call was begun: what the flood's own process adds to what it measures."""
    took_s: float = 0.0


def flood(address: str, per_s: float, callers: int, seconds: float) -> Flood:
    """So many calls a second, or, if `per_s` is 0, so many callers who ask again as soon as they are answered.

    For a process of its own. Messages are neither built nor read there, so that it takes as little as a client can.
    """
    return asyncio.run(_flood(address, per_s, callers, seconds))


async def _flood(address: str, per_s: float, callers: int, seconds: float) -> Flood:
    found, numbers = Flood(), itertools.count()
    start, end = encode("@@@@@@@@", top_k=1).SerializeToString().split(b"@@@@@@@@")

    async with connect(address) as channel:
        ask = channel.unary_unary("/crosscope.v1.Prompts/Encode", bytes, bytes)

        async def one(*, waits: bool) -> None:
            begun = time.perf_counter()
            try:
                await ask(b"%b%08d%b" % (start, next(numbers), end), timeout=10)
                found.codes["OK"] += 1
            except grpc.aio.AioRpcError as error:
                found.codes[error.code().name] += 1
                found.refused_ms.append((time.perf_counter() - begun) * 1000)
                if waits:  # as the SDK does
                    await asyncio.sleep(retry_after_s(error))

        begun = time.perf_counter()
        if not per_s:
            found.took_s = await for_a_while(seconds, callers, functools.partial(one, waits=True))
            return found
        calls = set[asyncio.Task[None]]()
        for number in range(int(per_s * seconds)):
            due = begun + number / per_s
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            found.late_ms.append((time.perf_counter() - due) * 1000)
            calls.add(task := asyncio.create_task(one(waits=False)))
            task.add_done_callback(calls.discard)
        found.took_s = time.perf_counter() - begun
        await asyncio.gather(*calls)
    return found


def flooding(address: str, seconds: float, *, per_s: float = 0.0, callers: int = 0) -> asyncio.Future[Flood]:
    """A flood that has begun, in a process of its own."""
    processes = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    return asyncio.get_running_loop().run_in_executor(processes, flood, address, per_s, callers, seconds)


async def overload() -> None:
    """Three times as many calls as the workers answer, at a steady pace."""
    async with system() as (front, pid, _):
        peak = Asked()
        took = await for_a_while(SECONDS / 3, 32, lambda: peak.ask(front.prompts))
        best, before, used_s = peak.codes["OK"] / took, memory_mb(pid), cpu_s(pid)
        asked = await flooding(front.address, SECONDS, per_s=3 * best)
        used_s, after = cpu_s(pid) - used_s, memory_mb(pid)
        goodput = asked.codes["OK"] / asked.took_s
        say("3 x overload: goodput", goodput / best, f"of {best:.0f}/s", ">= 0.9", ok=goodput >= 0.9 * best)
        codes = dict(asked.codes)
        only = codes.keys() <= {"OK", "RESOURCE_EXHAUSTED"}
        say("3 x overload: statuses", str(codes), "calls", "OK or RESOURCE_EXHAUSTED", ok=only)
        if asked.refused_ms:
            say("3 x overload: a refusal, p50", p(asked.refused_ms, 50), "ms", "", ok=True)
            say("3 x overload: a refusal, p99", (slow := p(asked.refused_ms, 99)), "ms", "< 20", ok=slow < 20)
        say("3 x overload: calls begun late, p99", p(asked.late_ms, 99), "ms", "", ok=True)
        say("3 x overload: the server's share of a core", used_s / asked.took_s, "", "", ok=True)
        say("3 x overload: memory", after - before, "MB more", "< 50", ok=after - before < 50)


async def fairness() -> None:
    """One interactive caller beside 256 calls of another."""
    async with system() as (front, _, _):
        alone, beside = Asked(), Asked()
        await for_a_while(SECONDS / 3, 1, lambda: alone.ask(front.prompts))
        others = flooding(front.address, SECONDS, callers=256)
        await asyncio.sleep(2)
        await for_a_while(SECONDS - 2, 1, lambda: beside.ask(front.prompts))
        greedy = await others
        ratio = p(beside.ok_ms, 50) / p(alone.ok_ms, 50)
        row = "interactive p50 beside 256 greedy calls"
        say(row, ratio, f"x alone ({p(alone.ok_ms, 50):.1f} ms)", "<= 3", ok=ratio <= 3)
        say("the greedy calls' rate", greedy.codes["OK"] / greedy.took_s, "/s", "", ok=True)


async def burst() -> None:
    """2 000 calls at the same moment."""
    async with system() as (front, _, _):
        asked = Asked()
        await asyncio.gather(*(asked.ask(front.prompts, 60) for _ in range(2000)))
        only = asked.codes.keys() <= {"OK", "RESOURCE_EXHAUSTED"}
        say("a burst of 2 000", str(dict(asked.codes)), "calls", "OK or RESOURCE_EXHAUSTED", ok=only)


async def cached() -> None:
    """The same prompts again and again."""
    async with system(cache=True, latents=100) as (front, _, _):
        for i in range(50):
            await front.prompts.Encode(encode(f"kept {i}"))
        await asyncio.sleep(0.5)
        for callers in (32, 200):
            hits = Counter[bool]()

            async def ask(hits: Counter[bool] = hits) -> None:
                reply = await front.prompts.Encode(encode(f"kept {hits.total() % 50}", top_k=10))
                hits[reply.cached] += 1

            took = await for_a_while(SECONDS / 2, callers, ask)
            row, share = f"cached prompts, {callers} callers", hits[True] / hits.total()
            say(f"{row}: rate", hits.total() / took, "/s", ">= 2 x before", ok=True)
            say(f"{row}: hits", share, "of calls", "1", ok=share == 1)


async def unread() -> None:
    """200 streams that do not read."""
    async with system(latents=100, batch_ms=1, prompt_ms=0.1) as (front, pid, _):
        await front.prompts.Encode(encode("first"))
        before = memory_mb(pid)
        async with contextlib.AsyncExitStack() as stack:
            channels = [await stack.enter_async_context(connect(front.address)) for _ in range(200)]
            calls = [Front(channel, front.address).prompts.EncodeStream() for channel in channels]

            async def write(which: int, call: Any) -> None:
                with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    for i in range(200):
                        request = encode(f"{WORDS * 5} {which} {i}")
                        await call.write(prompts_pb2.EncodeStreamRequest(sequence=i, request=request))

            writers = [asyncio.create_task(write(*each)) for each in enumerate(calls)]
            most = 0.0
            for _ in range(int(SECONDS)):
                await asyncio.sleep(1)
                most = max(most, memory_mb(pid) - before)
            say("200 streams that do not read", most, "MB more", "< 100", ok=most < 100)
            for each in writers:
                each.cancel()
            for call in calls:
                call.cancel()
        left, begun = most, time.perf_counter()
        while time.perf_counter() - begun < 30 and left > 50:
            await asyncio.sleep(0.5)
            left = memory_mb(pid) - before
        say("after they are gone", left, f"MB more, {time.perf_counter() - begun:.0f} s later", "< 50", ok=left < 50)


async def hung() -> None:
    """One of two workers stands still for 6 s."""
    async with system(num_workers=2) as (front, _, workers):
        asked = Asked()
        calls = asyncio.create_task(for_a_while(10, 16, lambda: asked.ask(front.prompts, 30)))
        await asyncio.sleep(2)
        workers[0].send_signal(signal.SIGSTOP)
        await asyncio.sleep(6)
        workers[0].send_signal(signal.SIGCONT)
        await calls
        longest = max([*asked.ok_ms, *asked.refused_ms]) / 1000
        say("SIGSTOP of one of two workers: longest wait", longest, "s", "<= 3", ok=longest <= 3)
        failed = asked.codes.total() - asked.codes["OK"]
        say("SIGSTOP of one of two workers: failed", failed, f"of {asked.codes.total()}", "0", ok=failed == 0)


ROWS = {each.__name__: each for each in (overload, fairness, burst, cached, unread, hung)}


if __name__ == "__main__":
    for name in sys.argv[1:] or ROWS:
        asyncio.run(ROWS[name]())
