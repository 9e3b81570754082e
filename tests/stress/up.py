"""A real `crosscope up` on a tiny home, with people who ask it and jobs that run, for what is measured here."""

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

import psutil
import torch
from fixtures_artefacts import write_crosscoder
from fixtures_serve import LATENTS, random_crosscoder, write_version

from crosscope import Client, CrosscopeError
from crosscope_local.run import PROCESSES
from crosscope_local.supervise import STANDBY_OF
from crosscope_proto.artefacts import JOB_LOG, MANIFEST, PAIR_MANIFEST, PairManifest, job_folder, version_folder
from tests.worker.conftest import gemma_tokenizer, random_gemma

COMMAND = [sys.executable, "-c", "from crosscope.cli import main; main()"]
MARKS = {
    "queue": "queue.sock",
    "cache": "cache.sock",
    "server": "-m crosscope_server ",
    "app": "-m crosscope.app",
    "worker": "-m crosscope_worker serve",
    "jobs": "-m crosscope_worker jobs",
    "a job's process": "crosscope_worker.jobs.entry",
}
"""What each process's command line holds once it has become what it is to be."""
JOB = """
kind: demo-pair
name: {name}
num_layers: 2
hidden_size: 16
base_steps: {steps}
chat_steps: 10
documents: 60
conversations: 60
"""
ENDED = ("succeeded", "failed", "cancelled")
PAUSE_S = 0.05
_TURNS = 10**9
"""More questions than a group of callers asks."""
T = TypeVar("T")


def make_home(home: Path) -> None:
    """A pair "tiny" and a crosscoder "demo" of it, with tables that other data gave."""
    folder = home / "pairs" / "tiny"
    tokenizer = gemma_tokenizer()
    torch.manual_seed(0)
    for model in ("base", "chat"):
        random_gemma(len(tokenizer)).save_pretrained(folder / model)
        tokenizer.save_pretrained(folder / model)
    manifest = PairManifest(name="tiny", base="base", chat="chat", tokenizer="chat")
    (folder / PAIR_MANIFEST).write_text(json.dumps(asdict(manifest)))
    version = write_version(home, "demo", random_crosscoder())
    own = {path.name for path in version.iterdir()}
    with tempfile.TemporaryDirectory() as elsewhere:
        tables = write_crosscoder(Path(elsewhere), "demo", LATENTS)
        folder = Path(version_folder(Path(elsewhere), "demo", tables.version_id))
        shutil.copytree(folder, version, dirs_exist_ok=True, ignore=lambda _, names: {*names} & own)
        merged = json.loads((version / MANIFEST).read_text())
        merged |= {
            key: value
            for key, value in json.loads((folder / MANIFEST).read_text()).items()
            if key != "recipe" and not merged.get(key)
        }
        (version / MANIFEST).write_text(json.dumps(merged))


