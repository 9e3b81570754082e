"""One real stack for all end-to-end tests: the supervisor's processes on a private home, with a small pair `demo` made
by a job and the README's recipe run on it."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from fixtures_ports import free_port
from fixtures_waiting import PATIENCE_S

from crosscope import Client, Job, Unavailable

ROOT = Path(__file__).parents[2]
PAIR_RECIPE = """
kind: demo-pair
name: demo
num_layers: 4
hidden_size: 32
base_steps: 40
chat_steps: 20
documents: 700
conversations: 700
"""
READY_WITHIN_S = 120.0


@dataclass(frozen=True)
class Stack:
    """A running supervisor."""

    process: subprocess.Popen[str]
    home: Path
    address: str
    client: Client

    def pids(self, *words: str) -> list[int]:
        """Processes below the supervisor whose command line holds all of `words`."""
        found: list[int] = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                command = " ".join(process.cmdline())
                if all(word in command for word in words):
                    found.append(process.pid)
        return found


def start_stack(home: Path) -> Stack:
    port = free_port()
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}
    command = [
        str(Path(sys.executable).parent / "crosscope"),
        "up",
        "--home",
        str(home),
        "--port",
        str(port),
        "--no-app",
    ]
    with (home / "up.txt").open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, text=True, env=environment)
    client = Client(f"127.0.0.1:{port}", timeout_s=READY_WITHIN_S)
    stack = Stack(process, home, f"127.0.0.1:{port}", client)
    wait_until_ready(stack)
    return stack


def wait_until_ready(stack: Stack) -> None:
    ends_at = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < ends_at:
        assert stack.process.poll() is None, (stack.home / "up.txt").read_text()
        try:
            stack.client.jobs.list(limit=1)
        except Unavailable:
            continue
        return
    raise AssertionError(f"the stack was not ready in time: {(stack.home / 'up.txt').read_text()}")


def wait_until_prompts_are_served(client: Client) -> None:
    pause = threading.Event()
    ends_at = time.monotonic() + READY_WITHIN_S
    while not client.health()["prompts"]:
        assert time.monotonic() < ends_at, "no inference worker came back"
        pause.wait(0.1)


def stop_stack(stack: Stack) -> None:
    stack.client.close()
    stack.process.send_signal(signal.SIGTERM)
    stack.process.wait(PATIENCE_S)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A running stack with nothing in it."""
    running = start_stack(tmp_path_factory.mktemp("e2e"))
    try:
        yield running
    finally:
        stop_stack(running)


@pytest.fixture(scope="session")
def made(stack: Stack) -> tuple[Job, Job]:
    """The jobs that made the pair and the crosscoder `demo`, ended well."""
    pair = stack.client.jobs.submit(PAIR_RECIPE)
    crosscoder = stack.client.jobs.submit(ROOT / "recipes/demo.yaml", after=[pair])
    return pair.wait(timeout_s=240), crosscoder.wait(timeout_s=240)
