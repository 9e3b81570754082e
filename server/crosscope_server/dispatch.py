"""Asks inference workers: each call when its turn has come, and of another worker if the first is gone, busy or hangs.

Calls change nothing, so asking twice does no harm. Knows nothing about codes.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from enum import StrEnum
from typing import Any

import grpc.aio
from google.protobuf.message import Message

from crosscope_proto.v1 import effects_pb2, types_pb2
from crosscope_proto.worker.v1 import inference_pb2
from crosscope_server.errors import Unavailable
from crosscope_server.line import Line, Work
from crosscope_server.refusals import Refused
from crosscope_server.worker_errors import RETRY_S, caller_error, is_gone
from crosscope_server.workers import Asked, Worker, Workers

MAX_WAITING = 1024
"""Prompts that wait; a stream has several at a time."""
MAX_TRIES = 3
"""Workers that one call is asked of, one after the other."""
_MIN_COST, _BYTES_A_TOKEN = 16.0, 4.0
_DEFAULT_NUM_EXACT = 32
_READING = 8.0
"""Tokenising costs so much less than running the models."""


class Why(StrEnum):
    """Why a call was asked of another worker."""

    GONE = "gone"
    BUSY = "busy"
    HANGS = "hangs"


Moved = Counter[Why]
"""Calls by why they were asked of another worker."""


class Dispatch:
    """Calls of workers. For one event loop."""

    def __init__(
        self,
        workers: Workers,
        hold_s: float,
        on_answer: Callable[[str, float], None] = lambda _method, _seconds: None,
    ) -> None:
        """Calls wait for `hold_s` seconds where no worker serves.

        `on_answer` is told the method and the seconds of each answer with one message.
        """
        self._workers = workers
        self._on_answer = on_answer
        self.refused = Refused()
        """Calls that were refused, by reason."""
        self.moved = Moved()
        """Calls that were asked of another worker, by what was wrong with the first."""
        self.prompts = Line(workers, lambda worker: worker.prompts, MAX_WAITING, hold_s, self.refused)
        """Where prompts wait that are answered at once."""
        self.streams = Line(workers, lambda worker: worker.streams, MAX_WAITING, hold_s, self.refused)
        """Where prompts wait that are continued."""

    def close(self) -> None:
        """Stops waiting for workers."""
        self.prompts.close()
        self.streams.close()

    async def encode(
        self, request: inference_pb2.EncodeRequest, timeout_s: float | None, *, is_bulk: bool = False
    ) -> inference_pb2.EncodeResponse:
        """The code of a prompt. Raises CallError."""
        work = Work(num_tokens(request.prompt), is_bulk)
        return await self._call("Encode", request, work, timeout_s)

    async def tokenize(
        self, request: inference_pb2.TokenizeRequest, timeout_s: float | None
    ) -> inference_pb2.TokenizeResponse:
        """The tokens of a prompt. Raises CallError."""
        work = Work(num_tokens(request.prompt) / _READING)
        return await self._call("Tokenize", request, work, timeout_s)

    async def compare(
        self, request: inference_pb2.CompareRequest, timeout_s: float | None
    ) -> inference_pb2.CompareResponse:
        """How both models' predictions differ. Raises CallError."""
        work = Work(2 * num_tokens(request.request.prompt))
        return await self._call("Compare", request, work, timeout_s)

    async def attribute(
        self, request: inference_pb2.AttributeRequest, timeout_s: float | None
    ) -> inference_pb2.AttributeResponse:
        """The latents that carry a difference. Raises CallError."""
        tokens = num_tokens(request.request.prompt)
        work = Work(tokens * (2 + _num_exact(request.request)), least=2 * tokens)
        return await self._call("Attribute", request, work, timeout_s)

    async def generate(
        self, request: inference_pb2.GenerateRequest, timeout_s: float | None
    ) -> AsyncGenerator[inference_pb2.GenerateResponse]:
        """Continuations of a prompt, piece by piece; closing the generator ends the worker's call. Raises CallError.

        Another worker is asked only before the first message.
        """
        deadline, attempt = _deadline(timeout_s), _Attempt(self._workers, self.moved)
        while True:
            place = await self.streams.enter(Work(1.0), deadline, attempt.asked)
            worker, num_sent, is_whole = place.worker, 0, False
            attempt.begins()
            call = worker.inference.Generate(request, timeout=_left(deadline))
            asked = Asked(call)
            try:
                with worker.asking(asked):
                    try:
                        async for message in call:
                            num_sent += 1
                            asked.may_move = False
                            yield message
                        is_whole = True
                        return
                    except grpc.aio.AioRpcError as error:
                        if num_sent and not is_gone(error):
                            raise caller_error(error) from error
                        await attempt.failed(worker, error)
                    except asyncio.CancelledError:
                        if not _was_moved(asked.was_moved):
                            raise
                        attempt.hangs(worker)
            finally:
                call.cancel()
                place.end(answered=is_whole)
            if num_sent:
                raise Unavailable(
                    f"the inference worker ended in the middle of the answer, after {num_sent} messages; ask again",
                    retry_after_s=RETRY_S,
                )

    async def _call(self, method: str, request: Message, work: Work, timeout_s: float | None) -> Any:
        deadline, attempt = _deadline(timeout_s), _Attempt(self._workers, self.moved)
        while True:
            place = await self.prompts.enter(work, deadline, attempt.asked)
            worker, is_answered = place.worker, False
            attempt.begins()
            asked = Asked(worker.ask(method, request, work.cost, _left(deadline)))
            try:
                with worker.asking(asked):
                    started = time.perf_counter()
                    reply = await asked.call
                    self._on_answer(method, time.perf_counter() - started)
                    is_answered = True
                    return reply
            except grpc.aio.AioRpcError as error:
                await attempt.failed(worker, error)
            except asyncio.CancelledError:
                if not _was_moved(asked.was_moved):
                    raise
                attempt.hangs(worker)
            finally:
                place.end(answered=is_answered)


