"""The inference workers: which serve, what each has been given, and which stand still.

Health is watched, so the server learns at once of a worker that starts or stops. It is also asked for again and again,
because a process that hangs says nothing and keeps its connection. Knows nothing about codes, and not who is next.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from crosscope_proto.worker.v1 import inference_pb2, inference_pb2_grpc
from crosscope_server.together import Together
from crosscope_server.window import Window
from crosscope_server.worker_channel import WithMetadata

CHECK_EVERY_S, CHECK_S = 0.25, 0.5
"""Pause between two checks of a worker's health, and how long one may take."""
HANGS_AFTER = 4
"""So many checks without an answer in a row: the worker stands still, for 2 s then."""
LOST_AFTER = 20
"""Checks after which streams that have begun are given up too, some 10 s."""
_MAX_STREAMS = 128
"""Streams of new tokens at one worker; it has a queue of its own for their memory."""
_RETRY_S = 0.25
_RESTART_S = 60.0
"""How long workers that have gone are expected to come back."""
_CONNECT_EVERY_S = 0.02
_DESCRIBE_S = 1.0
_RECONNECT_MS = 200
"""Longest pause between two tries to reach a worker. A worker that starts is found within this time."""
_HOW_TO_START = "start one with `python -m crosscope_worker serve`; browsing works without"
_SERVING = health_pb2.HealthCheckResponse.SERVING
_OPTIONS = [
    ("grpc.max_receive_message_length", 256 * 1024 * 1024),
    ("grpc.max_send_message_length", 16 * 1024 * 1024),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", _RECONNECT_MS),
    ("grpc.min_reconnect_backoff_ms", 2000),  # how long one try may take
    ("grpc.keepalive_time_ms", 360_000),  # a gRPC server cuts off clients that ping more often than every five minutes
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.use_local_subchannel_pool", 1),
]

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Asked:
    """A call that a worker was asked."""

    call: Any
    """grpc.aio's, or a future of Together."""
    may_move: bool = True
    """Whether another worker may be asked the same: not once a part of the answer was handed on."""
    was_moved: bool = False
    """Whether it was cut off here because the worker stands still."""

    def move(self) -> None:
        """Ends the call at this worker."""
        self.was_moved = True
        self.call.cancel()


@dataclass(eq=False)
class Worker:
    """A worker, and what it has been given."""

    target: str
    channel: grpc.aio.Channel
    health_channel: grpc.aio.Channel
    """A connection of its own, so that health waits for no answers."""
    inference: Any
    is_alive: bool = False
    num_silent: int = 0
    """Checks of its health without an answer in a row."""
    prompts: Window = field(default_factory=Window)
    streams: Window = field(default_factory=lambda: Window(limit=_MAX_STREAMS, is_fixed=True))
    under_way: set[Asked] = field(default_factory=set[Asked])
    to_check: asyncio.Event = field(default_factory=asyncio.Event)
    """Set where its health should be asked for at once."""

    def __post_init__(self) -> None:
        self.together = Together(self.inference)

    def ask(self, method: str, request: Any, cost: float, timeout_s: float | None) -> Any:
        """A call with one answer: something to await, and to `cancel`. Codes are asked together (together.py)."""
        if method == "Encode":
            return self.together.encode(request, cost, timeout_s)
        return getattr(self.inference, method)(request, timeout=timeout_s)

    @contextmanager
    def asking(self, asked: Asked) -> Generator[None]:
        """Counts a call as under way for as long as the context lasts."""
        self.under_way.add(asked)
        try:
            yield
        finally:
            self.under_way.discard(asked)


