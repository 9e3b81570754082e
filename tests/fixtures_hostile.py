"""A server, a worker and a queue as processes of their own, and a caller who sends them whatever the descriptors allow.

Everything is real and small: a crosscoder with tables and weights of a tiny pair, a look, a job. Logs go to files.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import torch
from fixtures_artefacts import write_crosscoder
from fixtures_looks import write_look
from fixtures_messages import MARK, Maker, damaged
from fixtures_ports import free_port
from fixtures_serve import LATENTS, LAYER, random_crosscoder
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from crosscope_local.redis import find_binary
from crosscope_proto.artefacts import PAIR_MANIFEST, PairManifest, version_folder
from crosscope_proto.columns import LATENT_COLUMNS
from crosscope_proto.specs import PairSpec
from crosscope_proto.v1 import (
    annotations_pb2,
    effects_pb2,
    jobs_pb2,
    jobs_pb2_grpc,
    latents_pb2,
    latents_pb2_grpc,
    looks_pb2,
    prompts_pb2,
    prompts_pb2_grpc,
    types_pb2,
)
from crosscope_proto.worker.v1 import inference_pb2
from crosscope_worker.models.fingerprints import pair_hashes
from crosscope_worker.models.places import resolve_pair
from tests.worker.conftest import gemma_tokenizer, random_gemma

_OWN = (latents_pb2, annotations_pb2, looks_pb2, prompts_pb2, jobs_pb2, health_pb2, reflection_pb2)


def methods_of(*files: Any) -> list[MethodDescriptor]:
    """The methods of all services in .proto files."""
    services = [service for file in files for service in file.DESCRIPTOR.services_by_name.values()]
    return [method for service in services for method in service.methods]


SERVER_METHODS = methods_of(*_OWN)
WORKER_METHODS = methods_of(inference_pb2, health_pb2)
BUGS = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED})
_CLIENTS_OWN = "Internal error from Core"
"""What the client's library says where the server ends a call while it still sends."""
RECIPE = "kind: demo-pair\nname: mine\n"


def write_home(home: Path) -> str:
    """Writes a tiny pair, a crosscoder of it with its tables, and a look. Returns the crosscoder's version."""
    manifest = write_crosscoder(home, "demo", LATENTS)
    folder = home / "pairs" / "demo"
    torch.manual_seed(0)
    tokenizer = gemma_tokenizer()
    for model in ("base", "chat"):
        random_gemma(len(tokenizer)).save_pretrained(folder / model)
        tokenizer.save_pretrained(folder / model)
    pair = PairManifest(name="demo", base="base", chat="chat", tokenizer="chat")
    (folder / PAIR_MANIFEST).write_text(json.dumps(dataclasses.asdict(pair)))
    resolved = resolve_pair(PairSpec(name="demo"), home)
    crosscoder = random_crosscoder(threshold=20.0)
    real = dataclasses.replace(
        manifest,
        pair=resolved,
        layer=LAYER,
        d_model=crosscoder.d_model,
        threshold=20.0,
        input_scale=crosscoder.input_scale,
        hashes=pair_hashes(resolved),
    )
    crosscoder.save(Path(version_folder(home, "demo", manifest.version_id)), real)
    write_look(home, "look")
    return manifest.version_id


