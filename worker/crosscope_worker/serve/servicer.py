"""The service `crosscope.worker.v1.Inference`: decode, call, reply."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from typing import Any, TypeVar

import grpc
import grpc.aio
import numpy as np

from crosscope_proto.rich_status import abort
from crosscope_proto.roles import LeftOut
from crosscope_proto.template_kwargs import parse_template_kwargs, parse_tool_calls
from crosscope_proto.v1 import types_pb2
from crosscope_proto.worker.v1 import inference_pb2, inference_pb2_grpc
from crosscope_worker.serve.batching import Batcher
from crosscope_worker.serve.encoding import PromptCode
from crosscope_worker.serve.errors import status_of
from crosscope_worker.serve.models import LoadedCrosscoder, Models
from crosscope_worker.tokenizer.pieces import text_pieces
from crosscope_worker.tokenizer.token_policy import policy_reasons
from crosscope_worker.tokenizer.tokens import PromptError, TextTokenizer, TokenisedText, Turn

Reply = TypeVar("Reply")
Parsed = TypeVar("Parsed")
Context = grpc.aio.ServicerContext[Any, Any]
EncodeBatcher = Batcher[LoadedCrosscoder, np.ndarray, PromptCode]

_SHORT_PROMPT_BYTES = 4096
"""Length of prompts that are tokenised within about a millisecond, less than two thread changes beside a busy device
take."""


def encode_batch(crosscoder: LoadedCrosscoder, prompts: Sequence[np.ndarray]) -> list[PromptCode]:
    """The codes of a batch of prompts; the batcher runs this on the device's thread."""
    return crosscoder.encoder(prompts)


class Inference(inference_pb2_grpc.InferenceServicer):
    """The inference service. It tokenises long prompts on threads of its own, so that they delay no others; short ones
    at once.
    """

    def __init__(self, models: Models, batcher: EncodeBatcher, tokenising: Executor, max_prompt_tokens: int) -> None:
        self._models = models
        self._batcher = batcher
        self._tokenising = tokenising
        self._max_prompt_tokens = max_prompt_tokens
        self._num_calls = 0
        self.idle = asyncio.Event()
        """Set while no call is in progress."""
        self.idle.set()

    async def Tokenize(
        self, request: inference_pb2.TokenizeRequest, context: Context
    ) -> inference_pb2.TokenizeResponse:
        """The tokens of a prompt, however many."""
        return await self._answered(self._tokenize(request), context)

    async def Encode(self, request: inference_pb2.EncodeRequest, context: Context) -> inference_pb2.EncodeResponse:
        """The sparse codes of a prompt."""
        return await self._answered(self._encode(request, context.time_remaining()), context)

    async def _answered(self, reply: Awaitable[Reply], context: Context) -> Reply:
        self._num_calls += 1
        self.idle.clear()
        try:
            return await reply
        except Exception as error:  # mapped to a status in one place
            await abort(context, status_of(error))
        finally:
            self._num_calls -= 1
            if not self._num_calls:
                self.idle.set()

    async def _tokenize(self, request: inference_pb2.TokenizeRequest) -> inference_pb2.TokenizeResponse:
        crosscoder = await self._models.get(request.crosscoder, request.version_id)
        _, tokens = await self._tokens(crosscoder, request.prompt)
        return inference_pb2.TokenizeResponse(tokens=tokens)

    async def _encode(
        self, request: inference_pb2.EncodeRequest, timeout_s: float | None
    ) -> inference_pb2.EncodeResponse:
        crosscoder = await self._models.get(request.crosscoder, request.version_id)
        started = time.perf_counter()
        text, tokens = await self._tokens(crosscoder, request.prompt)
        tokenise_s = time.perf_counter() - started
        self._check_length(crosscoder, len(text.ids))
        answer = await self._batcher.submit(crosscoder, text.ids, len(text.ids), timeout_s)
        tokens.left_out.extend(left_out(crosscoder, text, answer.result.outlying).tolist())
        return inference_pb2.EncodeResponse(
            tokens=tokens,
            code=_code_message(answer.result),
            compute_ms=(tokenise_s + answer.compute_s) * 1000,
            queue_ms=answer.queue_s * 1000,
        )

    async def _tokens(
        self, crosscoder: LoadedCrosscoder, prompt: types_pb2.Prompt
    ) -> tuple[TokenisedText, types_pb2.Tokens]:
        what = crosscoder.tokenizer, prompt, crosscoder.pair.pair.num_readable
        if prompt.ByteSize() <= _SHORT_PROMPT_BYTES:
            return _tokenise(*what)
        return await asyncio.get_running_loop().run_in_executor(self._tokenising, _tokenise, *what)

    def _check_length(self, crosscoder: LoadedCrosscoder, num_tokens: int) -> None:
        limit = min(self._max_prompt_tokens, crosscoder.max_positions or self._max_prompt_tokens)
        if num_tokens > limit:
            whose = "this worker's limit" if limit == self._max_prompt_tokens else "what the models can read"
            raise PromptError(f"the prompt has {num_tokens} tokens, but {whose} is {limit}; shorten it")


def _tokenise(
    tokenizer: TextTokenizer, prompt: types_pb2.Prompt, num_readable: int
) -> tuple[TokenisedText, types_pb2.Tokens]:
    match prompt.WhichOneof("content"):
        case "text":
            text = tokenizer.text(prompt.text, prompt.parse_control_tokens)
        case "conversation":
            conversation = prompt.conversation
            text = tokenizer.conversation(
                [_turn(index, turn) for index, turn in enumerate(conversation.turns)],
                conversation.add_generation_prompt,
                prompt.parse_control_tokens,
                _parsed("chat_template_kwargs", parse_template_kwargs, conversation.chat_template_kwargs_json),
            )
        case "token_ids":
            text = tokenizer.given(prompt.token_ids.ids, prompt.token_ids.roles, num_readable)
        case _:
            raise PromptError("the prompt holds neither text, conversation nor token ids; give one of them")
    pieces, roles = text_pieces(tokenizer, text.ids), text.roles.tolist()
    tokens = types_pb2.Tokens(
        ids=text.ids.tolist(), pieces=pieces, roles=roles, dropped_reasoning=text.dropped_reasoning
    )
    return text, tokens


def _turn(index: int, turn: types_pb2.Turn) -> Turn:
    calls = _parsed(f"turn {index}, tool_calls", parse_tool_calls, turn.tool_calls_json)
    return Turn(turn.role, turn.content, turn.reasoning, tuple(calls), turn.name, turn.tool_call_id)


def _parsed(name: str, parse: Callable[[str], Parsed], text: str) -> Parsed:
    try:
        return parse(text)
    except ValueError as error:
        raise PromptError(f"{name}: {error}") from error


def left_out(crosscoder: LoadedCrosscoder, text: TokenisedText, outlying: np.ndarray) -> np.ndarray:
    """The reasons for which the training leaves out such tokens, [pos] uint8 (LeftOut); `outlying: [pos]` bool."""
    reasons = policy_reasons(text.roles, crosscoder.policy)
    reasons[(reasons == LeftOut.KEPT) & outlying] = LeftOut.NORM
    return reasons


def _code_message(code: PromptCode) -> types_pb2.SparseCode:
    return types_pb2.SparseCode(
        row_starts=code.row_starts.tolist(), latents=code.latents.tolist(), activations=code.activations.tolist()
    )