class Up:
    """A running installation; `said` is what it told the person at the terminal."""

    def __init__(self, home: Path, *options: str) -> None:
        self.home, self.said = home, list[str]()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "400", "NO_COLOR": "1"}
        self.process = subprocess.Popen(
            [*COMMAND, "up", "--home", str(home), "--app-port", "0", "--port", "0", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        until(lambda: self.told("^Ready after") or self.process.poll() is not None, 180)
        found = self.told(r"^Server: (\S+)")
        if not found or not self.told("^Ready after"):
            raise RuntimeError("\n".join(self.said))
        self.address = found[1]

    def _read(self) -> None:
        assert self.process.stdout
        self.said.extend(line.rstrip() for line in iter(self.process.stdout.readline, ""))

    def told(self, pattern: str) -> re.Match[str] | None:
        """The first line that matches."""
        return next((found for line in list(self.said) if (found := re.search(pattern, line))), None)

    def pid(self, name: str) -> int | None:
        """The id of a process; None if it does not run."""
        waiting = self.standbys()
        for each in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                line = " ".join(each.cmdline()) + " "
                is_it = MARKS[name] in line and "launch.py" not in line and each.pid not in waiting
                if is_it and each.status() != psutil.STATUS_ZOMBIE:
                    return each.pid
        return None

    def standbys(self) -> set[int]:
        """Ids of processes that wait in case another ends."""
        noted = json.loads((self.home / PROCESSES).read_text())["processes"]
        return {pid for name, (pid, _) in noted.items() if name.startswith(STANDBY_OF)}

    def close(self) -> None:
        """Stops everything."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(20)
        self._reader.join(5)


@dataclass
class Asked:
    """What callers saw: how long each answer took, and what each refusal was."""

    begun: list[float] = field(default_factory=list)
    took: list[float] = field(default_factory=list)
    refused: list[tuple[float, str]] = field(default_factory=list)
    """How long it took, and what was said."""

    @property
    def longest_s(self) -> float:
        """The longest wait for an answer or a refusal."""
        return max([*self.took, *(took for took, _ in self.refused)], default=0.0)


class Callers:
    """People who ask again and again, each in a thread, until the block ends. No two ever ask with the same number."""

    _groups = itertools.count()

    def __init__(
        self, address: str, ask: Callable[[Client, int], object], count: int = 4, timeout_s: float = 30
    ) -> None:
        self.asked = Asked()
        self._ask, self._stop = ask, threading.Event()
        first = next(self._groups) * _TURNS
        self._threads = [
            threading.Thread(target=self._go_on, args=(address, first + number, timeout_s), daemon=True)
            for number in range(count)
        ]

    def _go_on(self, address: str, number: int, timeout_s: float) -> None:
        with Client(address, timeout_s=timeout_s) as client:
            patient(lambda: self._ask(client, number))  # what can never be answered is no refusal
            for turn in itertools.count(number, 1000):
                if self._stop.is_set():
                    return
                begun = time.monotonic()
                try:
                    self._ask(client, turn)
                except CrosscopeError as error:
                    self.asked.refused.append((time.monotonic() - begun, f"{type(error).__name__}: {error}"))
                else:
                    self.asked.took.append(time.monotonic() - begun)
                self._stop.wait(PAUSE_S)

    def __enter__(self) -> Asked:
        for thread in self._threads:
            thread.start()
        return self.asked

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)


def prompt(client: Client, turn: int) -> None:
    """A prompt that nobody has asked before."""
    client.crosscoder("demo").encode(f"the baker tells story number {turn} about the old river")


def same_prompt(client: Client, turn: int) -> None:
    """A prompt that the cache knows."""
    client.crosscoder("demo").encode(f"the baker tells a story {turn % 7}")


def page(client: Client, turn: int) -> None:
    """A page that needs no worker, queue or cache."""
    del turn
    client.crosscoder("demo")


class Work:
    """Jobs that were submitted, and how they ended."""

    def __init__(self, up: Up) -> None:
        self._up, self.ids = up, list[str]()

    def submit(self, count: int = 1, steps: int = 120) -> None:
        """Queues jobs, whatever is away meanwhile: each once, by its key."""
        with Client(self._up.address, timeout_s=30) as client:
            for _ in range(count):
                name = f"stress-{len(self.ids)}-{time.monotonic_ns()}"
                recipe = JOB.format(name=name, steps=steps)
                self.ids.append(patient(lambda recipe=recipe: client.jobs.submit(recipe).id))

    def running(self) -> bool:
        """Whether a job's process works on a step."""
        with Client(self._up.address, timeout_s=30) as client:
            return any(job.state == "running" and job.info.stage for job in client.jobs.list(limit=20))

    def has_ended(self, job_id: str) -> bool:
        """Whether a job has come to its end."""
        with Client(self._up.address, timeout_s=30) as client:
            return patient(lambda: client.jobs.get(job_id).state) in ENDED

    def outcome(self, within_s: float = 900) -> tuple[int, int, int]:
        """Waits for the end of all: how many were lost, how many were published twice, the most attempts.

        One that has not ended by then is lost.
        """
        states: dict[str, str] = {}
        with Client(self._up.address, timeout_s=30) as client:
            until(lambda: self._see(client, states), within_s)
        ends = [self._ends(job_id) for job_id in self.ids]
        lost = sum(states.get(job_id) != "succeeded" for job_id in self.ids)
        return lost, sum(count > 1 for count, _ in ends), max((attempts for _, attempts in ends), default=0)

    def _see(self, client: Client, states: dict[str, str]) -> bool:
        with contextlib.suppress(CrosscopeError):
            for job_id in self.ids:
                if states.get(job_id) not in ENDED:
                    states[job_id] = client.jobs.get(job_id).state
        return all(states.get(job_id) in ENDED for job_id in self.ids)

    def _ends(self, job_id: str) -> tuple[int, int]:
        """How often a job's attempts said that they succeeded, and how many attempts there were."""
        path = Path(job_folder(self._up.home, job_id)) / JOB_LOG
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        ends = [line for line in lines if line["event"] == "end" and line.get("state") == "succeeded"]
        return len(ends), max(line["attempt"] for line in lines)


def patient(ask: Callable[[], T], within_s: float = 120) -> T:
    """The result of a call that is tried again while something is away."""
    end = time.monotonic() + within_s
    while True:
        try:
            return ask()
        except CrosscopeError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


def until(happens: Callable[[], object], timeout_s: float) -> bool:
    """Waits; returns whether it happened."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if happens():
            return True
        time.sleep(0.1)
    return False


@contextlib.contextmanager
def running(*options: str, below: str | None = None) -> Generator[Up]:
    """An installation on a home of its own, which goes in the end."""
    with tempfile.TemporaryDirectory(prefix="crosscope-stress-", dir=below) as folder:
        home = Path(folder) / "home"
        make_home(home)
        os.environ["CROSSCOPE_HOME"] = str(home)
        up = Up(home, *options)
        try:
            yield up
        finally:
            up.close()
