"""The processes behind the app in tests: a server on planted artefacts, a queue, and a planted worker."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from playwright.sync_api import Page

from crosscope import Client
from crosscope_proto.roles import LeftOut, TokenRole
from crosscope_proto.v1 import types_pb2
from crosscope_proto.worker.v1 import inference_pb2, inference_pb2_grpc

NUM_LATENTS = 256
REST, REFUSED, LOST, SECRET_FOLDER = "\N{FOX FACE}", "refuse-me", "lose-me", "/srv/private/home"
OpenPage = Callable[..., Page]
FIXTURES = Path(__file__).parents[1] / "fixtures_artefacts.py"


class PlantedWorker(inference_pb2_grpc.InferenceServicer):
    """Speaks the internal contract: words as tokens, latent n on the n-th word of the prompt, 1.5 n strong.

    The BOS token, which training left out, fires latent 200 with 500, as an attention sink would. Where an assistant
    speaks, the reasoning of turn 1 is not printed. A word that ends with REST is two tokens, of which the second only
    goes on with the word's last character. A prompt with REFUSED is refused as a template would, one with LOST as a
    worker does whose files are gone.
    """

    def Tokenize(self, request: inference_pb2.TokenizeRequest, context: Any) -> inference_pb2.TokenizeResponse:
        return inference_pb2.TokenizeResponse(tokens=_tokens(_fired(request.prompt)))

    def Encode(self, request: inference_pb2.EncodeRequest, context: Any) -> inference_pb2.EncodeResponse:
        for place, (_, text) in enumerate(_parts(request.prompt)):
            if REFUSED in text:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"turn {place}: the chat template refuses it")
            if LOST in text:
                context.abort(grpc.StatusCode.DATA_LOSS, f"{SECRET_FOLDER}/crosscoders/demo/CURRENT cannot be read")
        fired = _fired(request.prompt)
        starts, latents, values = [0], [], []
        for _, _, code in fired:
            latents += [latent for latent, _ in code]
            values += [value for _, value in code]
            starts.append(len(latents))
        code = types_pb2.SparseCode(row_starts=starts, latents=latents, activations=values)
        return inference_pb2.EncodeResponse(tokens=_tokens(fired), code=code, compute_ms=1.0)


Fired = list[tuple[str, TokenRole, list[tuple[int, float]]]]
"""Piece, role, and (latent, value) pairs of each token."""


def _fired(prompt: types_pb2.Prompt) -> Fired:
    tokens: Fired = [("<bos>", TokenRole.BOS, [(200, 500.0)])]
    words = 0
    for role, text in _parts(prompt):
        if role is not TokenRole.TEXT:
            tokens.append(("<start_of_turn>", TokenRole.HEADER, []))
        for word in text.split(" "):
            words += 1
            tokens.append((word if words == 1 else f" {word}", role, [(words, 1.5 * words)]))
            if word.endswith(REST):
                tokens.append(("", role, []))
    return tokens


def _tokens(fired: Fired) -> types_pb2.Tokens:
    roles = [types_pb2.TokenRole.ValueType(role) for _, role, _ in fired]
    left_out = [LeftOut.BOS if role is TokenRole.BOS else LeftOut.KEPT for _, role, _ in fired]
    return types_pb2.Tokens(
        ids=range(len(fired)),
        pieces=[piece for piece, _, _ in fired],
        roles=roles,
        left_out=[types_pb2.TokenLeftOut.ValueType(reason) for reason in left_out],
        dropped_reasoning=[1] if TokenRole.ASSISTANT in (role for _, role, _ in fired) else [],
    )


def _parts(prompt: types_pb2.Prompt) -> list[tuple[TokenRole, str]]:
    if prompt.WhichOneof("content") == "text":
        return [(TokenRole.TEXT, prompt.text)]
    return [(TokenRole[turn.role.upper()], turn.content) for turn in prompt.conversation.turns]


class Stack:
    """The processes of one app, in a folder of their own."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ca"))
        self.home = self.folder / "home"
        self.home.mkdir()
        self.address = f"unix:{self.folder}/server"
        self.client = Client(self.address)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._worker: grpc.Server | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
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
        self._worker = grpc.server(ThreadPoolExecutor(2))
        inference_pb2_grpc.add_InferenceServicer_to_server(PlantedWorker(), self._worker)
        health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), self._worker)
        self._worker.add_insecure_port(f"unix:{self.folder}/worker")
        self._worker.start()

    def start_server(self) -> None:
        self._start("crosscope_server")
        with grpc.insecure_channel(self.address) as channel:
            grpc.channel_ready_future(channel).result(timeout=60)

    def start_app(self) -> None:
        self._start("crosscope.app")
        until(lambda: answers(f"{self.url}/_stcore/health"))

    def close(self) -> None:
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            process.wait(10)
        if self._worker:
            self._worker.stop(None).wait()
        self.client.close()
        shutil.rmtree(self.folder)

    def _start(self, module: str, *arguments: str) -> None:
        environment = {
            **os.environ,
            "CROSSCOPE_HOME": str(self.home),
            "CROSSCOPE_SERVER_LISTEN": self.address,
            "CROSSCOPE_SERVER_QUEUE_URL": f"unix://{self.folder}/queue/s",
            "CROSSCOPE_SERVER_WORKERS": f"unix:{self.folder}/worker" if self._worker else "",
            "CROSSCOPE_ADDRESS": self.address,
            "CROSSCOPE_APP_PORT": str(self.port),
        }
        log = (self.folder / f"{module}.log").open("wb")
        with log:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments], env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        self._processes.append(process)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as reply:
            return reply.status == 200
    except (urllib.error.URLError, OSError):
        return False


def until(holds: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Waits for something that tells nobody when it happens."""
    ends_at = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < ends_at, f"not so within {timeout_s} s"
        time.sleep(0.05)


def settle(page: Page) -> None:
    """Waits until Streamlit has drawn what the script gave it."""
    page.locator('[data-testid="stApp"][data-test-script-state="notRunning"]').wait_for()
