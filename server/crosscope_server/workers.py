"""The inference workers: which are alive, which is asked next, and what their errors mean to a caller.

Health is watched and not polled, so the server learns at once of a worker that starts or dies. Knows nothing about
codes.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from crosscope_proto import request_ids, tracing
from crosscope_proto.worker.v1 import inference_pb2, inference_pb2_grpc
from crosscope_server.errors import (
    BrokenArtefact,
    Conflict,
    InvalidRequest,
    NotFound,
    Overloaded,
    TooLate,
    Unavailable,
    Violation,
)

_RETRY_S = 0.25
_CHECK_S = 2.0
_DESCRIBE_S = 1.0
_RECONNECT_MS = 200
"""Longest pause between two tries to reach a worker. A worker that starts is found within this time."""
_HOW_TO_START = "start one with `python -m crosscope_worker serve`; browsing works without"
_GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
"""What a call ends with if its worker dies, or cuts it off because it stops. Our own callers' cancels are no errors."""
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
class _Worker:
    target: str
    channel: grpc.aio.Channel
    inference: Any
    is_alive: bool = False


class Workers:
    """A set of workers; each can answer every call. For one event loop; call `start` first and `close` last."""

    def __init__(
        self,
        targets: Sequence[str],
        on_change: Callable[[bool], Awaitable[None]],
        on_answer: Callable[[str, float], None],
    ) -> None:
        """Takes gRPC targets. `on_change` is told whether any worker is alive, each time that this changes, and
        `on_answer` the method and the seconds of each answer with one message.
        """
        self._workers: list[_Worker] = []
        self._targets = targets
        self._on_change, self._on_answer = on_change, on_answer
        self._watches: list[asyncio.Task[None]] = []
        self._checks: set[asyncio.Task[None]] = set()
        self._turn = 0

    @property
    def num_alive(self) -> int:
        """Workers that serve."""
        return sum(worker.is_alive for worker in self._workers)

    def start(self) -> None:
        """Connects and begins to watch."""
        for target in self._targets:
            channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
            self._workers.append(_Worker(target, channel, inference_pb2_grpc.InferenceStub(channel)))
        self._watches = [asyncio.create_task(self._watch(worker)) for worker in self._workers]

    async def close(self) -> None:
        """Stops watching and disconnects."""
        tasks = [*self._watches, *self._checks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for worker in self._workers:
            await worker.channel.close(None)

    async def describe(self) -> list[tuple[bool, inference_pb2.DescribeResponse | None]]:
        """For each worker whether its health says that it serves, and how it stands; None: it does not answer."""
        return await asyncio.gather(*map(self._describe, self._workers))

    async def _describe(self, worker: _Worker) -> tuple[bool, inference_pb2.DescribeResponse | None]:
        if not worker.is_alive:
            return False, None
        try:
            return True, await worker.inference.Describe(inference_pb2.DescribeRequest(), timeout=_DESCRIBE_S)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:  # it answers, and is older than this server
                return True, inference_pb2.DescribeResponse()
            return True, None

    async def encode(
        self, request: inference_pb2.EncodeRequest, timeout_s: float | None
    ) -> inference_pb2.EncodeResponse:
        """The code of a prompt. Raises CallError."""
        return await self._call(
            "Encode", lambda worker: worker.inference.Encode(request, timeout=timeout_s, metadata=call_metadata())
        )

    async def tokenize(
        self, request: inference_pb2.TokenizeRequest, timeout_s: float | None
    ) -> inference_pb2.TokenizeResponse:
        """The tokens of a prompt. Raises CallError."""
        return await self._call(
            "Tokenize", lambda worker: worker.inference.Tokenize(request, timeout=timeout_s, metadata=call_metadata())
        )

    async def compare(
        self, request: inference_pb2.CompareRequest, timeout_s: float | None
    ) -> inference_pb2.CompareResponse:
        """How both models' predictions differ. Raises CallError."""
        return await self._call(
            "Compare", lambda worker: worker.inference.Compare(request, timeout=timeout_s, metadata=call_metadata())
        )

    async def attribute(
        self, request: inference_pb2.AttributeRequest, timeout_s: float | None
    ) -> inference_pb2.AttributeResponse:
        """The latents that carry a difference. Raises CallError."""
        return await self._call(
            "Attribute", lambda worker: worker.inference.Attribute(request, timeout=timeout_s, metadata=call_metadata())
        )

    def generate(
        self, request: inference_pb2.GenerateRequest, timeout_s: float | None
    ) -> AsyncGenerator[inference_pb2.GenerateResponse]:
        """Continuations of a prompt, piece by piece; closing the generator ends the worker's call. Raises CallError."""
        return self._stream(
            lambda worker: worker.inference.Generate(request, timeout=timeout_s, metadata=call_metadata())
        )

    async def _call(self, method: str, call: Callable[[_Worker], Awaitable[Any]]) -> Any:
        """The answer of the next live worker, or of another if that one is gone or busy: calls change nothing."""
        asked: list[_Worker] = []
        busy: grpc.aio.AioRpcError | None = None
        while (worker := self._next(asked)) is not None:
            asked.append(worker)
            try:
                started = time.perf_counter()
                answer = await call(worker)
                self._on_answer(method, time.perf_counter() - started)
                return answer
            except grpc.aio.AioRpcError as error:
                busy = await self._passed_over(worker, error) or busy
        raise self._nobody(busy)

    async def _stream(self, start: Callable[[_Worker], Any]) -> AsyncGenerator[Any]:
        """The messages of the next live worker's stream. Another worker is asked only before the first message."""
        asked: list[_Worker] = []
        busy: grpc.aio.AioRpcError | None = None
        while (worker := self._next(asked)) is not None:
            asked.append(worker)
            call, num_sent = start(worker), 0
            try:
                async for message in call:
                    num_sent += 1
                    yield message
                return
            except grpc.aio.AioRpcError as error:
                busy = await self._passed_over(worker, error) or busy
                if num_sent and error.code() in _GONE:
                    raise Unavailable(
                        f"the inference worker ended in the middle of the answer, after {num_sent} messages; ask again",
                        retry_after_s=_RETRY_S,
                    ) from error
                if num_sent:
                    raise _caller_error(error) from error
            finally:
                call.cancel()
        raise self._nobody(busy)

    async def _passed_over(self, worker: _Worker, error: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError | None:
        """Returns where another worker may be asked, the error if this one is busy; else raises the caller's error."""
        if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return error
        if error.code() not in _GONE:
            raise _caller_error(error) from error
        log.warning("worker is gone", extra={"worker": worker.target, "error": error.details()})
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            await self._set_alive(worker, is_alive=False)
            check = asyncio.create_task(self._check(worker))
            self._checks.add(check)
            check.add_done_callback(self._checks.discard)
        return None

    async def _check(self, worker: _Worker) -> None:
        """Asks a worker that refused a call whether it serves. If it answers, no change of its health may ever come."""
        stub = health_pb2_grpc.HealthStub(worker.channel)
        try:
            reply = await stub.Check(health_pb2.HealthCheckRequest(), timeout=_CHECK_S)
        except grpc.aio.AioRpcError as error:  # The watch ends with the connection, and goes on with the next one.
            log.debug("worker does not answer", extra={"worker": worker.target, "error": error.details()})
        else:
            await self._set_alive(worker, is_alive=reply.status == health_pb2.HealthCheckResponse.SERVING)

    def _nobody(self, busy: grpc.aio.AioRpcError | None) -> Exception:
        """The error of a call that no worker answered."""
        return Unavailable(self._why_none(), retry_after_s=2.0) if busy is None else _caller_error(busy)

    def _next(self, asked: Sequence[_Worker]) -> _Worker | None:
        """The next worker in turn that is alive and not among `asked`."""
        for _ in range(len(self._workers)):
            self._turn = (self._turn + 1) % len(self._workers)
            if (worker := self._workers[self._turn]).is_alive and worker not in asked:
                return worker
        return None

    def _why_none(self) -> str:
        if not self._workers:
            return f"this server has no inference worker (CROSSCOPE_SERVER_WORKERS is empty); {_HOW_TO_START}"
        return f"no inference worker answers at {', '.join(self._targets)}; {_HOW_TO_START}"

    async def _watch(self, worker: _Worker) -> None:
        stub = health_pb2_grpc.HealthStub(worker.channel)
        serving = health_pb2.HealthCheckResponse.SERVING
        while True:
            try:
                async for reply in stub.Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True):
                    await self._set_alive(worker, is_alive=reply.status == serving)
            except grpc.aio.AioRpcError as error:
                log.debug("health watch ended", extra={"worker": worker.target, "error": error.details()})
            await self._set_alive(worker, is_alive=False)
            await asyncio.sleep(_RETRY_S)

    async def _set_alive(self, worker: _Worker, *, is_alive: bool) -> None:
        if worker.is_alive == is_alive:
            return
        before = self.num_alive > 0
        worker.is_alive = is_alive
        log.info("worker serves" if is_alive else "worker does not serve", extra={"worker": worker.target})
        if (after := self.num_alive > 0) != before:
            await self._on_change(after)


def call_metadata() -> tuple[tuple[str, str], ...]:
    """What a call to a worker says of the call that this server serves: its id, and the span above."""
    given = ((request_ids.METADATA, request_ids.current()), (tracing.TRACEPARENT, tracing.current_traceparent()))
    return tuple((key, value) for key, value in given if value)


def _caller_error(error: grpc.aio.AioRpcError) -> Exception:
    """The error that our caller gets for a worker's error. An unexpected one is a bug and stays as it is."""
    sentence = error.details() or error.code().name
    violations, retry_after_s = _details(error)
    match error.code():
        case grpc.StatusCode.INVALID_ARGUMENT | grpc.StatusCode.OUT_OF_RANGE:
            return InvalidRequest(violations or [Violation("prompt", sentence)], sentence)
        case grpc.StatusCode.NOT_FOUND:
            return NotFound(sentence)
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return Overloaded(sentence, retry_after_s=retry_after_s or 1.0)
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return TooLate("the deadline passed before the worker answered; allow more time or shorten the prompt")
        case grpc.StatusCode.DATA_LOSS:
            return BrokenArtefact(sentence)
        case grpc.StatusCode.FAILED_PRECONDITION:
            return Conflict(sentence)
        case _:
            return error


def _details(error: grpc.aio.AioRpcError) -> tuple[list[Violation], float | None]:
    """The fields that a worker found wrong, and after how many seconds to ask it again; None if it did not say."""
    status = rpc_status.from_call(error)  # pyright: ignore[reportArgumentType] (the stubs know no grpc.aio)
    violations: list[Violation] = []
    retry_after_s: float | None = None
    for packed in status.details if status else ():
        bad_request, retry = error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if packed.Unpack(bad_request):
            violations += [Violation(v.field, v.description) for v in bad_request.field_violations]
        elif packed.Unpack(retry):
            retry_after_s = retry.retry_delay.ToMilliseconds() / 1000
    return violations, retry_after_s