class Workers:
    """A set of workers; each can answer every call. For one event loop; call `start` first and `close` last."""

    def __init__(
        self, targets: Sequence[str], on_change: Callable[[bool], Awaitable[None]], token: str | None = None
    ) -> None:
        """Takes gRPC targets, and the token that workers ask for.

        `on_change` is told whether any worker is alive, each time that this changes.
        """
        self._token = token
        self._workers: list[Worker] = []
        self._targets = targets
        self._on_change = on_change
        self._tasks: list[asyncio.Task[None]] = []
        self.listeners: list[Callable[[], None]] = []
        """Called at the start, and when a worker begins or ceases to serve."""
        self.none_since: float | None = None
        """Time of the event loop since which no worker serves; None while one does."""

    @property
    def alive(self) -> Sequence[Worker]:
        """Workers that serve."""
        return [worker for worker in self._workers if worker.is_alive]

    @property
    def num(self) -> int:
        """All workers, those that do not serve among them."""
        return len(self._targets)

    @property
    def may_come_back(self) -> bool:
        """Whether none serves for so short a time that one may just be starting again: whoever waits for it may."""
        gone_at = self.none_since
        return bool(self._targets) and gone_at is not None and asyncio.get_running_loop().time() - gone_at < _RESTART_S

    def start(self) -> None:
        """Connects and begins to watch."""
        self.none_since = asyncio.get_running_loop().time()
        for target in self._targets:
            channel, health_channel = (grpc.aio.insecure_channel(target, options=_OPTIONS) for _ in range(2))
            with_metadata: Any = WithMetadata(channel, self._token)
            inference = inference_pb2_grpc.InferenceStub(with_metadata)
            self._workers.append(Worker(target, channel, health_channel, inference))
        for worker in self._workers:
            self._tasks += [asyncio.create_task(self._watch(worker)), asyncio.create_task(self._check(worker))]
        for tell in self.listeners:
            tell()

    async def close(self) -> None:
        """Stops watching and disconnects."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for worker in self._workers:
            await worker.channel.close(None)
            await worker.health_channel.close(None)

    async def lost(self, worker: Worker, why: str | None) -> None:
        """Says that a call found a worker gone. It is not used again before its health was asked for."""
        log.warning("worker is gone", extra={"worker": worker.target, "error": why})
        await self._set_alive(worker, is_alive=False)
        worker.to_check.set()

    async def describe(self) -> list[tuple[bool, inference_pb2.DescribeResponse | None]]:
        """For each worker whether its health says that it serves, and how it stands; None: it does not answer."""
        return await asyncio.gather(*map(self._describe, self._workers))

    async def _describe(self, worker: Worker) -> tuple[bool, inference_pb2.DescribeResponse | None]:
        if not worker.is_alive:
            return False, None
        try:
            return True, await worker.inference.Describe(inference_pb2.DescribeRequest(), timeout=_DESCRIBE_S)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:  # it answers, and is older than this server
                return True, inference_pb2.DescribeResponse()
            return True, None

    def why_none(self) -> str:
        """Why no worker answers, and what to do."""
        if not self._targets:
            return f"this server has no inference worker (CROSSCOPE_SERVER_WORKERS is empty); {_HOW_TO_START}"
        return f"no inference worker answers at {', '.join(self._targets)}; {_HOW_TO_START}"

    async def _watch(self, worker: Worker) -> None:
        stub = health_pb2_grpc.HealthStub(worker.health_channel)
        while True:
            try:
                async for reply in stub.Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True):
                    await self._set_alive(worker, is_alive=reply.status == _SERVING)
            except grpc.aio.AioRpcError as error:
                log.debug("health watch ended", extra={"worker": worker.target, "error": error.details()})
            await self._set_alive(worker, is_alive=False)
            await asyncio.sleep(_RETRY_S)

    async def _check(self, worker: Worker) -> None:
        """Asks for a worker's health for ever."""
        stub = health_pb2_grpc.HealthStub(worker.health_channel)
        while True:
            try:
                reply = await stub.Check(health_pb2.HealthCheckRequest(), timeout=CHECK_S)
            except grpc.aio.AioRpcError as error:
                is_silent = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
                worker.num_silent = worker.num_silent + 1 if is_silent else 0
                await self._leave(worker)
            else:
                worker.num_silent = 0
                await self._set_alive(worker, is_alive=reply.status == _SERVING)
            if not worker.num_silent:  # a check without an answer took its time, and was pause enough
                worker.to_check.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(worker.to_check.wait(), CHECK_EVERY_S)

    async def _leave(self, worker: Worker) -> None:
        """Uses a worker no more that stands still, and takes its calls away."""
        if worker.num_silent < HANGS_AFTER:
            return
        if worker.is_alive:
            facts = {"worker": worker.target, "calls": len(worker.under_way)}
            log.error("worker stands still: its calls go to others", extra=facts)
            await self._set_alive(worker, is_alive=False)
        for asked in [each for each in worker.under_way if each.may_move or worker.num_silent >= LOST_AFTER]:
            asked.move()

    async def _set_alive(self, worker: Worker, *, is_alive: bool) -> None:
        if worker.is_alive == is_alive or (is_alive and not await _connected(worker)) or worker.is_alive == is_alive:
            return
        worker.is_alive = is_alive
        worker.together.restarted()
        log.info("worker serves" if is_alive else "worker does not serve", extra={"worker": worker.target})
        was_any, is_any = self.none_since is None, bool(self.alive)
        self.none_since = None if is_any else self.none_since or asyncio.get_running_loop().time()
        for tell in self.listeners:
            tell()
        if is_any != was_any:
            await self._on_change(is_any)


async def _connected(worker: Worker) -> bool:
    """Whether the connection for calls stands too; it has a moment for it."""
    until = asyncio.get_running_loop().time() + CHECK_S
    while worker.channel.get_state(try_to_connect=True) is not grpc.ChannelConnectivity.READY:
        if asyncio.get_running_loop().time() > until:
            return False
        await asyncio.sleep(_CONNECT_EVERY_S)
    return True
