"""Calls that run a prompt: its tokens, its sparse codes, its latents ranked."""

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Literal, overload

from crosscope import _aio, _decode
from crosscope._async.handle import AsyncHandle
from crosscope._async.outcomes import AsyncOutcomes
from crosscope._encoding import Encoding, Rank, TopLatents
from crosscope._errors import CrosscopeError, InvalidInput
from crosscope._filters import Condition, build_filters
from crosscope._progress import open_bar
from crosscope._prompts import (
    AnyPrompt,
    Messages,
    build_any,
    build_prompt,
    check_count,
    check_flag,
    check_number,
    check_whole,
)
from crosscope._types import TokenCount, Tokens
from crosscope_proto.v1 import prompts_pb2, types_pb2

_RANKS: dict[str, prompts_pb2.Rank.ValueType] = {
    "max": prompts_pb2.RANK_MAX,
    "sum": prompts_pb2.RANK_SUM,
    "count": prompts_pb2.RANK_COUNT,
    "share_of_max": prompts_pb2.RANK_SHARE_OF_MAX,
    "uselessness": prompts_pb2.RANK_USELESSNESS,
}
_Request = prompts_pb2.EncodeRequest


class AsyncPrompting(AsyncHandle):
    """The calls that run a prompt; `encode` says what a prompt is."""

    async def tokenize(
        self,
        text: str | None = None,
        *,
        messages: Messages | None = None,
        add_generation_prompt: bool = False,
        parse_control_tokens: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        token_ids: Sequence[int] | Tokens | None = None,
        stored_text: int | None = None,
        turns: Messages | None = None,
    ) -> Tokens:
        """The tokens of a prompt and their roles; runs no model. The prompt is given as to `encode`."""
        prompt = build_prompt(
            text,
            messages,
            turns,
            add_generation_prompt=add_generation_prompt,
            parse_control_tokens=parse_control_tokens,
            chat_template_kwargs=chat_template_kwargs,
            token_ids=token_ids,
            stored_text=stored_text,
        )
        return _decode.tokens((await self._tokenize(prompt)).tokens)

    async def count_tokens(self, prompt: AnyPrompt, *, add_generation_prompt: bool = False, **flags: Any) -> TokenCount:
        """How many tokens a prompt has, and how many it may have; runs no model.

        The prompt is one of those of `encode_many`, and `flags` are its other arguments about prompts.
        """
        reply = await self._tokenize(build_any(prompt, add_generation_prompt=add_generation_prompt, **flags))
        return _decode.token_count(reply)

    async def _tokenize(self, prompt: types_pb2.Prompt) -> prompts_pb2.TokenizeResponse:
        request = prompts_pb2.TokenizeRequest(crosscoder=self.name, version_id=self._version, prompt=prompt)
        reply = await self._transport.unary(self._prompts.Tokenize, request)
        self._checked(reply.version_id)
        return reply

    async def encode(
        self,
        text: str | None = None,
        *,
        messages: Messages | None = None,
        top_k: int | None = None,
        add_generation_prompt: bool = False,
        parse_control_tokens: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        token_ids: Sequence[int] | Tokens | None = None,
        stored_text: int | None = None,
        turns: Messages | None = None,
    ) -> Encoding:
        """The sparse code of every token of a text or a conversation.

        A conversation is given as `messages`: `[{"role": "user", "content": "…"}, …]`; `turns` is their former name.
        `top_k` keeps that many latents a token, the strongest; None keeps all that fire. `add_generation_prompt`
        appends the header of an assistant message. `parse_control_tokens` reads control tokens that are typed in the
        text ("<end_of_turn>") as control tokens. `chat_template_kwargs` are arguments of the chat template beside the
        messages (enable_thinking, tools, documents, …); they override those of the recipe.

        `token_ids` are read exactly as given, with no BOS put in front; `Tokens`, for instance of an encoding, bring
        their roles. `stored_text` is the id of a text that the analysis stored, `Example.sequence_id`, and is read
        exactly as the analysis read it.
        """
        prompt = build_prompt(
            text,
            messages,
            turns,
            add_generation_prompt=add_generation_prompt,
            parse_control_tokens=parse_control_tokens,
            chat_template_kwargs=chat_template_kwargs,
            token_ids=token_ids,
            stored_text=stored_text,
        )
        reply = await self._transport.unary(self._prompts.Encode, self._encode_request(prompt, top_k))
        return self._encoding(reply)

    def _encode_request(self, prompt: types_pb2.Prompt, top_k: int | None) -> _Request:
        request = _Request(crosscoder=self.name, version_id=self._version, prompt=prompt)
        if top_k is not None:
            request.top_k = check_count(top_k, "top_k", low=1)
        return request

    def _encoding(self, reply: prompts_pb2.EncodeResponse) -> Encoding:
        self._checked(reply.version_id)
        return _decode.encoding(reply, self.name)

    @overload
    def encode_many(
        self,
        prompts: _aio.AnyIterable[AnyPrompt],
        *,
        top_k: int | None = ...,
        add_generation_prompt: bool = ...,
        parse_control_tokens: bool = ...,
        chat_template_kwargs: Mapping[str, Any] | None = ...,
        in_flight: int = ...,
        return_errors: Literal[False] = ...,
        progress: bool | None = ...,
    ) -> AsyncGenerator[Encoding, None]: ...
    @overload
    def encode_many(
        self,
        prompts: _aio.AnyIterable[AnyPrompt],
        *,
        top_k: int | None = ...,
        add_generation_prompt: bool = ...,
        parse_control_tokens: bool = ...,
        chat_template_kwargs: Mapping[str, Any] | None = ...,
        in_flight: int = ...,
        return_errors: bool = ...,
        progress: bool | None = ...,
        on_error: Literal["raise", "return"] = ...,
    ) -> AsyncGenerator[Encoding | CrosscopeError, None]: ...
    async def encode_many(
        self,
        prompts: _aio.AnyIterable[AnyPrompt],
        *,
        top_k: int | None = None,
        add_generation_prompt: bool = False,
        parse_control_tokens: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        in_flight: int = 32,
        return_errors: bool = False,
        progress: bool | None = None,
        on_error: Literal["raise", "return"] = "raise",
    ) -> AsyncGenerator[Encoding | CrosscopeError, None]:
        """Encodes many prompts, lazily and in order; at most `in_flight` are under way at a time.

        A prompt is a text, messages, Tokens, or one of them by its name: {"stored_text": 12}, {"token_ids": [2, 17]}.
        Prompts that a busy server refuses are asked again when it says so, with fewer in flight, and so are those of a
        connection that breaks; only when nothing was answered for the client's `timeout_s` is that an error.
        With `return_errors` (formerly `on_error="return"`) a prompt that fails yields its exception in its place and
        the rest goes on; else it is raised. An error of the connection is raised in either case. A prompt is drawn
        only when a reply has made room for it. Leaving the iterator early cancels the rest. `progress` shows a bar, by
        default in a terminal and in a notebook.
        """
        check_count(in_flight, "in_flight", low=1)

        flags = {
            "add_generation_prompt": add_generation_prompt,
            "parse_control_tokens": parse_control_tokens,
            "chat_template_kwargs": chat_template_kwargs,
        }
        built = (self._request_or_error(prompt, top_k, flags) async for prompt in _aio.drawn(prompts))
        total = len(prompts) if hasattr(prompts, "__len__") else None  # pyright: ignore[reportArgumentType]
        with open_bar(progress, "encoding", total, "prompts") as bar:
            async with aclosing(AsyncOutcomes(self._transport, in_flight).of(built)) as outcomes:
                async for outcome in outcomes:
                    bar.update()
                    if isinstance(outcome, CrosscopeError) and not return_errors and on_error == "raise":
                        raise outcome
                    yield outcome if isinstance(outcome, CrosscopeError) else self._encoding(outcome)

    def _request_or_error(self, prompt: object, top_k: int | None, flags: Mapping[str, Any]) -> _Request | InvalidInput:
        """The request of one prompt of many, or the error that says why it cannot be sent."""
        try:
            return self._encode_request(build_any(prompt, **flags), top_k)
        except InvalidInput as error:
            return error

    async def top_latents(
        self,
        text: str | None = None,
        *,
        messages: Messages | None = None,
        rank: Rank = "max",
        limit: int = 20,
        max_frequency: float | None = None,
        where: Condition | Iterable[Condition] = (),
        skip_template_tokens: bool = False,
        include_left_out: bool = False,
        tokens: slice | None = None,
        add_generation_prompt: bool = False,
        parse_control_tokens: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        token_ids: Sequence[int] | Tokens | None = None,
        stored_text: int | None = None,
        turns: Messages | None = None,
    ) -> TopLatents:
        """The latents that a prompt fires, ranked by max, sum, count, share_of_max or uselessness.

        uselessness is the largest activation times `base_uselessness_single`. The prompt is given as to `encode`.
        `max_frequency` leaves out latents that fire on a larger share of tokens in the analysis, and `where` those that
        do not meet its conditions, which are written as for `latents`; both act before the cut. `skip_template_tokens`
        leaves out BOS, role headers and turn ends, but not the last token of an assistant's header, where the model
        decides. `tokens` is the range of tokens to look at, for instance slice(3, 10) or slice(-1, None). Tokens that
        training left out (`Tokens.left_out`) are not ranked unless `include_left_out`, because latents fire on them as
        on no others.
        """
        if rank not in _RANKS:
            raise InvalidInput.of("rank", f"{rank!r} is no ranking; use one of {', '.join(_RANKS)}")
        prompt = build_prompt(
            text,
            messages,
            turns,
            add_generation_prompt=add_generation_prompt,
            parse_control_tokens=parse_control_tokens,
            chat_template_kwargs=chat_template_kwargs,
            token_ids=token_ids,
            stored_text=stored_text,
        )
        request = prompts_pb2.TopLatentsRequest(
            crosscoder=self.name,
            version_id=self._version,
            prompt=prompt,
            rank=_RANKS[rank],
            limit=check_count(limit, "limit", low=1),
            skip_template_tokens=check_flag(skip_template_tokens, "skip_template_tokens"),
            include_left_out=check_flag(include_left_out, "include_left_out"),
        )
        request.filters.extend(build_filters(where))
        if max_frequency is not None:
            request.max_frequency = check_number(max_frequency, "max_frequency")
        if tokens is not None:
            await self._set_range(request, tokens)
        reply = await self._transport.unary(self._prompts.TopLatents, request)
        self._checked(reply.version_id)
        return _decode.top_latents(reply, self.name, rank)

    async def _set_range(self, request: prompts_pb2.TopLatentsRequest, tokens: slice) -> None:
        """Writes a slice into a request. Negative ends count from the end, so the prompt is tokenized for them."""
        if tokens.step not in (None, 1):
            raise InvalidInput.of("tokens", f"a range has step 1, not {tokens.step!r}")
        ends = {"start": tokens.start, "stop": tokens.stop}
        given = {name: check_whole(end, f"tokens.{name}") for name, end in ends.items() if end is not None}
        if any(end < 0 for end in given.values()):
            num_tokens = len((await self._tokenize(request.prompt)).tokens.ids)
            given = {name: max(0, end + num_tokens) if end < 0 else end for name, end in given.items()}
        if "start" in given:
            request.token_start = check_count(given["start"], "tokens.start")
        if "stop" in given:
            request.token_end = check_count(given["stop"], "tokens.stop")