class Stack:
    """The processes, and their logs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        self.version_id = write_home(self.home)
        self.queue_url = f"unix://{folder}/queue.sock"
        self.server_address, self.worker_address = (f"127.0.0.1:{free_port()}" for _ in range(2))
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, **settings: str) -> None:
        """Starts everything; `settings` are variables of the server."""
        options = ["--port", "0", "--unixsocket", f"{self.folder}/queue.sock", "--save", "", "--appendonly", "no"]
        self._start("queue", [str(find_binary()), *options])
        self._start(
            "worker",
            [sys.executable, "-m", "crosscope_worker", "serve"],
            CROSSCOPE_WORKER_LISTEN=self.worker_address,
            CROSSCOPE_WORKER_ALLOW_ANYONE="true",
            CROSSCOPE_WORKER_NUM_THREADS="1",
        )
        self._start(
            "server",
            [sys.executable, "-m", "crosscope_server"],
            CROSSCOPE_SERVER_LISTEN=self.server_address,
            CROSSCOPE_SERVER_ALLOW_ANYONE="true",
            CROSSCOPE_SERVER_WORKERS=self.worker_address,
            CROSSCOPE_SERVER_QUEUE_URL=self.queue_url,
            **settings,
        )

    def _start(self, name: str, command: list[str], **environment: str) -> None:
        ours = {key: value for key, value in os.environ.items() if not key.startswith("CROSSCOPE_")}
        fixed = {"OMP_NUM_THREADS": "1", "CROSSCOPE_HOME": str(self.home), "HF_HUB_OFFLINE": "1"}
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command, env={**ours, **fixed, **environment}, cwd=self.folder, stdout=log, stderr=log
            )

    def log_of(self, name: str) -> str:
        """What a process has said so far."""
        return (self.folder / f"{name}.log").read_text("utf-8", "replace")

    def stop(self) -> None:
        """Ends everything."""
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    async def ready(self, address: str, service: str) -> None:
        """Waits until a service serves."""
        async with grpc.aio.insecure_channel(address) as channel, asyncio.timeout(90):
            watch = health_pb2_grpc.HealthStub(channel).Watch(
                health_pb2.HealthCheckRequest(service=service), wait_for_ready=True
            )
            async for reply in watch:
                if reply.status == health_pb2.HealthCheckResponse.SERVING:
                    break
            watch.cancel()


@contextlib.contextmanager
def running_stack(folder: Path, **settings: str) -> Iterator[Stack]:
    """A stack that is up, in a folder that goes with it."""
    folder.mkdir(parents=True, exist_ok=True)
    stack = Stack(folder)
    stack.start(**settings)
    try:
        yield stack
    finally:
        stack.stop()
        shutil.rmtree(folder, ignore_errors=True)


async def known_values(stack: Stack) -> dict[str, list[Any]]:
    """Values that lead a request past the first check, by the name of the field."""
    async with grpc.aio.insecure_channel(stack.server_address) as channel:
        latents, jobs = latents_pb2_grpc.LatentsStub(channel), jobs_pb2_grpc.JobsStub(channel)
        page: Any = await latents.ListLatents(latents_pb2.ListLatentsRequest(crosscoder="demo", page_size=2))
        made: Any = await jobs.SubmitJob(jobs_pb2.SubmitJobRequest(recipe_yaml=RECIPE))
        prompt = types_pb2.Prompt(text="the baker")
        await prompts_pb2_grpc.PromptsStub(channel).Compare(  # so that the models are in memory
            effects_pb2.CompareRequest(crosscoder="demo", prompt=prompt)
        )
    columns, token, version = [column.name for column in LATENT_COLUMNS], page.next_page_token, stack.version_id
    latents_there = [0, 3, LATENTS - 1]
    return {
        "crosscoder": ["demo"],
        "pair": ["", "", "", "demo"],
        "parse_control_tokens": [False],
        "ids": [5, 6, 7],
        "sequence_id": [0, 1],
        "other": ["demo"],
        "version_id": ["", version],
        "other_version_id": ["", version],
        "latent": latents_there,
        "latents": latents_there,
        "add": latents_there,
        "remove": latents_there,
        "dataset": ["", "chats"],
        "page_token": ["", token, token[:-1], "W10"],
        "page_size": [1, 20],
        "order_by": ["", *columns, *(f"-{column}" for column in columns)],
        "column": columns,
        "columns": columns,
        "text": [f"a {MARK} b c", "chat_only", "<end_of_turn>", f"the baker {MARK}"],
        "note": [f"{MARK} a note"],
        "name": ["", "mine", "look", "list"],
        "new_name": ["list", "mine"],
        "author": ["", "Ada", "Ω"],
        "seen_revision": [0, 1, 2],
        "role": ["user", "user", "user", "assistant", "tool"],
        "content": [f"hello {MARK}", "", " ", "🦊"],
        "tool_calls_json": ["", "", '[{"function": {"name": "f", "arguments": {"a": 1}}}]'],
        "chat_template_kwargs_json": ["", "", '{"a": 1}', '{"tools": []}'],
        "num_exact": [0, 1, 8],
        "max_new_tokens": [1, 3, 8],
        "num_samples": [1, 1, 2],
        "id": [made.job.id],
        "after": [made.job.id],
        "after_event": ["", "0", "1-1", f"{2**64}-0", f"{2**64 - 1}-{2**64}", "0-0-0", "٣", "-1", "9" * 20],
        "service": ["", "crosscope.v1.Latents"],
        "file_containing_symbol": ["crosscope.v1.Latents"],
        "containing_type": ["google.protobuf.FieldOptions"],
        "weights": ["", "0" * 64],
    }


@dataclasses.dataclass
class Tally:
    """What became of generated calls."""

    codes: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)
    """Of method and status; CUT OFF where the caller went away."""
    wrong: list[str] = dataclasses.field(default_factory=list)
    """What may not be, with the request."""
    longest_s: float = 0.0

    @property
    def num_calls(self) -> int:
        """All calls."""
        return self.codes.total()

    def share(self, code: str) -> float:
        """How many of all calls ended with a status."""
        return sum(count for (_, name), count in self.codes.items() if name == code) / max(1, self.num_calls)


class Attacker:
    """Sends generated calls to an address, several at once."""

    def __init__(self, address: str, methods: Sequence[MethodDescriptor], known: dict[str, list[Any]]) -> None:
        self._address, self._methods, self._known = address, methods, known
        self.tally = Tally()

    async def attack(self, num: int, seed: int, *, at_once: int = 16, limit_s: float = 5.0) -> Tally:
        """Sends `num` calls, equally many of each method. One that takes longer than `limit_s` is wrong."""
        maker = Maker(seed, self._known)
        calls = iter(range(num))
        async with contextlib.AsyncExitStack() as stack:
            options = [("grpc.use_local_subchannel_pool", 1)]
            channels = [
                await stack.enter_async_context(grpc.aio.insecure_channel(self._address, options=options))
                for _ in range(2)
            ]

            async def one_after_the_other(channel: grpc.aio.Channel) -> None:
                for number in calls:
                    await self._one(channel, self._methods[number % len(self._methods)], maker, limit_s)

            await asyncio.gather(*(one_after_the_other(channels[i % 2]) for i in range(at_once)))
        return self.tally

    async def _one(self, channel: grpc.aio.Channel, method: MethodDescriptor, maker: Maker, limit_s: float) -> None:
        source = maker.random
        num = source.choice((0, 1, 1, 2, 5)) if method.client_streaming else 1
        requests = [_bytes(method, maker) for _ in range(num)]
        cut_off_s = source.choice((0.0, 0.001, 0.01)) if source.random() < 0.05 else None
        begun = time.monotonic()
        replies, outcome, details = await _asked(channel, method, requests, limit_s, cut_off_s)
        self.tally.longest_s = max(self.tally.longest_s, time.monotonic() - begun)
        path = f"/{method.containing_service.full_name}/{method.name}"
        name = "CUT OFF" if outcome is None else outcome.name
        self.tally.codes[path, name] += 1
        if wrong := _what_is_wrong(method, outcome, details, replies):
            self.tally.wrong.append(f"{path} {wrong}: {_shown(method, requests)}")


def _bytes(method: MethodDescriptor, maker: Maker) -> bytes:
    data = maker.request(method.input_type).SerializeToString()
    return damaged(data, maker.random) if maker.random.random() < 0.2 else data


async def _asked(
    channel: grpc.aio.Channel,
    method: MethodDescriptor,
    requests: Sequence[bytes],
    limit_s: float,
    cut_off_s: float | None,
) -> tuple[list[bytes], grpc.StatusCode | None, str]:
    """The first replies of a call, its status and sentence; no status where the caller goes away first."""
    make: Any = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
        (True, True): channel.stream_stream,
    }[method.client_streaming, method.server_streaming]
    call = make(f"/{method.containing_service.full_name}/{method.name}")(
        _sent(requests) if method.client_streaming else requests[0], timeout=limit_s
    )
    if cut_off_s is not None:
        await asyncio.sleep(cut_off_s)
        call.cancel()
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
            await call.code()
        return [], None, ""
    replies: list[bytes] = []
    try:
        if not method.server_streaming:
            return [await call], grpc.StatusCode.OK, ""
        while (reply := await call.read()) is not grpc.aio.EOF:
            replies.append(reply)
            if len(replies) == 5 or method.name in ("Watch", "WatchJob"):
                call.cancel()
                return replies, None, ""
    except grpc.aio.AioRpcError as error:
        if error.details() == _CLIENTS_OWN and method.client_streaming:
            return replies, None, ""
        return replies, error.code(), error.details() or ""
    return replies, grpc.StatusCode.OK, ""


async def _sent(requests: Sequence[bytes]) -> AsyncIterator[bytes]:
    for request in requests:
        yield request


def _what_is_wrong(
    method: MethodDescriptor, outcome: grpc.StatusCode | None, details: str, replies: Sequence[bytes]
) -> str:
    """Why an outcome may not be; empty if it may."""
    if outcome in BUGS or outcome is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"{outcome.name} {details!r}"
    if outcome not in (None, grpc.StatusCode.OK) and " " not in details:
        return f"{outcome.name} without a sentence: {details!r}"
    if method.name == "EncodeStream":
        for reply in replies:
            error = prompts_pb2.EncodeStreamResponse.FromString(reply).error
            if error.code in {code.value[0] for code in BUGS}:
                return f"INTERNAL in a reply {error.message!r}"
            if error.code and status_pb2.Status.FromString(error.status).message != error.message:
                return "a reply with another status"
    return ""


def _shown(method: MethodDescriptor, requests: Sequence[bytes]) -> str:
    """The requests for people: as text where they parse."""
    texts = []
    for request in requests:
        try:
            texts.append(str(GetMessageClass(method.input_type).FromString(request))[:600])
        except DecodeError:
            texts.append(f"bytes {request[:200]!r}")
    return "; ".join(texts)


def leaks(log: str) -> list[str]:
    """Lines of a log that hold text of a request or a traceback, or tell of a bug."""
    signs = (MARK, "Traceback", '"exception"', '"bug"', "never retrieved")
    return [line[:1000] for line in log.splitlines() if any(sign in line for sign in signs)]
