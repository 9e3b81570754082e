"""Encodes prompts: from the cache, else by a worker. Equal prompts that arrive meanwhile share one computation.

Knows nothing about ranking, and only those public messages that the worker's messages contain.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from crosscope_proto.keys import encode_key
from crosscope_proto.template_kwargs import parse_template_kwargs, parse_tool_calls
from crosscope_proto.worker.v1 import inference_pb2
from crosscope_server.budgets import Budgets
from crosscope_server.catalogue import Catalogue
from crosscope_server.dispatch import Dispatch
from crosscope_server.encodings import ENCODINGS, Encoding, Prompt, prompt_message, read_encoding
from crosscope_server.errors import InvalidRequest, NotFound, Violation
from crosscope_server.replies import Replies

T = TypeVar("T")

MAX_PROMPT_BYTES = 1_048_576
"""Most UTF-8 bytes of text in all messages of a conversation."""
_METHOD = "encode-2"
"""Part of the cache's keys. The number rises when replies get new fields, so that older ones are computed again."""


@dataclass(frozen=True)
class Encoded:
    """A prompt's code and where it came from."""

    encoding: Encoding
    version_id: str
    cached: bool


class Prompts:
    """Runs prompts. For one event loop."""

    def __init__(self, catalogue: Catalogue, dispatch: Dispatch, replies: Replies, budgets: Budgets) -> None:
        self._catalogue = catalogue
        self._dispatch = dispatch
        self._replies = replies
        self._budgets = budgets

    async def tokenize(
        self, crosscoder: str, wanted: str | None, prompt: Prompt, timeout_s: float | None
    ) -> tuple[inference_pb2.TokenizeResponse, str]:
        """A prompt's tokens, and the id of the version that answered: the wanted or the current one.

        Raises CallError.
        """
        check_prompt(prompt)
        version_id = self._catalogue.resolve(crosscoder, wanted)
        prompt = await with_stored_tokens(self._catalogue, crosscoder, version_id, prompt)
        request = inference_pb2.TokenizeRequest(
            crosscoder=crosscoder, version_id=version_id, prompt=prompt_message(prompt)
        )
        reply = await self._of_version(request, self._dispatch.tokenize(request, timeout_s))
        self._budgets.charge(len(reply.tokens.ids))
        return reply, version_id

    async def encode(
        self, crosscoder: str, wanted: str | None, prompt: Prompt, timeout_s: float | None, *, is_bulk: bool = False
    ) -> Encoded:
        """Every latent that fires on every token of a prompt, in the wanted version or the current.

        `is_bulk` says that nobody sits and waits for this one. Raises CallError.
        """
        check_prompt(prompt)
        version_id = self._catalogue.resolve(crosscoder, wanted)
        prompt = await with_stored_tokens(self._catalogue, crosscoder, version_id, prompt)
        key = encode_key(crosscoder, version_id, _METHOD, prompt.canonical())
        request = inference_pb2.EncodeRequest(
            crosscoder=crosscoder, version_id=version_id, prompt=prompt_message(prompt)
        )

        async def compute(seconds: float) -> Encoding:
            answer = self._dispatch.encode(request, seconds, is_bulk=is_bulk)
            return read_encoding(await self._of_version(request, answer))

        encoding, cached = await self._replies.get(key, ENCODINGS, compute, timeout_s)
        self._budgets.charge(len(encoding.tokens.ids))
        return Encoded(encoding, version_id, cached)

    async def _of_version(
        self, request: inference_pb2.EncodeRequest | inference_pb2.TokenizeRequest, answer: Awaitable[T]
    ) -> T:
        """A worker's answer. Raises VersionGone if the worker found no version because it has gone meanwhile."""
        try:
            return await answer
        except NotFound:
            self._catalogue.resolve(request.crosscoder, request.version_id)
            raise


async def with_stored_tokens(catalogue: Catalogue, crosscoder: str, version_id: str, prompt: Prompt) -> Prompt:
    """The prompt with the tokens and roles of the stored text that it names; any other prompt as it is.

    Raises NotFound, with the range of ids, or BrokenArtefact or VersionGone.
    """
    if (sequence_id := prompt.stored_text) is None:
        return prompt
    version = await catalogue.open(crosscoder, version_id)
    text = await catalogue.read(version, lambda: version.examples.text(sequence_id))
    return replace(prompt, token_ids=tuple(text.ids), token_roles=tuple(text.roles), stored_text=None)


def check_prompt(prompt: Prompt) -> None:
    """Raises InvalidRequest if a prompt breaks a rule that a .proto file cannot express."""
    if prompt.parse_control_tokens and (prompt.token_ids or prompt.stored_text is not None):
        sentence = "goes with a text or a conversation; token ids and stored texts are read as they are"
        raise InvalidRequest([Violation("prompt.parse_control_tokens", sentence)])
    if len(prompt.token_roles) not in (0, len(prompt.token_ids)):
        sentence = f"has {len(prompt.token_roles)} roles for {len(prompt.token_ids)} ids; give one a token, or none"
        raise InvalidRequest([Violation("prompt.token_ids.roles", sentence)])
    field = "prompt.conversation.turns"
    for i, turn in enumerate(prompt.turns):
        _check_json(f"{field}[{i}].tool_calls_json", parse_tool_calls, turn.tool_calls_json)
    _check_json(
        "prompt.conversation.chat_template_kwargs_json", parse_template_kwargs, prompt.chat_template_kwargs_json
    )
    size_bytes = sum(len((turn.content + turn.reasoning + turn.tool_calls_json).encode()) for turn in prompt.turns)
    if size_bytes > MAX_PROMPT_BYTES:
        sentence = f"the messages have {size_bytes} bytes of text, but may have at most {MAX_PROMPT_BYTES}"
        raise InvalidRequest([Violation(field, sentence)])


def _check_json(field: str, parse: Callable[[str], object], text: str) -> None:
    try:
        parse(text)
    except ValueError as error:
        raise InvalidRequest([Violation(field, str(error))]) from error
