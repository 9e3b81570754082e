"""Prompts of many callers through server and worker, beside what the worker's device does with nobody to talk to.

Everything is a process of its own: the cache, the worker, the server, one client with all callers, and the same pair
and crosscoder run in batches without calls. They take turns on one machine. The pair has the demo's shape.
"""

import asyncio
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from tokenizers import pre_tokenizers

from bench.effects import Sizes as PairSizes
from bench.effects import make_subject
from bench.rows import ROOT, Figure, Row, Target
from bench.timing import Ratio
from crosscope import AsyncClient, AsyncCrosscoder, Unavailable
from crosscope_proto.artefacts import MANIFEST, PAIR_MANIFEST, PairManifest, version_folder
from crosscope_worker.serve.loading import LoadedCrosscoder, Loader

sys.path.insert(0, str(ROOT / "tests"))

from fixtures_artefacts import write_crosscoder  # pyright: ignore[reportMissingImports]
from fixtures_serve import LAYER, VERSION, write_version  # pyright: ignore[reportMissingImports]
from fixtures_server import run_cache  # pyright: ignore[reportMissingImports]

OFFLINE = "offline"
BATCH = 32
OF_WEIGHTS = {
    *("name", "version_id", "pair", "layer", "d_model", "num_latents", "variant", "reads", "code_normalisation"),
    *("threshold", "token_k", "input_scale", "hashes", "recipe"),
}
"""What a manifest says about weights; the rest is about the analysis."""
TOKEN = "a-token-of-the-bench"
NUM_WORDS = 90
"""Words of prompts."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the measurement."""

    pair: PairSizes
    callers: tuple[int, ...]
    seconds: float
    """Of one measurement."""
    rounds: int


FULL = Sizes(PairSizes(64, 4, 2, 1762, 1536, k=16, num_tokens=64), (1, 8, 32, 64), seconds=4.0, rounds=5)
QUICK = Sizes(PairSizes(32, 4, 2, 100, 64, k=4, num_tokens=8), (1, 4), seconds=0.3, rounds=2)


@dataclass
class Measured:
    """What many rounds of one case gave."""

    rates: list[float] = field(default_factory=list)
    """Prompts a second, one for each round."""
    cpu_ms: dict[str, list[float]] = field(default_factory=dict)
    """CPU milliseconds a prompt of each process, one for each round."""


def rows(quick: bool) -> Iterator[Row]:
    """A row for each number of callers against the offline rate, and one for each against one caller."""
    sizes = QUICK if quick else FULL
    measured = asyncio.run(measure(sizes))
    offline, one = measured[OFFLINE], measured["1"]
    for callers in sizes.callers:
        found = measured[str(callers)]
        described = {"num_tokens": sizes.pair.num_tokens, "num_latents": sizes.pair.num_latents}
        described |= {f"{name}_cpu_ms": statistics.median(each) for name, each in found.cpu_ms.items()}
        described |= {"offline_cpu_ms": statistics.median(offline.cpu_ms[OFFLINE])}
        who = f"{callers} caller{'s' * (callers > 1)}"
        against: Sequence[tuple[str, Measured, str, float | None]] = (
            ("offline", offline, f"the worker alone, in batches of {BATCH}", 0.9 if callers >= 8 else None),
            ("one", one, "one caller", None),
        )
        for name, reference, what, bound in against[: 1 if callers == 1 else 2]:
            yield Row(
                name="callers",
                case=f"{who} to {name}",
                sizes=described,
                ours=Figure(statistics.median(found.rates), "prompts/s"),
                reference=Figure(statistics.median(reference.rates), "prompts/s", what),
                ratio=Ratio.of(found.rates, reference.rates),
                targets=() if quick or bound is None else (Target("ratio", "at_least", bound),),
            )


async def measure(sizes: Sizes) -> Mapping[str, Measured]:
    """Every case, in turn."""
    found = {case: Measured() for case in (OFFLINE, *map(str, sizes.callers))}
    async with running(sizes) as (processes, offline, client):
        for counted in [False] + [True] * sizes.rounds:
            for case, result in found.items():
                before = cpu_seconds(processes)
                asked = offline if case == OFFLINE else client
                rate, count = await asked.ask(sizes.seconds if counted else sizes.seconds / 4, case)
                if not counted:
                    continue
                result.rates.append(rate)
                for name, seconds in (cpu_seconds(processes) - before).items():
                    result.cpu_ms.setdefault(name, []).append(1000 * seconds / count)
    return found


