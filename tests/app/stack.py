"""The processes behind the app in tests: a server on planted artefacts, a queue, and a planted worker."""

import contextlib
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from fixtures_ports import free_port
from fixtures_waiting import PATIENCE_S, until
from grpc_health.v1 import health, health_pb2_grpc
from playwright.sync_api import Page

from crosscope import Client
from crosscope_proto.worker.v1 import inference_pb2_grpc
from tests.app.planted_worker import PlantedWorker

NUM_LATENTS = 256
OpenPage = Callable[..., Page]
FIXTURES = Path(__file__).parents[1] / "fixtures_artefacts.py"


class Stack:
    """The processes of one app, in a folder of their own."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ca"))
        self.home = self.folder / "home"
        self.home.mkdir()
        self.address = f"unix:{self.folder}/server"
        self.client = Client(self.address)
        self._processes: list[subprocess.Popen[bytes]] = []
        self.planted = PlantedWorker()
        self._worker: grpc.Server | None = None
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def plant(self) -> None:
        """Publishes a crosscoder named demo."""
        command = [sys.executable, str(FIXTURES), str(self.home), "demo", str(NUM_LATENTS)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def start_queue(self) -> None:
        queue = self.folder / "queue"
        queue.mkdir()
        self._start("crosscope_local.redis", "queue", "--folder", str(queue / "data"), "--socket", str(queue / "s"))
        until((queue / "s").exists)

    def start_worker(self) -> None:
        self._worker = grpc.server(ThreadPoolExecutor(8))
        inference_pb2_grpc.add_InferenceServicer_to_server(self.planted, self._worker)
        health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), self._worker)
        self._worker.add_insecure_port(f"unix:{self.folder}/worker")
        self._worker.start()

    def start_server(self) -> None:
        self._start("crosscope_server")
        with grpc.insecure_channel(self.address) as channel:
            grpc.channel_ready_future(channel).result(timeout=PATIENCE_S)

    def start_app(self, **settings: str) -> None:
        """Starts the app; everyone who reaches it acts with the home's own token, unless the settings say otherwise."""
        self.app_pid = self._start("crosscope.app", **settings).pid
        until(lambda: answers(f"{self.url}/_stcore/health"))

    @contextlib.contextmanager
    def job_worker(self) -> Generator[None]:
        """A job worker while it lasts; it runs the jobs without models of tests/jobs/job_kinds.py."""
        folder = FIXTURES.parent / "jobs"
        code = "import sys; from job_kinds import KINDS; from crosscope_worker.jobs.process import main; main(KINDS)"
        environment = {"CROSSCOPE_HOME": str(self.home), "CROSSCOPE_WORKER_QUEUE_URL": self.queue_url}
        with (self.folder / "jobs.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", code],
                env={**os.environ, **environment, "PYTHONPATH": str(folder)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            yield
        finally:
            process.terminate()
            process.wait(PATIENCE_S)

    @property
    def queue_url(self) -> str:
        return f"unix://{self.folder}/queue/s"

    def close(self) -> None:
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            process.wait(PATIENCE_S)
        if self._worker:
            self.planted.free.set()
            self._worker.stop(None).wait()
        self.client.close()
        shutil.rmtree(self.folder)

    def _start(self, module: str, *arguments: str, **settings: str) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            "CROSSCOPE_HOME": str(self.home),
            "CROSSCOPE_SERVER_LISTEN": self.address,
            "CROSSCOPE_SERVER_QUEUE_URL": self.queue_url,
            "CROSSCOPE_SERVER_WORKERS": f"unix:{self.folder}/worker" if self._worker else "",
            "CROSSCOPE_ADDRESS": self.address,
            "CROSSCOPE_APP_PORT": str(self.port),
            "CROSSCOPE_APP_LOGIN": "open",
            **settings,
        }
        log = (self.folder / f"{module}.log").open("wb")
        with log:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments], env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        self._processes.append(process)
        return process


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as reply:
            return reply.status == 200
    except (urllib.error.URLError, OSError):
        return False


@contextlib.contextmanager
def slow_worker(stack: Stack) -> Generator[None]:
    """The worker answers no call while it lasts."""
    stack.planted.free.clear()
    try:
        yield
    finally:
        stack.planted.free.set()


SETTLED = (Path(__file__).parent / "settled.js").read_text()
"""A script for every page of a browser's context, without which it never settles."""


_WAITS = itertools.count()


def settle(page: Page) -> None:
    """Waits until all runs of the script that the page has asked for have ended and are drawn; clicks of now count."""
    page.wait_for_function("(wait) => window.hasSettled(wait)", arg=next(_WAITS))
