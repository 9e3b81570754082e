"""Asks one worker for the codes of several prompts in one message, where they are asked for at the same moment.

A call takes gRPC as much as everything else that server and worker do with a short prompt. Nobody waits for others to
come: what is asked in one turn of the event loop goes together, and whoever is alone goes alone. When a batch is
answered, as many prompts get their turn at once, so batches stay together. Each prompt keeps its id, its deadline and
its error. Knows no queue and no codes.
"""

import asyncio
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from google.rpc import status_pb2

from crosscope_proto import request_ids, tracing
from crosscope_proto.worker.v1 import inference_pb2

MAX_CALLS = 32
"""Prompts that go together."""
MAX_COST = 2048.0
"""Tokens that go together. Of long prompts the models take most of the time, and gRPC little."""

Code = asyncio.Future[inference_pb2.EncodeResponse]
_CODES = {code.value[0]: code for code in grpc.StatusCode}
_DETAILS = "grpc-status-details-bin"


@dataclass(eq=False)
class _Member:
    request: inference_pb2.EncodeRequest
    timeout_s: float | None
    code: Code
    context: Context = field(default_factory=copy_context)
    """That of the call which it is for."""
    request_id: str = field(default_factory=request_ids.current)
    traceparent: str = field(default_factory=tracing.current_traceparent)

    def call(self) -> inference_pb2.EncodeManyRequest.Call:
        """Its part of a message for many."""
        return inference_pb2.EncodeManyRequest.Call(
            request=self.request,
            request_id=self.request_id,
            traceparent=self.traceparent,
            timeout_s=self.timeout_s or 0.0,
        )


@dataclass(eq=False)
class _Group:
    members: list[_Member] = field(default_factory=list[_Member])
    cost: float = 0.0

    @property
    def waiting(self) -> list[_Member]:
        """Members whose callers still wait."""
        return [member for member in self.members if not member.code.done()]

    @property
    def timeout_s(self) -> float | None:
        """The longest of all."""
        each = [member.timeout_s for member in self.waiting]
        return None if None in each else max(filter(None, each))


class Together:
    """The codes that one worker is asked for. For one event loop."""

    def __init__(self, inference: Any) -> None:
        """`inference` is a stub of the worker's service, which sends the metadata of the current call."""
        self._inference = inference
        self._groups: dict[tuple[str, str], _Group] = {}
        """What is asked in this turn of the event loop, by crosscoder and version."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_old = False
        """Whether the worker does not know EncodeMany."""

    def restarted(self) -> None:
        """Says that the worker may be another one now."""
        self._is_old = False

    def encode(self, request: inference_pb2.EncodeRequest, cost: float, timeout_s: float | None) -> Code:
        """The code of a prompt of about `cost` tokens. It fails as a call does, and may be cancelled."""
        loop = asyncio.get_running_loop()
        member = _Member(request, timeout_s, loop.create_future())
        key = request.crosscoder, request.version_id
        group = self._groups.get(key)
        if group is None or self._is_old or group.cost + cost > MAX_COST or len(group.members) == MAX_CALLS:
            group = self._groups[key] = _Group()
            loop.call_soon(self._send, key, group)
        group.members.append(member)
        group.cost += cost
        return member.code

    def _send(self, key: tuple[str, str], group: _Group) -> None:
        if self._groups.get(key) is group:
            del self._groups[key]
        if group.waiting:
            task = asyncio.get_running_loop().create_task(self._ask(group), context=group.waiting[0].context)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            for member in group.waiting:
                member.code.add_done_callback(lambda _: None if group.waiting else task.cancel())

    async def _ask(self, group: _Group) -> None:
        """Asks, and hands out what comes. Cancelled when nobody waits for it any more."""
        members = group.waiting
        try:
            if len(members) == 1:
                request = members[0].request
                answers: list[Any] = [await self._inference.Encode(request, timeout=members[0].timeout_s)]
            else:
                answers = await self._many(group, members)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED and len(members) > 1:
                self._is_old = True
                for member in group.waiting:
                    self._send(("", ""), _Group([member]))
                return
            answers = [error] * len(members)
        except asyncio.CancelledError:
            for member in group.waiting:
                member.code.cancel()
            raise
        except Exception as error:  # a bug: each caller hears of it
            answers = [error] * len(members)
        for member, answer in zip(members, answers, strict=True):
            if member.code.done():
                continue
            if isinstance(answer, Exception):
                member.code.set_exception(answer)
            else:
                member.code.set_result(answer)

    async def _many(self, group: _Group, members: list[_Member]) -> list[Any]:
        """The response or the error of each."""
        loop = asyncio.get_running_loop()
        timers = [loop.call_later(each.timeout_s, _late, each) for each in members if each.timeout_s is not None]
        try:
            request = inference_pb2.EncodeManyRequest(calls=[each.call() for each in members])
            reply = await self._inference.EncodeMany(request, timeout=group.timeout_s)
        finally:
            for timer in timers:
                timer.cancel()
        if len(reply.outcomes) != len(members):
            sentence = f"the worker answered {len(reply.outcomes)} of {len(members)} prompts"
            raise _error(grpc.StatusCode.INTERNAL, sentence)
        return [each.response if each.HasField("response") else _error_of(each.status) for each in reply.outcomes]


def _late(member: _Member) -> None:
    if not member.code.done():
        member.code.set_exception(_error(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"))


def _error_of(data: bytes) -> grpc.aio.AioRpcError:
    """The error of a call that ended with a status."""
    status = status_pb2.Status.FromString(data)
    return _error(_CODES[status.code], status.message, grpc.aio.Metadata((_DETAILS, data)))


def _error(code: grpc.StatusCode, sentence: str, trailing: Any = None) -> grpc.aio.AioRpcError:
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, nothing, nothing if trailing is None else trailing, sentence, "")
