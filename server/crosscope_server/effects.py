"""Questions about what both models do with a prompt: which version and tokens are meant, then the cache or a worker.

The public messages are what workers get and send, so this module sees them. Comparisons and attributions of a
crosscoder are remembered like codes: equal requests get equal answers. Comparisons of a pair alone are not, since a
pair has no versions; generations are not either.
"""

import hashlib
from collections.abc import AsyncGenerator, Awaitable, Iterator
from contextlib import aclosing
from typing import TypeVar

from crosscope_proto.keys import encode_key
from crosscope_proto.v1 import effects_pb2
from crosscope_proto.worker.v1 import inference_pb2
from crosscope_server.catalogue import Catalogue
from crosscope_server.dispatch import Dispatch
from crosscope_server.encodings import Prompt, prompt_message, strongest
from crosscope_server.errors import InvalidRequest, NotFound, Violation
from crosscope_server.prompts import check_prompt, with_stored_tokens
from crosscope_server.replies import Packing, Replies

MAX_SAMPLES = 64
"""Most answers of one generation, over all its arms."""
_COMPARE, _ATTRIBUTE = "compare-1", "attribute-1"
"""Parts of the cache's keys. The number rises when replies get new fields, so that older ones are computed again."""
_COMPARISONS = Packing[effects_pb2.CompareResponse](lambda answer: answer, effects_pb2.CompareResponse.FromString)
_ATTRIBUTIONS = Packing[effects_pb2.AttributeResponse](lambda answer: answer, effects_pb2.AttributeResponse.FromString)

Request = effects_pb2.CompareRequest | effects_pb2.GenerateRequest | effects_pb2.AttributeRequest
R = TypeVar("R", effects_pb2.CompareRequest, effects_pb2.GenerateRequest, effects_pb2.AttributeRequest)
T = TypeVar("T")


class Effects:
    """Asks what both models do. For one event loop."""

    def __init__(self, catalogue: Catalogue, dispatch: Dispatch, replies: Replies) -> None:
        self._catalogue = catalogue
        self._dispatch = dispatch
        self._replies = replies

    async def compare(
        self, request: effects_pb2.CompareRequest, prompt: Prompt, timeout_s: float | None
    ) -> effects_pb2.CompareResponse:
        """How the models' predictions differ at every token. Raises CallError."""
        resolved = await self._resolved(request, prompt)

        async def compute(seconds: float | None) -> effects_pb2.CompareResponse:
            asked = inference_pb2.CompareRequest(request=resolved)
            return (await self._of_version(resolved, self._dispatch.compare(asked, seconds))).response

        if resolved.pair:
            return await compute(timeout_s)
        key = _key(_COMPARE, resolved, prompt)
        return (await self._replies.get(key, _COMPARISONS, compute, timeout_s))[0]

    async def attribute(
        self, request: effects_pb2.AttributeRequest, prompt: Prompt, timeout_s: float | None
    ) -> effects_pb2.AttributeResponse:
        """Which latents carry the difference at some tokens. Raises CallError."""
        if request.tokens and request.HasField("continuations"):
            sentence = (
                f"has {len(request.tokens)} tokens beside continuations; give the tokens whose KL is explained, or two "
                "continuations"
            )
            raise InvalidRequest([Violation("tokens", sentence)])
        resolved = await self._resolved(request, prompt)

        async def compute(seconds: float) -> effects_pb2.AttributeResponse:
            asked = inference_pb2.AttributeRequest(request=resolved)
            return (await self._of_version(resolved, self._dispatch.attribute(asked, seconds))).response

        key = _key(_ATTRIBUTE, resolved, prompt)
        return (await self._replies.get(key, _ATTRIBUTIONS, compute, timeout_s))[0]

    async def generate(
        self, request: effects_pb2.GenerateRequest, prompt: Prompt, timeout_s: float | None
    ) -> AsyncGenerator[effects_pb2.GenerateResponse]:
        """The pieces of the answers as they come, codes cut to the request's top_k. Raises CallError.

        Whoever stops reading ends the worker's call.
        """
        if violations := list(_problems(request)):
            raise InvalidRequest(violations)
        resolved = await self._resolved(request, prompt)
        top_k = request.top_k if request.HasField("top_k") else None
        asked = inference_pb2.GenerateRequest(request=resolved)
        async with aclosing(self._dispatch.generate(asked, timeout_s)) as replies:
            try:
                async for reply in replies:
                    yield reply.response if top_k is None else _cut(reply.response, top_k)
            except NotFound:
                self._still_there(resolved)
                raise

    async def _resolved(self, request: R, prompt: Prompt) -> R:
        """The request with the version that is meant, and a stored text as its tokens."""
        check_prompt(prompt)
        resolved = type(request)()
        resolved.CopyFrom(request)
        if request.crosscoder:
            resolved.version_id = self._catalogue.resolve(request.crosscoder, request.version_id or None)
            prompt = await with_stored_tokens(self._catalogue, request.crosscoder, resolved.version_id, prompt)
        elif request.version_id:
            raise InvalidRequest(
                [Violation("version_id", "belongs to a crosscoder; a pair has no versions: leave it out")]
            )
        elif prompt.stored_text is not None:
            sentence = f"text {prompt.stored_text} belongs to a crosscoder's version; name the crosscoder"
            raise InvalidRequest([Violation("prompt.stored_text", sentence)])
        resolved.prompt.CopyFrom(prompt_message(prompt))
        return resolved

    async def _of_version(self, request: Request, answer: Awaitable[T]) -> T:
        """A worker's answer. Raises VersionGone if the worker found no version because it has gone meanwhile."""
        try:
            return await answer
        except NotFound:
            self._still_there(request)
            raise

    def _still_there(self, request: Request) -> None:
        if request.crosscoder:
            self._catalogue.resolve(request.crosscoder, request.version_id)


def _key(method: str, resolved: R, prompt: Prompt) -> str:
    """The cache's key of a request; equal for equal requests, whichever library wrote their bytes."""
    rest = type(resolved)()
    rest.CopyFrom(resolved)
    rest.ClearField("prompt")
    asked = hashlib.blake2b(rest.SerializeToString(deterministic=True)).digest()
    return encode_key(resolved.crosscoder, resolved.version_id, method, asked + prompt.canonical())


def _problems(request: effects_pb2.GenerateRequest) -> Iterator[Violation]:
    """Rules of a generation that its .proto file cannot express."""
    samples = [arm.sampling.num_samples if arm.sampling.HasField("num_samples") else 1 for arm in request.arms]
    if (total := sum(samples)) > MAX_SAMPLES:
        yield Violation("arms", f"ask for {total} samples together, but may for at most {MAX_SAMPLES}; ask for fewer")
    if request.crosscoder:
        return
    if request.with_code:
        yield Violation("with_code", f"needs a crosscoder, but the request names pair {request.pair!r}; name one")
    for index, arm in enumerate(request.arms):
        if arm.interventions:
            sentence = f"change latents of a crosscoder, but the request names pair {request.pair!r}; name one"
            yield Violation(f"arms[{index}].interventions", sentence)


def _cut(response: effects_pb2.GenerateResponse, top_k: int) -> effects_pb2.GenerateResponse:
    """The response with at most top_k latents a token."""
    if response.HasField("start") and response.start.HasField("code"):
        response.start.code.CopyFrom(strongest(response.start.code, top_k))
    for token in response.step.tokens if response.HasField("step") else ():
        del token.latents[top_k:]
        del token.activations[top_k:]
    return response
