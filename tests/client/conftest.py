"""Servers for the client to talk to: the real one over planted artefacts, and scripted ones for what it cannot show."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from fixtures_ports import free_port
from fixtures_waiting import PATIENCE_S
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import HealthServicer
from grpc_status import rpc_status

from crosscope import Client, Unavailable
from crosscope_proto.roles import LeftOut, TokenRole
from crosscope_proto.v1 import jobs_pb2_grpc, latents_pb2, latents_pb2_grpc, prompts_pb2, prompts_pb2_grpc, types_pb2
from crosscope_proto.worker.v1 import inference_pb2, inference_pb2_grpc

FIXTURES = Path(__file__).parents[1] / "fixtures_artefacts.py"


def abort(context: grpc.ServicerContext, code: grpc.StatusCode, message: str, *details: Message) -> Any:
    """Ends a call with a rich status."""
    status = Status(code=code.value[0], message=message)
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    return context.abort_with_status(rpc_status.to_status(status))


class ScriptedLatents(latents_pb2_grpc.LatentsServicer):
    """Knows the crosscoder "demo" and nothing about its latents; remembers the metadata of the last call."""

    def __init__(self) -> None:
        self.metadata: dict[str, str | bytes] = {}

    def GetCrosscoder(self, request, context):
        self.metadata = dict(context.invocation_metadata())
        if request.crosscoder != "demo":
            return abort(context, grpc.StatusCode.NOT_FOUND, f"no crosscoder {request.crosscoder!r}")
        return latents_pb2.GetCrosscoderResponse(crosscoder=latents_pb2.Crosscoder(name="demo", num_latents=100))


class ScriptedPrompts(prompts_pb2_grpc.PromptsServicer):
    """Makes each character a token, after BOS. Latent 3 fires on every token with 0.5, latent n on the n-th with n.

    A text that holds "wrong" is refused. Counts the requests of streams that were read.
    """

    def __init__(self) -> None:
        self.requests_read = 0
        self.last: Message | None = None

    def Tokenize(self, request, context):
        self.last = request
        return prompts_pb2.TokenizeResponse(tokens=self.tokens(request.prompt), max_prompt_tokens=4)

    def Encode(self, request, context):
        self.last = request
        return self.encode(request)

    def TopLatents(self, request, context):
        self.last = request
        entry = prompts_pb2.TopLatentsResponse.Entry(latent=7, score=2.5, max=2.5, sum=4.0, count=2, peak_token=1)
        return prompts_pb2.TopLatentsResponse(entries=[entry], tokens=self.tokens(request.prompt), num_latents=9)

    def EncodeStream(self, request_iterator, context):
        for item in request_iterator:
            self.requests_read += 1
            if "wrong" in item.request.prompt.text:
                error = prompts_pb2.StreamError(code=3, message="text: is wrong")
                yield prompts_pb2.EncodeStreamResponse(sequence=item.sequence, error=error)
            else:
                yield prompts_pb2.EncodeStreamResponse(sequence=item.sequence, response=self.encode(item.request))

    @staticmethod
    def tokens(prompt: types_pb2.Prompt) -> types_pb2.Tokens:
        text = prompt.text or "".join(turn.content for turn in prompt.conversation.turns)
        pieces = ["<bos>", *text]
        roles: list[Any] = [TokenRole.BOS.value, *[TokenRole.TEXT.value] * len(text)]
        thought = [i for i, turn in enumerate(prompt.conversation.turns) if "</think>" in turn.content]
        return types_pb2.Tokens(ids=range(len(pieces)), pieces=pieces, roles=roles, dropped_reasoning=thought)

    def encode(self, request: prompts_pb2.EncodeRequest) -> prompts_pb2.EncodeResponse:
        tokens = self.tokens(request.prompt)
        code = types_pb2.SparseCode(row_starts=[0])
        for position in range(len(tokens.ids)):
            pairs = (
                [(position, float(position)), (3, 0.5)] if position not in (0, 3) else [(3, 3.0 if position else 0.5)]
            )
            code.latents.extend(latent for latent, _ in pairs)
            code.activations.extend(value for _, value in pairs)
            code.row_starts.append(len(code.latents))
        return prompts_pb2.EncodeResponse(tokens=tokens, code=code, version_id="v1", cached=True, compute_ms=1.5)


class Served:
    """A scripted server that can be stopped and started again at the same address."""

    def __init__(self, *servicers: object, address: str | None = None) -> None:
        self.address = address or f"127.0.0.1:{free_port()}"
        self._servicers = servicers
        self.start()

    def start(self) -> None:
        self._server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
        for servicer in self._servicers:
            for base, add in _ADD.items():
                if isinstance(servicer, base):
                    add(servicer, self._server)
        self._server.add_insecure_port(self.address)
        self._server.start()

    def stop(self) -> None:
        self._server.stop(grace=None).wait()


_ADD: dict[type, Callable[[Any, grpc.Server], None]] = {
    latents_pb2_grpc.LatentsServicer: latents_pb2_grpc.add_LatentsServicer_to_server,
    prompts_pb2_grpc.PromptsServicer: prompts_pb2_grpc.add_PromptsServicer_to_server,
    jobs_pb2_grpc.JobsServicer: jobs_pb2_grpc.add_JobsServicer_to_server,
}


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """Starts scripted servers; stops them after the test."""
    started: list[Served] = []

    def start(*servicers: object, address: str | None = None) -> Served:
        started.append(Served(*servicers, address=address))
        return started[-1]

    yield start
    for served in started:
        served.stop()


@pytest.fixture
def prompts() -> ScriptedPrompts:
    return ScriptedPrompts()


@pytest.fixture
def scripted(serve: Callable[..., Served], prompts: ScriptedPrompts) -> Iterator[Client]:
    """A client of a server with ScriptedLatents and ScriptedPrompts."""
    with Client(serve(ScriptedLatents(), prompts).address, timeout_s=20) as client:
        yield client


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artefact folder with the crosscoder "demo" of 1 200 latents."""
    folder = tmp_path_factory.mktemp("home")
    subprocess.run([sys.executable, FIXTURES, folder, "demo", "1200"], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def server_address(home: Path) -> Iterator[str]:
    """The real server over that folder; no worker, no queue."""
    with running_server(home) as address:
        yield address


class ScriptedWorker(inference_pb2_grpc.InferenceServicer):
    """An inference worker with the codes of ScriptedPrompts. Training left out tokens "!"."""

    def Tokenize(self, request, context):
        return inference_pb2.TokenizeResponse(tokens=ScriptedPrompts.tokens(request.prompt))

    def Encode(self, request, context):
        encoded = ScriptedPrompts().encode(prompts_pb2.EncodeRequest(prompt=request.prompt))
        if "!" in encoded.tokens.pieces:
            encoded.tokens.left_out.extend(LeftOut.NORM if p == "!" else LeftOut.KEPT for p in encoded.tokens.pieces)
        return inference_pb2.EncodeResponse(tokens=encoded.tokens, code=encoded.code, compute_ms=1.5)


@pytest.fixture(scope="session")
def online_address(home: Path) -> Iterator[str]:
    """The real server over that folder with a scripted worker; no queue."""
    with running_worker() as target, running_server(home, CROSSCOPE_SERVER_WORKERS=target) as address:
        yield address


@contextlib.contextmanager
def running_worker() -> Iterator[str]:
    """A scripted worker that serves; its target."""
    worker = grpc.server(futures.ThreadPoolExecutor(8))
    inference_pb2_grpc.add_InferenceServicer_to_server(ScriptedWorker(), worker)
    healths = HealthServicer()
    healths.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(healths, worker)
    port = worker.add_insecure_port("127.0.0.1:0")
    worker.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        worker.stop(None).wait()


@pytest.fixture
def online(online_address: str) -> Iterator[Client]:
    """A client of the real server with a worker."""
    with Client(online_address) as client:
        for _ in range(200):
            if client.health()["prompts"]:
                break
            threading.Event().wait(0.05)
        yield client


@contextlib.contextmanager
def running_server(home: Path, **settings: str) -> Iterator[str]:
    """The real server as a process; its address once it answers."""
    address = f"127.0.0.1:{free_port()}"
    with server_process(home, address, **settings) as process:
        wait_until_serving(address, process)
        yield address


@contextlib.contextmanager
def server_process(home: Path, address: str, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """The real server at an address, from its start on; it is ended if it has not ended."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CROSSCOPE_")}
    environment = {**inherited, "CROSSCOPE_HOME": str(home), "CROSSCOPE_SERVER_LISTEN": address, **settings}
    with (home / f"server-{address.rpartition(':')[2]}.log").open("ab") as log:
        process = subprocess.Popen([sys.executable, "-m", "crosscope_server"], env=environment, stderr=log, stdout=log)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def wait_until_serving(address: str, process: subprocess.Popen[bytes]) -> None:
    """Waits until a server answers that was just started."""
    ends_at = time.monotonic() + 60
    with Client(address) as client:
        while time.monotonic() < ends_at and process.poll() is None:
            try:
                client.crosscoders()
            except Unavailable:
                threading.Event().wait(0.1)
            else:
                return
    pytest.fail(f"the server did not start at {address}")


@pytest.fixture
def real(server_address: str) -> Iterator[Client]:
    """A client of the real server."""
    with Client(server_address) as client:
        yield client
