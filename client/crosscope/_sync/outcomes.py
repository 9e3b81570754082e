# Written by client/generate.py from _async/outcomes.py. Do not edit.
"""What comes of many prompts: in order, asked again where the server is busy, and over a new stream where one breaks.

Knows no handle and no tokens.
"""

import time
from bisect import insort
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field

import grpc

from crosscope import _blocking
from crosscope._errors import CrosscopeError, ServerError
from crosscope._repeats import Failure
from crosscope._status import error_of_item, failure_of_item
from crosscope._sync.transport import Transport
from crosscope_proto.v1 import prompts_pb2
from crosscope_proto.v1.prompts_pb2_grpc import PromptsStub


@dataclass(order=True)
class _Prompt:
    """A prompt that was drawn and whose outcome was not handed out yet."""

    number: int
    """Its place among all prompts."""
    request: prompts_pb2.EncodeRequest | None = field(compare=False)
    outcome: prompts_pb2.EncodeResponse | CrosscopeError | None = field(default=None, compare=False)
    sent_s: float = field(default=0.0, compare=False)


class Outcomes:
    """One pass over many prompts."""

    def __init__(self, transport: Transport, in_flight: int) -> None:
        self._transport = transport
        self._in_flight = in_flight
        self._window = float(in_flight)
        """How many are sent and not answered: one more a round while all goes well, half after a refusal."""
        self._halved_s = 0.0
        self._unsent: list[_Prompt] = []
        self._sent: deque[_Prompt] = deque()
        self._not_before_s = 0.0
        self._patience = transport.patience(transport.connection.timeout_s)
        """How long to go on without any outcome."""

    def of(
        self, requests: Iterator[prompts_pb2.EncodeRequest | CrosscopeError]
    ) -> Generator[prompts_pb2.EncodeResponse | CrosscopeError, None, None]:
        """The response or the error of every request, in order. An error in place of a request is passed on."""
        waiting: deque[_Prompt] = deque()
        num_drawn = 0
        stream = self._open()
        try:
            while True:
                while len(waiting) < self._in_flight and (request := next(requests, None)) is not None:
                    waiting.append(self._drawn(num_drawn, request))
                    num_drawn += 1
                if not waiting:
                    return
                if (outcome := waiting[0].outcome) is not None:
                    waiting.popleft()
                    yield outcome
                    continue
                try:
                    self._advance(stream)
                except grpc.RpcError as error:
                    self._break(error)
                    stream.close()
                    stream = self._open()
        finally:
            stream.close()

    def _open(self) -> "_blocking.Conversation[prompts_pb2.EncodeStreamResponse]":
        return self._transport.converse(self._transport.stub(PromptsStub).EncodeStream)

    def _drawn(self, number: int, request: prompts_pb2.EncodeRequest | CrosscopeError) -> _Prompt:
        if isinstance(request, CrosscopeError):
            return _Prompt(number, None, request)
        self._unsent.append(prompt := _Prompt(number, request))
        return prompt

    def _advance(self, stream: "_blocking.Conversation[prompts_pb2.EncodeStreamResponse]") -> None:
        """Sends what may be sent, and takes one reply."""
        wait_s = self._not_before_s - time.monotonic()
        if wait_s > 0 and not self._sent:
            _blocking.sleep(wait_s)
        while self._unsent and len(self._sent) < self._window and time.monotonic() >= self._not_before_s:
            prompt = self._unsent.pop(0)
            stream.send(prompts_pb2.EncodeStreamRequest(sequence=prompt.number, request=prompt.request))
            prompt.sent_s = time.monotonic()
            self._sent.append(prompt)
        if not self._sent:
            return
        with _blocking.failing():
            reply = stream.receive()
        prompt = self._sent[0]
        if reply is None or reply.sequence != prompt.number:
            at = f"at prompt {prompt.number}"
            raise ServerError(f"the stream of {self._transport.address} ended or lost its order {at}")
        self._sent.popleft()
        self._take(prompt, reply)

    def _take(self, prompt: _Prompt, reply: prompts_pb2.EncodeStreamResponse) -> None:
        """Keeps an outcome, or puts the prompt back where the server asks to come again."""
        failure = Failure(is_passing=False)
        if reply.WhichOneof("outcome") == "error":
            failure = failure_of_item(reply.error)
        if (pause_s := self._patience.pause_s(failure)) is not None:
            insort(self._unsent, prompt)
            self._not_before_s = time.monotonic() + pause_s
            if prompt.sent_s >= self._halved_s:
                self._window, self._halved_s = max(1.0, self._window / 2), time.monotonic()
            return
        is_answer = reply.WhichOneof("outcome") == "response"
        prompt.outcome = reply.response if is_answer else error_of_item(reply.error)
        self._window = min(self._in_flight, self._window + 1 / self._window)
        self._patience = self._transport.patience(self._transport.connection.timeout_s)

    def _break(self, error: grpc.RpcError) -> None:
        """Puts back what the broken stream has not answered, and waits. Raises its error where nothing helps."""
        if (pause_s := self._transport.pause_s(error, self._patience)) is None:
            raise self._transport.error(error, None) from None
        while self._sent:
            insort(self._unsent, self._sent.popleft())
        _blocking.sleep(pause_s)
