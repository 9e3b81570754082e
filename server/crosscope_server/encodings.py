"""Prompts and their sparse codes, as the server holds them, as workers send them, and as the cache keeps them.

Knows nothing about who computes a code or who asks for it.
"""

import json
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from crosscope_proto.v1 import types_pb2
from crosscope_proto.worker.v1 import inference_pb2
from crosscope_server.replies import Packing


@dataclass(frozen=True)
class Turn:
    """One message of a conversation; `turn` is its name on the wire."""

    role: str
    content: str
    reasoning: str = ""
    tool_calls_json: str = ""
    name: str = ""
    tool_call_id: str = ""
    prefix: bool = False


@dataclass(frozen=True)
class Prompt:
    """The input of the models: a text, a conversation, token ids, or a text that the analysis stored."""

    text: str | None
    turns: tuple[Turn, ...] = ()
    add_generation_prompt: bool = False
    parse_control_tokens: bool = False
    chat_template_kwargs_json: str = ""
    token_ids: tuple[int, ...] = ()
    token_roles: tuple[int, ...] = ()
    """TokenRole of each of `token_ids`, or empty."""
    stored_text: int | None = None
    """Id of a text of the asked version; it is replaced by its tokens before a worker is asked."""

    def canonical(self) -> bytes:
        """Bytes that are equal for equal prompts, whichever protobuf library the client has."""
        fields = vars(self) | {"turns": [vars(turn) for turn in self.turns]}
        return json.dumps(fields, separators=(",", ":"), sort_keys=True).encode()


@dataclass(frozen=True)
class Encoding:
    """The tokens of a prompt and their sparse code."""

    tokens: types_pb2.Tokens
    code: types_pb2.SparseCode
    compute_ms: float
    """Time that the worker computed: tokenising, then the batch."""

    @cached_property
    def row_starts(self) -> NDArray[np.uint32]:
        """[pos + 1]; the latents of token t are latents[row_starts[t] : row_starts[t + 1]], strongest first."""
        return np.asarray(self.code.row_starts, np.uint32)

    @cached_property
    def latents(self) -> NDArray[np.uint32]:
        """[pair]"""
        return np.asarray(self.code.latents, np.uint32)

    @cached_property
    def activations(self) -> NDArray[np.float32]:
        """[pair], scaled (math §1), all > 0."""
        return np.asarray(self.code.activations, np.float32)


def strongest(code: types_pb2.SparseCode, top_k: int) -> types_pb2.SparseCode:
    """The code with at most top_k latents a token."""
    starts = np.asarray(code.row_starts, np.int64)
    counts = starts[1:] - starts[:-1]
    if not len(counts) or counts.max() <= top_k:
        return code
    kept = np.minimum(counts, top_k)
    ends = np.zeros_like(starts)
    kept.cumsum(out=ends[1:])
    places = np.arange(ends[-1]) + (starts[:-1] - ends[:-1]).repeat(kept)
    found = types_pb2.SparseCode()  # filled by extend: a constructor takes three times as long for the same lists
    found.row_starts.extend(ends.tolist())
    found.latents.extend(np.asarray(code.latents, np.uint32)[places].tolist())
    found.activations.extend(np.asarray(code.activations, np.float32)[places].tolist())
    return found


def prompt_message(prompt: Prompt) -> types_pb2.Prompt:
    """The message of a prompt for a worker."""
    if prompt.text is not None:
        return types_pb2.Prompt(text=prompt.text, parse_control_tokens=prompt.parse_control_tokens)
    if prompt.token_ids:
        return types_pb2.Prompt(token_ids=types_pb2.TokenIds(ids=prompt.token_ids, roles=prompt.token_roles))  # pyright: ignore[reportArgumentType]
    assert prompt.stored_text is None, "a stored text reaches a worker as its tokens"
    conversation = types_pb2.Conversation(
        turns=[types_pb2.Turn(**asdict(turn)) for turn in prompt.turns],
        add_generation_prompt=prompt.add_generation_prompt,
        chat_template_kwargs_json=prompt.chat_template_kwargs_json,
    )
    return types_pb2.Prompt(conversation=conversation, parse_control_tokens=prompt.parse_control_tokens)


def read_encoding(message: inference_pb2.EncodeResponse) -> Encoding:
    """The encoding that a worker sent. Raises ValueError if its arrays do not fit together."""
    encoding = Encoding(message.tokens, message.code, message.compute_ms)
    _check_shape(encoding)
    return encoding


def _message(encoding: Encoding) -> inference_pb2.EncodeResponse:
    return inference_pb2.EncodeResponse(tokens=encoding.tokens, code=encoding.code, compute_ms=encoding.compute_ms)


def _encoding(data: bytes) -> Encoding:
    return read_encoding(inference_pb2.EncodeResponse.FromString(data))


ENCODINGS = Packing(_message, _encoding)
"""How the cache keeps encodings: as the worker's message."""


def _check_shape(encoding: Encoding) -> None:
    n, starts = len(encoding.tokens.ids), encoding.row_starts
    fits = (
        len(encoding.tokens.pieces) == n == len(encoding.tokens.roles)
        and len(encoding.tokens.left_out) in (0, n)
        and len(starts) == n + 1
        and starts[0] == 0
        and starts[-1] == len(encoding.code.latents) == len(encoding.code.activations)
        and bool((starts[1:] >= starts[:-1]).all())
    )
    if not fits:
        raise ValueError(
            f"{n} tokens, {len(starts)} row starts and {len(encoding.code.latents)} latents do not fit together"
        )
