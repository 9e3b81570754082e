"""Runs, for tests: a server in this process, a worker with codes that can be worked out by hand, a real cache."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from fixtures_waiting import PATIENCE_S
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from crosscope_local.redis import find_binary
from crosscope_proto.roles import LeftOut, TokenRole
from crosscope_proto.v1 import annotations_pb2_grpc, effects_pb2, latents_pb2_grpc, prompts_pb2_grpc, types_pb2
from crosscope_proto.worker.v1 import inference_pb2, inference_pb2_grpc
from crosscope_server.serve import serving
from crosscope_server.settings import Settings


class CountingWorker(inference_pb2_grpc.InferenceServicer):
    """Splits at spaces behind a BOS token. Token t fires latents t and t + 1, with 2 (t + 1) and t + 1.

    Training left out the word "sink".
    """

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.cancelled = 0
        self.deadlines: list[float] = []
        self.called = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.fails_with: tuple[grpc.StatusCode, str] | None = None
        self.num_calls: Counter[str] = Counter()
        """Of Compare, Attribute and Generate."""
        self.requests: list[Any] = []
        """Their public requests."""
        self.dies_after: int | None = None
        """Messages of a stream after which the connection breaks."""
        self.gone = asyncio.Event()
        """Set once a caller has left a stream."""

    async def Tokenize(self, request: Any, context: Any) -> inference_pb2.TokenizeResponse:
        return inference_pb2.TokenizeResponse(tokens=tokens_of(text_of(request.prompt)), max_prompt_tokens=9)

    async def Encode(self, request: Any, context: Any) -> inference_pb2.EncodeResponse:
        text = text_of(request.prompt)
        self.prompts.append(text)
        self.deadlines.append(context.time_remaining())
        self.called.set()
        try:
            await self.may_answer.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.fails_with:
            await context.abort(*self.fails_with)
        tokens = tokens_of(text)
        tokens.left_out.extend(LeftOut.NORM if piece == "sink" else LeftOut.KEPT for piece in tokens.pieces)
        return inference_pb2.EncodeResponse(tokens=tokens, code=code_of(text), compute_ms=1.5)

    async def Compare(self, request: Any, context: Any) -> inference_pb2.CompareResponse:
        """KL is the token's number."""
        tokens = await self._asked("Compare", request.request)
        kl = [float(t) for t in range(len(tokens.ids))]
        version_id = request.request.version_id
        response = effects_pb2.CompareResponse(tokens=tokens, kl_chat_base=kl, version_id=version_id)
        return inference_pb2.CompareResponse(response=response)

    async def Attribute(self, request: Any, context: Any) -> inference_pb2.AttributeResponse:
        tokens = await self._asked("Attribute", request.request)
        response = effects_pb2.AttributeResponse(tokens=tokens, value=2.0, version_id=request.request.version_id)
        return inference_pb2.AttributeResponse(response=response)

    async def Generate(self, request: Any, context: Any) -> Any:
        """The start, max_new_tokens steps with the latents 5 and 6, and the end; waits behind the start."""
        self.num_calls["Generate"] += 1
        if self.fails_with:
            await context.abort(*self.fails_with)
        asked = request.request
        text = text_of(asked.prompt)
        start = effects_pb2.GenerationStart(tokens=tokens_of(text), code=code_of(text), version_id=asked.version_id)
        token = effects_pb2.NewToken(piece="x", latents=[5, 6], activations=[2, 1])
        said = [effects_pb2.GenerateResponse(start=start)]
        num_new = asked.arms[0].sampling.max_new_tokens
        said += [effects_pb2.GenerateResponse(step=effects_pb2.GenerationStep(tokens=[token]))] * num_new
        said += [effects_pb2.GenerateResponse(end=effects_pb2.GenerationEnd(text="x" * num_new, num_tokens=num_new))]
        try:
            for index, each in enumerate(said):
                if index == self.dies_after:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
                yield inference_pb2.GenerateResponse(response=each)
                await self.may_answer.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            self.gone.set()
            raise

    async def _asked(self, method: str, request: Any) -> types_pb2.Tokens:
        self.num_calls[method] += 1
        self.requests.append(request)
        self.called.set()
        await self.may_answer.wait()
        return tokens_of(text_of(request.prompt))


