"""Calls about what both models do with a prompt, which need no crosscoder: compare and generate."""

from collections.abc import Mapping, Sequence
from typing import Any

from crosscope import _decode_effects
from crosscope._arms import SETTINGS, Arm, arms_of
from crosscope._async.generation import AsyncGeneration
from crosscope._async.transport import AsyncTransport
from crosscope._comparison import Comparison
from crosscope._errors import InvalidInput, ServerError
from crosscope._prompts import Messages, build_prompt, check_count, check_flag, has_prefix
from crosscope._steering import ModelName, Steer
from crosscope._types import Tokens
from crosscope_proto.v1 import effects_pb2, types_pb2
from crosscope_proto.v1.prompts_pb2_grpc import PromptsStub


class AsyncEffects:
    """Compare and generate, of a crosscoder or of a pair; `AsyncCrosscoder.encode` says what a prompt is."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    @property
    def name(self) -> str:
        """Its name."""
        raise NotImplementedError

    @property
    def _source(self) -> dict[str, Any]:
        """The fields of a request that name what is asked."""
        raise NotImplementedError

    def _checked(self, version_id: str) -> str:
        """The version that a reply names. Raises VersionGone for another one than the handle's."""
        return version_id

    @property
    def _prompts(self):
        return self._transport.stub(PromptsStub)

    async def compare(
        self,
        text: str | None = None,
        *,
        messages: Messages | None = None,
        top_n: int = 5,
        add_generation_prompt: bool = False,
        parse_control_tokens: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        token_ids: Sequence[int] | Tokens | None = None,
        stored_text: int | None = None,
    ) -> Comparison:
        """How both models' predictions differ at every token of a prompt, which is given as to `encode`.

        `top_n` is the number of next tokens of each model at every token.
        """
        prompt = build_prompt(
            text,
            messages,
            add_generation_prompt=add_generation_prompt,
            parse_control_tokens=parse_control_tokens,
            chat_template_kwargs=chat_template_kwargs,
            token_ids=token_ids,
            stored_text=stored_text,
        )
        return await self._compare(prompt, top_n)

    async def _compare(self, prompt: types_pb2.Prompt, top_n: int) -> Comparison:
        request = effects_pb2.CompareRequest(**self._source, prompt=prompt, top_n=check_count(top_n, "top_n"))
        reply = await self._transport.unary(self._prompts.Compare, request)
        self._checked(reply.version_id)
        return _decode_effects.comparison(reply, self.name)

    async def generate(
        self,
        text: str | None = None,
        *,
        messages: Messages | None = None,
        arms: Sequence[Arm] | None = None,
        model: ModelName = "chat",
        steer: Steer | Sequence[Steer] = (),
        temperature: float = 0.0,
        top_p: float | None = None,
        seed: int = 0,
        max_new_tokens: int = 128,
        stop: str | Sequence[str] = (),
        num_samples: int = 1,
        with_code: bool = False,
        top_k: int | None = None,
        add_generation_prompt: bool | None = None,
        parse_control_tokens: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        token_ids: Sequence[int] | Tokens | None = None,
        stored_text: int | None = None,
    ) -> AsyncGeneration:
        """Continues a prompt, which is given as to `encode`: with one model, or in several arms at once.

        `model` and `steer` describe one arm; `arms` up to eight. The other settings are those of every arm that has
        none of its own. A `temperature` of 0 takes the most probable token; `top_p` draws from the most probable tokens
        whose probabilities reach this sum. Equal seeds and arms give equal texts. An answer ends with the model's turn,
        behind the first of the `stop` strings, or after `max_new_tokens`. `with_code` also gives the sparse code of the
        prompt and of every new token, the `top_k` strongest latents a token, by default all.

        Messages get the header of an assistant message (`add_generation_prompt`) unless it is switched off or the last
        one is a prefix. The result has the prompt at once, and yields tokens as they come. The call ends after ten
        times the client's `timeout_s`: ten minutes, if nothing else was said.
        """
        asks = messages is not None and not has_prefix(messages)
        with_header = asks if add_generation_prompt is None else add_generation_prompt
        prompt = build_prompt(
            text,
            messages,
            add_generation_prompt=with_header,
            parse_control_tokens=parse_control_tokens,
            chat_template_kwargs=chat_template_kwargs,
            token_ids=token_ids,
            stored_text=stored_text,
        )
        values = (temperature, top_p, seed, max_new_tokens, stop, num_samples)
        settings: dict[str, Any] = dict(zip(SETTINGS, values, strict=True))
        chosen = arms_of(arms, model, steer)
        request = effects_pb2.GenerateRequest(
            **self._source,
            prompt=prompt,
            arms=[arm.message(settings) for arm in chosen],
            with_code=check_flag(with_code, "with_code"),
        )
        if top_k is not None:
            if not with_code:
                raise InvalidInput.of("top_k", "goes with with_code=True")
            request.top_k = check_count(top_k, "top_k", low=1)
        return await self._generate(request, chosen)

    async def _generate(self, request: effects_pb2.GenerateRequest, arms: Sequence[Arm]) -> AsyncGeneration:
        """The generation, once its prompt has come."""
        timeout_s = self._transport.connection.long_timeout_s
        replies = self._transport.stream(self._prompts.Generate, request, timeout_s)
        first = await anext(replies, None)
        if first is None or first.WhichOneof("event") != "start":
            await replies.aclose()
            raise ServerError(f"{self._transport.address} answered a generation without its prompt")
        try:
            self._checked(first.start.version_id)
        except BaseException:
            await replies.aclose()
            raise
        num_samples = [arm.sampling.num_samples for arm in request.arms]
        return AsyncGeneration(replies, first.start, self.name, arms, num_samples)