class _Attempt:
    """The tries of one call."""

    def __init__(self, workers: Workers, moved: Moved) -> None:
        self._workers = workers
        self._moved = moved
        self._why: Why | None = None
        self.asked: list[Worker] = []

    def begins(self) -> None:
        """Counts the call as moved, if a worker was asked before."""
        if self._why is not None:
            self._moved[self._why] += 1

    async def failed(self, worker: Worker, error: grpc.aio.AioRpcError) -> None:
        """Returns if the call may be asked again; else raises the caller's error."""
        self.asked.append(worker)
        if is_gone(error):
            await self._workers.lost(worker, error.details())
            if len(self.asked) >= MAX_TRIES:
                raise caller_error(error) from error
            self._why = Why.GONE
            return
        is_busy = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        if not is_busy or not any(each not in self.asked for each in self._workers.alive):
            raise caller_error(error) from error
        self._why = Why.BUSY

    def hangs(self, worker: Worker) -> None:
        """Notes a worker that stands still. Raises Unavailable if it is not the first."""
        self.asked.append(worker)
        if len(self.asked) >= MAX_TRIES:
            sentence = f"{len(self.asked)} inference workers were asked, and each stopped answering; ask again"
            raise Unavailable(sentence, retry_after_s=RETRY_S)
        self._why = Why.HANGS


def num_tokens(prompt: types_pb2.Prompt) -> float:
    """About how many tokens a prompt has; only its tokenizer knows."""
    if prompt.HasField("token_ids"):
        return max(_MIN_COST, len(prompt.token_ids.ids))
    return max(_MIN_COST, prompt.ByteSize() / _BYTES_A_TOKEN)


def _num_exact(request: effects_pb2.AttributeRequest) -> int:
    return request.num_exact if request.HasField("num_exact") else _DEFAULT_NUM_EXACT


def _was_moved(was_moved: bool) -> bool:
    """Whether a call was cut off at its worker, while its own task goes on."""
    task = asyncio.current_task()
    return was_moved and task is not None and not task.cancelling()


def _deadline(timeout_s: float | None) -> float | None:
    return None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.001, deadline - asyncio.get_running_loop().time())
