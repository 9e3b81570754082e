"""Calls of the server as a Python client sees them, with a worker that answers at once.

Prompts are compared with the same prompt sent to the worker directly. All other calls are compared with a health check
of the same server, the least cost of any call. The prompt has 64 tokens with 100 latents each.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2

from bench.rows import ROOT, Figure, Row
from bench.timing import Ratio
from crosscope_proto.v1 import latents_pb2, prompts_pb2, types_pb2
from crosscope_proto.worker.v1 import inference_pb2, inference_pb2_grpc

sys.path.insert(0, str(ROOT / "tests"))

import fixtures_server  # pyright: ignore[reportMissingImports]
from fixtures_artefacts import write_crosscoder  # pyright: ignore[reportMissingImports]
from fixtures_server import Front, run_cache, run_worker  # pyright: ignore[reportMissingImports]

LATENTS_A_TOKEN = 100
WORDS = " ".join(f"word{i}" for i in range(62))
Call = Callable[[int], Awaitable[Any]]
"""A call; it takes a number that no earlier call got."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the measurement."""

    num_latents: int = 73_728
    rounds: int = 5
    calls: int = 40
    """Quick calls per round."""


QUICK = Sizes(num_latents=2048, rounds=2, calls=2)


@dataclass(frozen=True)
class Case:
    """A call to measure."""

    name: str
    call: Call
    reference: str
    calls: int
    """Calls a round."""
    took_ms: list[list[float]] = field(default_factory=list)
    """Durations of the call, one list per round."""
    reference_ms: list[list[float]] = field(default_factory=list)


def rows(quick: bool) -> Iterator[Row]:
    """A row for every call."""
    sizes = QUICK if quick else Sizes()
    for case in asyncio.run(measure(sizes)):
        ours, reference = ([statistics.median(each) for each in took] for took in (case.took_ms, case.reference_ms))
        everything = list(chain(*case.took_ms))
        yield Row(
            name="server",
            case=case.name,
            sizes={
                "num_latents": sizes.num_latents,
                "calls": len(everything),
                "p95_ms": statistics.quantiles(everything, n=20, method="inclusive")[-1],
            },
            ours=Figure(statistics.median(ours), "ms"),
            reference=Figure(statistics.median(reference), "ms", case.reference),
            ratio=Ratio.of(ours, reference),
            ratio_is="times as much",
        )


async def measure(sizes: Sizes) -> list[Case]:
    """All cases, measured in turn with their references."""
    async with running(sizes) as (front, inference):
        references: Mapping[str, Call] = {
            "a health check": lambda _: front.health.Check(health_pb2.HealthCheckRequest()),
            "the worker alone": lambda i: inference.Encode(
                inference_pb2.EncodeRequest(crosscoder="demo", prompt=types_pb2.Prompt(text=f"{WORDS} {i}"))
            ),
        }
        cases = [*browsing(front.latents, sizes), *encoding(front.prompts, sizes)]
        number = 0
        for counted in [False] + [True] * sizes.rounds:
            for case in cases:
                both: tuple[list[float], list[float]] = ([], [])
                for _ in range(case.calls):
                    for call, took in zip((case.call, references[case.reference]), both, strict=True):
                        started = time.perf_counter()
                        await call(number := number + 1)
                        took.append((time.perf_counter() - started) * 1000)
                if counted:
                    case.took_ms.append(both[0])
                    case.reference_ms.append(both[1])
    return cases


@asynccontextmanager
async def running(sizes: Sizes) -> AsyncGenerator[tuple[Any, Any]]:
    """A server in its own process, like tests' Front, and a stub of its worker."""
    fixtures_server.code_of = wide_code
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        write_crosscoder(home, "demo", sizes.num_latents)
        async with run_worker(home) as worker, run_cache(home / "cache.sock"):
            environment = {
                "CROSSCOPE_HOME": name,
                "CROSSCOPE_SERVER_LISTEN": f"unix:{name}/front.sock",
                "CROSSCOPE_SERVER_WORKERS": worker.target,
                "CROSSCOPE_SERVER_CACHE_URL": f"unix://{home}/cache.sock",
                "CROSSCOPE_SERVER_ALLOW_ANYONE": "true",
            }
            server = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "crosscope_server", env=environment, stderr=asyncio.subprocess.DEVNULL
            )
            try:
                async with (
                    grpc.aio.insecure_channel(environment["CROSSCOPE_SERVER_LISTEN"]) as channel,
                    grpc.aio.insecure_channel(worker.target) as to_worker,
                    asyncio.timeout(600),
                ):
                    await channel.channel_ready()
                    front = Front(channel, environment["CROSSCOPE_SERVER_LISTEN"])
                    await front.prompts_serve()
                    yield front, inference_pb2_grpc.InferenceStub(to_worker)
            finally:
                server.terminate()
                await server.wait()