@dataclass(frozen=True)
class Asked:
    """A process that measures when it is told to."""

    process: asyncio.subprocess.Process

    @classmethod
    async def start(cls, *arguments: str) -> "Asked":
        """One of the roles of this module."""
        pipes: dict[str, Any] = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
        command = sys.executable, "-m", "bench.callers", *arguments
        return cls(await asyncio.create_subprocess_exec(*command, cwd=ROOT, **pipes))

    async def ask(self, seconds: float, case: str) -> tuple[float, int]:
        """Prompts a second, and how many there were."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{seconds} {case}\n".encode())
        rate, count = json.loads(await self.process.stdout.readline())
        return rate, count


@asynccontextmanager
async def running(sizes: Sizes) -> AsyncGenerator[tuple[Mapping[str, psutil.Process], Asked, Asked]]:
    """All processes by their names, and of them the one without calls and the client."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        write_home(home, sizes.pair)
        environment = {
            "CROSSCOPE_HOME": name,
            "CROSSCOPE_SERVER_TOKEN": TOKEN,
            "CROSSCOPE_SERVER_LISTEN": f"unix:{name}/front.sock",
            "CROSSCOPE_SERVER_WORKERS": f"unix:{name}/worker.sock",
            "CROSSCOPE_SERVER_CACHE_URL": f"unix://{name}/cache.sock",
            "CROSSCOPE_WORKER_LISTEN": f"unix:{name}/worker.sock",
        }
        async with AsyncExitStack() as stack:
            started = {"cache": await stack.enter_async_context(run_cache(home / "cache.sock"))}
            for part, arguments in (("worker", ("crosscope_worker", "serve")), ("server", ("crosscope_server",))):
                with (home / f"{part}.log").open("wb") as log:
                    process = await asyncio.create_subprocess_exec(
                        sys.executable, "-m", *arguments, env=environment, stderr=log, cwd=ROOT
                    )
                stack.push_async_callback(_end, process)
                started[part] = process
            num_tokens = str(sizes.pair.num_tokens)
            offline = await Asked.start(OFFLINE, name, num_tokens)
            client = await Asked.start("client", environment["CROSSCOPE_SERVER_LISTEN"], num_tokens)
            for part, asked in ((OFFLINE, offline), ("client", client)):
                stack.push_async_callback(_end, asked.process)
                started[part] = asked.process
            yield {part: psutil.Process(process.pid) for part, process in started.items()}, offline, client


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
    await process.wait()


def cpu_seconds(processes: Mapping[str, psutil.Process]) -> Counter[str]:
    """CPU seconds that every process has taken."""
    times = {name: process.cpu_times() for name, process in processes.items()}
    return Counter({name: each.user + each.system for name, each in times.items()})


def write_home(home: Path, sizes: PairSizes) -> None:
    """A random pair and a crosscoder of it, which fires `k` latents a token."""
    subject = make_subject(sizes)
    assert subject.reading is not None
    folder = home / "pairs" / "tiny"
    words = subject.pair.tokenizer
    words.backend_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    for name, model in zip(("base", "chat"), subject.pair.models, strict=True):
        model.save_pretrained(folder / name)
        words.save_pretrained(folder / name)
    manifest = PairManifest(name="tiny", base="base", chat="chat", tokenizer="chat")
    (folder / PAIR_MANIFEST).write_text(json.dumps(asdict(manifest)))
    assert sizes.layer == LAYER
    planted = write_crosscoder(home, "tables", sizes.num_latents)
    found = {field.name: getattr(planted, field.name) for field in fields(planted) if field.name not in OF_WEIGHTS}
    version = write_version(home, "demo", subject.reading.crosscoder, **found)
    tables = version_folder(home, planted.name, planted.version_id)
    shutil.copytree(tables, version, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))


def main(role: str, *arguments: str) -> None:
    """Measures for each line of stdin, "SECONDS CASE", and prints prompts a second and how many there were."""
    measured = Offline(*arguments) if role == OFFLINE else Client(*arguments)
    for line in sys.stdin:
        seconds, case = line.split()
        print(json.dumps(measured(float(seconds), case)), flush=True)


class Offline:
    """The worker's encoder in batches of BATCH prompts, with the threads that the worker has."""

    def __init__(self, home: str, num_tokens: str) -> None:
        torch.set_num_interop_threads(1)
        loaded = Loader(Path(home), "cpu").load("demo", VERSION, whole=False)
        assert isinstance(loaded, LoadedCrosscoder)
        self._encoder = loaded.encoder
        self._shape = BATCH, int(num_tokens)

    def __call__(self, seconds: float, _case: str) -> tuple[float, int]:
        """Prompts a second, and how many there were."""
        draw = np.random.default_rng(time.perf_counter_ns())
        started, count = time.perf_counter(), 0
        while (took := time.perf_counter() - started) < seconds or not count:
            count += len(self._encoder(list(draw.integers(6, NUM_WORDS, self._shape))))
        return count / took, count


class Client:
    """Callers in one client, each of whom asks for a prompt that is new as soon as the last is answered."""

    def __init__(self, address: str, num_tokens: str) -> None:
        self._client = AsyncClient(address, token=TOKEN)
        self._num_tokens = int(num_tokens)
        self._loop = asyncio.new_event_loop()
        self._demo = self._loop.run_until_complete(self._open())
        self._draw = random.Random()

    async def _open(self) -> AsyncCrosscoder:
        while True:
            try:
                demo = await self._client.crosscoder("demo")
                await demo.encode("word1")
                return demo
            except Unavailable:  # server or worker have not started yet
                await asyncio.sleep(0.1)

    def __call__(self, seconds: float, case: str) -> tuple[float, int]:
        """Prompts a second of so many callers, and how many there were."""
        started = time.perf_counter()
        counts = self._loop.run_until_complete(self._all(int(case), started + seconds))
        return sum(counts) / (time.perf_counter() - started), sum(counts)

    async def _all(self, callers: int, end: float) -> list[int]:
        return await asyncio.gather(*(self._one(end) for _ in range(callers)))

    async def _one(self, end: float) -> int:
        count = 0
        while time.perf_counter() < end:
            words = self._draw.choices(range(6, NUM_WORDS), k=self._num_tokens)
            encoding = await self._demo.encode(" ".join(f"word{word}" for word in words))
            assert not encoding.cached, "a new prompt was in the cache"
            count += 1
        return count


if __name__ == "__main__":
    main(*sys.argv[1:])
