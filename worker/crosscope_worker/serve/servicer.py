"""The service `crosscope.worker.v1.Inference`: decode, call, reply."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable
from concurrent.futures import Executor
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.rpc import status_pb2
from grpc_status import rpc_status

from crosscope_proto import __version__, request_ids
from crosscope_proto.rich_status import abort
from crosscope_proto.tracing import TRACEPARENT, close_span, make_current, open_span, span
from crosscope_proto.v1 import effects_pb2, system_pb2, types_pb2
from crosscope_proto.worker.v1 import inference_pb2, inference_pb2_grpc
from crosscope_worker.device_use import DeviceUse
from crosscope_worker.serve import messages, orders
from crosscope_worker.serve.errors import status_of
from crosscope_worker.serve.generation import Generations
from crosscope_worker.serve.loading import Loaded
from crosscope_worker.serve.metrics import Metrics
from crosscope_worker.serve.models import Models, allocated_bytes, device_bytes
from crosscope_worker.serve.prompts import left_out, tokenise
from crosscope_worker.serve.questions import DeviceQueue, WhichCode, WhichDifference, WhichLatents
from crosscope_worker.tokenizer.lengths import UNCOUNTED, TooLong
from crosscope_worker.tokenizer.tokens import PromptError, TokenisedText

Reply = TypeVar("Reply")
Context = grpc.aio.ServicerContext[Any, Any]
log = logging.getLogger(__name__)
COUNTED = 4
"""Tokenize tells how many tokens a prompt has that is up to so many times too long for the models."""
_SHORT_PROMPT_BYTES = 4096
"""Length of prompts that are tokenised within about a millisecond, less than two thread changes beside a busy device
take."""


class _Ended(Exception):
    """A call that ends with an error."""

    def __init__(self, status: status_pb2.Status) -> None:
        super().__init__(status.message)
        self.status = status


class Inference(inference_pb2_grpc.InferenceServicer):
    """The inference service.

    It tokenises short prompts at once, others on threads of their own, and those that are long enough to be refused on
    one more: so no prompt delays shorter ones.
    """

    def __init__(
        self,
        models: Models,
        device: DeviceQueue,
        generations: Generations,
        tokenising: Executor,
        long_prompts: Executor,
        max_prompt_tokens: int,
        metrics: Metrics,
        use: DeviceUse,
    ) -> None:
        self._models = models
        self._generations = generations
        self._device = device
        self._tokenising = tokenising
        self._long_prompts = long_prompts
        self._max_prompt_tokens = max_prompt_tokens
        self._metrics = metrics
        self._use = use
        self._num_calls = 0
        self.idle = asyncio.Event()
        """Set while no call is in progress."""
        self.idle.set()

    async def Tokenize(
        self, request: inference_pb2.TokenizeRequest, context: Context
    ) -> inference_pb2.TokenizeResponse:
        """The tokens of a prompt, also of one that is too long for the models, within COUNTED times their limit."""
        return await self._answered("Tokenize", self._tokenize(request), context)

    async def Encode(self, request: inference_pb2.EncodeRequest, context: Context) -> inference_pb2.EncodeResponse:
        """The sparse codes of a prompt."""
        return await self._answered("Encode", self._encode(request, context.time_remaining()), context)

    async def EncodeMany(
        self,
        request: inference_pb2.EncodeManyRequest,
        context: Context,  # noqa: ARG002 (gRPC passes both)
    ) -> inference_pb2.EncodeManyResponse:
        """The sparse codes of several prompts, each as `Encode` gives it."""
        return inference_pb2.EncodeManyResponse(outcomes=await asyncio.gather(*map(self._one_of_many, request.calls)))

    async def _one_of_many(
        self, call: inference_pb2.EncodeManyRequest.Call
    ) -> inference_pb2.EncodeManyResponse.Outcome:
        """What comes of a call; `gather` gives each a task, and so an id and a span, of its own."""
        try:
            async with self._counted("Encode", call.request_id, call.traceparent):
                response = await self._encode(call.request, call.timeout_s or None)
            return inference_pb2.EncodeManyResponse.Outcome(response=response)
        except _Ended as ended:
            return inference_pb2.EncodeManyResponse.Outcome(status=ended.status.SerializeToString())

    async def Compare(self, request: inference_pb2.CompareRequest, context: Context) -> inference_pb2.CompareResponse:
        """How both models' predictions differ."""
        return await self._answered("Compare", self._compare(request.request, context.time_remaining()), context)

    async def Attribute(
        self, request: inference_pb2.AttributeRequest, context: Context
    ) -> inference_pb2.AttributeResponse:
        """The latents that carry a difference."""
        return await self._answered("Attribute", self._attribute(request.request, context.time_remaining()), context)

    async def Generate(
        self, request: inference_pb2.GenerateRequest, context: Context
    ) -> AsyncGenerator[inference_pb2.GenerateResponse]:
        """Continuations of a prompt."""
        async with (
            self._in_progress("Generate", context),
            aclosing(self._generate(request.request, context)) as replies,
        ):
            async for reply in replies:
                yield reply

    async def Describe(
        self,
        request: inference_pb2.DescribeRequest,  # noqa: ARG002 (gRPC passes both)
        context: Context,  # noqa: ARG002
    ) -> inference_pb2.DescribeResponse:
        """What the worker is and how it stands."""
        placement = self._models.placement
        busy = {each.device: each.busy for each in self._use.last()}
        devices = [
            system_pb2.DeviceMemory(
                name=str(each),
                used_bytes=allocated_bytes(each),
                limit_bytes=device_bytes(each),
                busy=busy.get(str(each)),
            )
            for each in placement.devices
        ]
        return inference_pb2.DescribeResponse(
            version=__version__,
            device=str(placement),
            memory_bytes=sum(each.used_bytes for each in devices),
            memory_limit_bytes=sum(each.limit_bytes for each in devices),
            devices=devices,
            max_prompt_tokens=self._max_prompt_tokens,
            queued_tokens=self._device.queued_tokens,
            device_busy_s=self._metrics.ages.age_s("device"),
        )

    async def _answered(self, method: str, reply: Awaitable[Reply], context: Context) -> Reply:
        async with self._in_progress(method, context):
            return await reply
        raise AssertionError("unreachable: the context manager never swallows")

    @asynccontextmanager
    async def _in_progress(self, method: str, context: Context) -> AsyncGenerator[None]:
        """Counts a call for as long as it goes on, and ends it with the status of its error."""
        said = {key: str(value) for key, value in context.invocation_metadata() or ()}
        try:
            async with self._counted(method, said.get(request_ids.METADATA, ""), said.get(TRACEPARENT, "")):
                yield
        except _Ended as ended:
            await abort(context, ended.status)

    @asynccontextmanager
    async def _counted(self, method: str, request_id: str, above: str) -> AsyncGenerator[None]:
        """Counts a call for as long as it goes on, below the span `above`. Its errors leave as _Ended."""
        self._num_calls += 1
        self.idle.clear()
        outcome = grpc.StatusCode.CANCELLED
        request_ids.set_current(request_ids.usable(request_id))
        opened = open_span(f"inference/{method}", "server", parent=above, request_id=request_ids.current())
        make_current(opened)
        try:
            with close_span(opened):
                yield
            outcome = grpc.StatusCode.OK
        except Exception as error:  # mapped to a status in one place
            status = status_of(error)
            outcome = rpc_status.to_status(status).code
            raise _Ended(status) from error
        finally:
            self._metrics.called(method, outcome.name)
            level = logging.DEBUG if outcome is grpc.StatusCode.OK else logging.INFO
            log.log(level, "call", extra={"method": method, "status": outcome.name})
            self._num_calls -= 1
            if not self._num_calls:
                self.idle.set()

    async def _tokenize(self, request: inference_pb2.TokenizeRequest) -> inference_pb2.TokenizeResponse:
        async with self._models.using(request.crosscoder, request.version_id) as crosscoder:
            most = self._most_tokens(crosscoder)
            _, tokens = await self._tokens(crosscoder, request.prompt, COUNTED * most)
        return inference_pb2.TokenizeResponse(tokens=tokens, max_prompt_tokens=most)

    async def _encode(
        self, request: inference_pb2.EncodeRequest, timeout_s: float | None
    ) -> inference_pb2.EncodeResponse:
        async with self._models.using(request.crosscoder, request.version_id) as crosscoder:
            started = time.perf_counter()
            text, tokens = await self._prompt(crosscoder, request.prompt)
            tokenise_s = time.perf_counter() - started
            with span("device", crosscoder=request.crosscoder, tokens=len(text.ids)) as device:
                answer = await self._device.submit(WhichCode(crosscoder), text.ids, len(text.ids), timeout_s)
                device.set(batch=answer.batch, queue_s=answer.queue_s, compute_s=answer.compute_s)
        with self._metrics.part("reply"):
            tokens.left_out.extend(left_out(crosscoder.reading, text, answer.result.outlying).tolist())
            return inference_pb2.EncodeResponse(
                tokens=tokens,
                code=orders.code_message(answer.result),
                compute_ms=(tokenise_s + answer.compute_s) * 1000,
                queue_ms=answer.queue_s * 1000,
            )

    async def _compare(
        self, request: effects_pb2.CompareRequest, timeout_s: float | None
    ) -> inference_pb2.CompareResponse:
        async with self._using(request) as loaded:
            text, tokens = await self._prompt(loaded, request.prompt)
            question = WhichDifference(loaded, messages.top_n(request))
            answer = await self._device.submit(question, text.ids, len(text.ids), timeout_s)
        with self._metrics.part("reply"):
            response = messages.comparison(answer.result, loaded.tokenizer)
        if (reading := loaded.subject.reading) is not None:
            outlying = messages.outlying_norms(answer.result, reading)
            tokens.left_out.extend(left_out(reading, text, outlying).tolist())
        response.tokens.CopyFrom(tokens)
        response.version_id = request.version_id
        response.compute_ms = answer.compute_s * 1000
        return inference_pb2.CompareResponse(response=response)

    async def _attribute(
        self, request: effects_pb2.AttributeRequest, timeout_s: float | None
    ) -> inference_pb2.AttributeResponse:
        async with self._models.using(request.crosscoder, request.version_id, whole=True) as crosscoder:
            text, tokens = await self._prompt(crosscoder, request.prompt)
            about = messages.attribution_question(request, crosscoder.tokenizer)
            for ids in about.continuations or ():
                self._check_length(crosscoder, "the prompt with a continuation has", len(text.ids) + len(ids))
            question = WhichLatents(crosscoder, text.roles, about)
            answer = await self._device.submit(question, text.ids, question.num_tokens, timeout_s)
        tokens.left_out.extend(left_out(crosscoder.reading, text, answer.result.outlying).tolist())
        with self._metrics.part("reply"):
            response = messages.attribution(answer.result)
        response.tokens.CopyFrom(tokens)
        response.version_id = request.version_id
        response.compute_ms = answer.compute_s * 1000
        return inference_pb2.AttributeResponse(response=response)

    async def _generate(
        self, request: effects_pb2.GenerateRequest, context: Context
    ) -> AsyncGenerator[inference_pb2.GenerateResponse]:
        async with self._using(request) as loaded:
            text, tokens = await self._prompt(loaded, request.prompt)
            wanted = orders.order(request, loaded, text)
            steps = self._generations.generate(loaded, loaded.subject, wanted, context.time_remaining())
            async with aclosing(steps):
                async for events in steps:
                    for response in orders.messages_of(events, tokens, request.version_id):
                        yield inference_pb2.GenerateResponse(response=response)

    @asynccontextmanager
    async def _using(self, request: effects_pb2.CompareRequest | effects_pb2.GenerateRequest) -> AsyncGenerator[Loaded]:
        """The crosscoder or the pair that a request names, with whole models."""
        if request.pair:
            async with self._models.using_pair(request.pair) as pair:
                yield pair
        else:
            async with self._models.using(request.crosscoder, request.version_id, whole=True) as crosscoder:
                yield crosscoder

    async def _prompt(self, loaded: Loaded, prompt: types_pb2.Prompt) -> tuple[TokenisedText, types_pb2.Tokens]:
        """The tokens of a prompt that the models are to read. Raises PromptError if they are too many."""
        most = self._most_tokens(loaded)
        try:
            text, tokens = await self._tokens(loaded, prompt, most)
        except TooLong as error:
            self._check_length(loaded, "the prompt has at least", error.at_least)
            raise
        self._check_length(loaded, "the prompt has", len(text.ids))
        return text, tokens

    def _check_length(self, loaded: Loaded, what: str, num_tokens: int) -> None:
        limit = self._most_tokens(loaded)
        if num_tokens > limit:
            whose = "this worker's limit" if limit == self._max_prompt_tokens else "what the models can read"
            raise PromptError(f"{what} {num_tokens} tokens, but {whose} is {limit}; shorten it")

    def _most_tokens(self, loaded: Loaded) -> int:
        """Most tokens of a prompt that the models are to read."""
        return min(self._max_prompt_tokens, loaded.subject.pair.max_positions or self._max_prompt_tokens)

    async def _tokens(
        self, loaded: Loaded, prompt: types_pb2.Prompt, most: int
    ) -> tuple[TokenisedText, types_pb2.Tokens]:
        what = loaded.tokenizer, prompt, loaded.subject.pair.num_readable, most
        with self._metrics.part("tokenise"):
            if (size_bytes := prompt.ByteSize()) <= _SHORT_PROMPT_BYTES:
                return tokenise(*what)
            thread = self._tokenising if size_bytes <= UNCOUNTED * self._most_tokens(loaded) else self._long_prompts
            return await asyncio.get_running_loop().run_in_executor(thread, tokenise, *what)