def wide_code(text: str) -> types_pb2.SparseCode:
    """LATENTS_A_TOKEN latents on every token."""
    n = len(text.split(" ")) + 1
    return types_pb2.SparseCode(
        row_starts=[LATENTS_A_TOKEN * t for t in range(n + 1)],
        latents=[(31 * t + 7 * k) % 2000 for t in range(n) for k in range(LATENTS_A_TOKEN)],
        activations=[20.0 - 0.1 * k for _ in range(n) for k in range(LATENTS_A_TOKEN)],
    )


def browsing(latents: Any, sizes: Sizes) -> Iterator[Case]:
    """Calls that read the artefact."""
    ask = latents_pb2.ListLatentsRequest
    less = latents_pb2.LatentFilter.OP_LT
    two = [latents_pb2.LatentFilter(column=name, op=less, number=0.5) for name in ("nu_err", "frequency")]
    page = ask(crosscoder="demo", filters=two, order_by="-base_uselessness_single")
    orders = iter(["nu_err", "nu_rec", "mean", "max", "frequency", "rel_norm", "cosine", "norm_base", "norm_chat"])
    large = ask(crosscoder="demo", page_size=1000)
    atlas = latents_pb2.GetAtlasRequest(crosscoder="demo", columns=["rel_norm", "frequency", "nu_err", "nu_rec", "max"])

    def new_order(_: int) -> Awaitable[Any]:
        return latents.ListLatents(ask(crosscoder="demo", filters=two, order_by=f"-{next(orders)}"))

    def examples(number: int) -> Awaitable[Any]:
        latent = number * 7919 % sizes.num_latents
        return latents.ListExamples(latents_pb2.ListExamplesRequest(crosscoder="demo", latent=latent))

    empty = "a health check"
    yield Case("ListLatents, 2 filters, kept order", lambda _: latents.ListLatents(page), empty, sizes.calls)
    yield Case("ListLatents, 2 filters, new order", new_order, empty, 1)
    yield Case("ListLatents, 1000 a page", lambda _: latents.ListLatents(large), empty, max(1, sizes.calls // 10))
    yield Case("ListExamples, 10 whole texts", examples, empty, sizes.calls)
    yield Case("GetAtlas, 5 columns", lambda _: drain(latents.GetAtlas(atlas)), empty, max(1, sizes.calls // 6))
    one = latents_pb2.GetLatentRequest(crosscoder="demo", latent=3)
    yield Case("GetLatent", lambda _: latents.GetLatent(one), empty, sizes.calls)


def encoding(prompts: Any, sizes: Sizes) -> Iterator[Case]:
    """Calls that need codes."""

    def ask(text: str, **fields: Any) -> prompts_pb2.EncodeRequest:
        return prompts_pb2.EncodeRequest(crosscoder="demo", prompt=types_pb2.Prompt(text=text), **fields)

    top = prompts_pb2.TopLatentsRequest(crosscoder="demo", prompt=types_pb2.Prompt(text=WORDS), max_frequency=0.05)
    calls: Mapping[str, Call] = {
        "Encode, uncached, all latents": lambda i: prompts.Encode(ask(f"{WORDS} {i}")),
        "Encode, cached, all latents": lambda _: prompts.Encode(ask(WORDS)),
        "Encode, cached, top 10": lambda _: prompts.Encode(ask(WORDS, top_k=10)),
        "TopLatents, cached": lambda _: prompts.TopLatents(top),
    }
    for name, call in calls.items():
        yield Case(name, call, "the worker alone", sizes.calls)


async def drain(stream: Any) -> None:
    """Reads a stream to its end."""
    async for _ in stream:
        pass