def text_of(prompt: types_pb2.Prompt) -> str:
    if prompt.HasField("token_ids"):
        return " ".join(f"{id_}/{role}" for id_, role in zip_longest(prompt.token_ids.ids, prompt.token_ids.roles))
    return prompt.text or " ".join(turn.content for turn in prompt.conversation.turns)


def tokens_of(text: str) -> types_pb2.Tokens:
    pieces = ["<bos>", *text.split(" ")]
    roles = [TokenRole.BOS] + [TokenRole.TEXT] * (len(pieces) - 1)
    return types_pb2.Tokens(ids=range(len(pieces)), pieces=pieces, roles=[int(role) for role in roles])  # pyright: ignore[reportArgumentType]


def code_of(text: str) -> types_pb2.SparseCode:
    n = len(text.split(" ")) + 1
    return types_pb2.SparseCode(
        row_starts=[2 * t for t in range(n + 1)],
        latents=[latent for t in range(n) for latent in (t, t + 1)],
        activations=[float(value) for t in range(n) for value in (2 * (t + 1), t + 1)],
    )


@dataclass
class RunningWorker:
    """A worker that answers at `target`."""

    worker: CountingWorker
    target: str
    server: grpc.aio.Server


@contextlib.asynccontextmanager
async def run_worker(folder: Path, worker: CountingWorker | None = None) -> AsyncGenerator[RunningWorker]:
    worker, healths = worker or CountingWorker(), health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue]
    server = grpc.aio.server()
    inference_pb2_grpc.add_InferenceServicer_to_server(worker, server)
    health_pb2_grpc.add_HealthServicer_to_server(healths, server)
    target = f"unix:{folder}/worker.sock"
    server.add_insecure_port(target)
    await healths.set("", health_pb2.HealthCheckResponse.SERVING)
    await server.start()
    try:
        yield RunningWorker(worker, target, server)
    finally:
        worker.may_answer.set()
        await server.stop(None)


@dataclass
class Front:
    """A server that answers, and stubs for it."""

    channel: grpc.aio.Channel
    address: str
    annotations: Any = field(init=False)
    latents: Any = field(init=False)
    prompts: Any = field(init=False)
    health: Any = field(init=False)

    def __post_init__(self) -> None:
        self.annotations = annotations_pb2_grpc.AnnotationsStub(self.channel)
        self.latents = latents_pb2_grpc.LatentsStub(self.channel)
        self.prompts = prompts_pb2_grpc.PromptsStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)

    async def prompts_serve(self, *, serving: bool = True) -> None:
        """Waits until prompts are served, or are not."""
        wanted = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        call = self.health.Watch(health_pb2.HealthCheckRequest(service="crosscope.v1.Prompts"))
        async with asyncio.timeout(PATIENCE_S):
            async for reply in call:
                if reply.status == wanted:
                    break
        call.cancel()


@contextlib.asynccontextmanager
async def run_front(**settings: Any) -> AsyncGenerator[Front]:
    """A server that asks for no token, and lets as many in however busy it is, unless the settings say otherwise."""
    usual = {"listen": "127.0.0.1:0", "allow_anyone": True, "least_calls": 10_000}
    async with (
        serving(Settings(**{**usual, **settings})) as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel,
    ):
        yield Front(channel, f"127.0.0.1:{running.port}")


@contextlib.asynccontextmanager
async def run_cache(path: Path) -> AsyncGenerator[asyncio.subprocess.Process]:
    options = ["--port", "0", "--unixsocket", str(path), "--save", "", "--appendonly", "no", "--loglevel", "notice"]
    process = await asyncio.create_subprocess_exec(
        str(find_binary()), *options, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE_S):
            while b"eady to accept connections" not in await process.stdout.readline():
                assert process.returncode is None
        yield process
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.communicate()


def details_of(error: grpc.aio.AioRpcError) -> tuple[status_pb2.Status, list[tuple[str, str]]]:
    """The rich status of an error and its field violations."""
    status = rpc_status.from_call(error)  # pyright: ignore[reportArgumentType]
    assert status is not None
    violations: list[tuple[str, str]] = []
    for packed in status.details:
        bad_request = error_details_pb2.BadRequest()
        if packed.Unpack(bad_request):
            violations += [(v.field, v.description) for v in bad_request.field_violations]
    return status, violations
