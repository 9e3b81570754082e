# Written by client/generate.py from _async/attributing.py. Do not edit.
"""Calls about what latents do: attribute, explain, contrast."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from crosscope import _blocking, _decode_effects
from crosscope._arms import check_seed
from crosscope._attribution import Attribution
from crosscope._both import BothAttributions
from crosscope._comparison import Comparison
from crosscope._contrast import Contrast
from crosscope._errors import InvalidInput
from crosscope._explanation import Explanation
from crosscope._prompts import (
    AnyPrompt,
    Messages,
    build_any,
    build_prompt,
    check_count,
    check_flag,
    check_text,
    check_whole,
)
from crosscope._steering import MODELS, ModelName, as_sequence, check_model
from crosscope._sync.effects import Effects
from crosscope._sync.prompting import Prompting
from crosscope._types import Tokens
from crosscope_proto.v1 import effects_pb2, latents_pb2, prompts_pb2, types_pb2

_NEXT_TOKENS = 3
"""Next tokens of each model that an explanation shows."""
_LEAST_EXACT = 32
"""Latents that an explanation measures in each model at least, so that the strongest of them are found."""
_MOST_EXACT = 512
"""The most that a request may measure."""
_AT_ONCE = 8
"""Latents whose peaks are asked for at once."""


class Attributing(Prompting, Effects):
    """The calls that say what latents do; `encode` says what a prompt is."""

    def attribute(
        self,
        text: str | None = None,
        *,
        messages: Messages | None = None,
        tokens: int | Sequence[int] | None = None,
        model: ModelName = "chat",
        first: str | None = None,
        second: str | None = None,
        num_exact: int = 32,
        limit: int = 100,
        include_left_out: bool = False,
        add_generation_prompt: bool = False,
        parse_control_tokens: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        token_ids: Sequence[int] | Tokens | None = None,
        stored_text: int | None = None,
    ) -> Attribution:
        """The latents that change the difference between the models on a prompt, which is given as to `encode`.

        Explained is the KL(chat ‖ base) of the predictions at `tokens`, added up; by default at the token where it is
        largest. With `first` and `second` it is log p(first) - log p(second) in `model`, two continuations of the
        prompt. `model` is the one whose latents are taken away (chat), or into which chat's rows are put (base). Every
        latent is estimated by one backward pass; the `num_exact` strongest are measured by running the model again.
        Latents at tokens that training left out are not asked unless `include_left_out`. The call ends after ten times
        the client's `timeout_s`.
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
        request = self._attribute_request(
            prompt,
            check_model(model, "model"),
            check_count(num_exact, "num_exact"),
            check_count(limit, "limit", low=1),
            check_flag(include_left_out, "include_left_out"),
        )
        continuations = _continuations(first, second)
        if continuations is not None:
            if tokens is not None:
                raise InvalidInput.of("tokens", "go with a KL, not with first and second")
            request.continuations.first, request.continuations.second = continuations
        if tokens is not None:
            request.tokens.extend(self._positions(prompt, tokens))
        return self._attribute(request, model, continuations)

    def _attribute_request(
        self, prompt: types_pb2.Prompt, model: ModelName, num_exact: int, limit: int, include_left_out: bool
    ) -> effects_pb2.AttributeRequest:
        """What is asked about a prompt, but for the tokens or continuations that are explained."""
        return effects_pb2.AttributeRequest(
            crosscoder=self.name,
            version_id=self._version,
            prompt=prompt,
            model=MODELS[model],
            num_exact=num_exact,
            limit=limit,
            include_left_out=include_left_out,
        )

    def _attribute(
        self, request: effects_pb2.AttributeRequest, model: ModelName, continuations: tuple[str, str] | None
    ) -> Attribution:
        timeout_s = self._transport.connection.long_timeout_s
        reply = self._transport.unary(self._prompts.Attribute, request, timeout_s=timeout_s)
        self._checked(reply.version_id)
        return _decode_effects.attribution(reply, self.name, model, continuations)

    def _positions(self, prompt: types_pb2.Prompt, tokens: int | Sequence[int]) -> list[int]:
        """Positions counted from 0. Negative ones count from the end, so the prompt is tokenized for them."""
        given = [
            check_whole(each, "tokens")
            for each in ([tokens] if isinstance(tokens, int) else as_sequence(tokens, "tokens"))
        ]
        if not given:
            raise InvalidInput.of("tokens", "is empty; leave it out for the token where the models differ most")
        if min(given) >= 0:
            return given
        num_tokens = len((self._tokenize(prompt)).tokens.ids)
        outside = [each for each in given if not -num_tokens <= each < num_tokens]
        if outside:
            raise InvalidInput.of("tokens", f"token {outside[0]} is outside the {num_tokens} tokens of this prompt")
        return [each % num_tokens for each in given]

    def attribute_both(
        self,
        text: str | None = None,
        *,
        tokens: int | Sequence[int],
        messages: Messages | None = None,
        num_exact: int = 32,
        include_left_out: bool = False,
        add_generation_prompt: bool = False,
        parse_control_tokens: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        token_ids: Sequence[int] | Tokens | None = None,
        stored_text: int | None = None,
    ) -> BothAttributions:
        """What latents do to the KL(chat ‖ base) at `tokens` of a prompt: put into base, and taken out of chat.

        `attribute` of both models, merged by latent. Each model measures its `num_exact` strongest latents, so one may
        lack a figure for a latent of the other. If base cannot take chat's rows, because the dictionary has none or the
        models differ in width, `refusal` says so, and the ablations in chat stand alone.
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
        check_count(num_exact, "num_exact", low=1)
        left_out = check_flag(include_left_out, "include_left_out")
        return self._both(prompt, self._positions(prompt, tokens), num_exact, left_out)

    def _both(
        self, prompt: types_pb2.Prompt, tokens: Sequence[int], num_exact: int, include_left_out: bool
    ) -> BothAttributions:
        """Both models' attributions of a KL. Raises chat's refusal, and keeps base's."""
        asked = [partial(self._in_model, model, prompt, tokens, num_exact, include_left_out) for model in MODELS]
        transplant, ablation = _blocking.together(*asked)
        if isinstance(ablation, InvalidInput):
            raise ablation
        if isinstance(transplant, InvalidInput):
            return BothAttributions(ablation, None, transplant.violations[0].description)
        return BothAttributions(ablation, transplant)

    def _in_model(
        self,
        model: ModelName,
        prompt: types_pb2.Prompt,
        tokens: Sequence[int],
        num_exact: int,
        include_left_out: bool,
    ) -> Attribution | InvalidInput:
        """The latents that change a KL, all of them measured; the refusal if this model cannot be changed by them."""
        request = self._attribute_request(prompt, model, num_exact, num_exact, include_left_out)
        request.tokens.extend(tokens)
        try:
            return self._attribute(request, model, None)
        except InvalidInput as error:
            if [each.field for each in error.violations] == ["model"]:
                return error
            raise

    def explain(
        self,
        text: str | None = None,
        *,
        messages: Messages | None = None,
        num_tokens: int = 3,
        limit: int = 10,
        skip_template_tokens: bool = True,
        include_left_out: bool = False,
        add_generation_prompt: bool = False,
        parse_control_tokens: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        token_ids: Sequence[int] | Tokens | None = None,
        stored_text: int | None = None,
    ) -> Explanation:
        """Why the models differ on a prompt: the tokens where they differ most, and the latents that carry it there.

        `compare`, then `attribute_both` at the `num_tokens` tokens with the largest KL(chat ‖ base): there the `limit`
        latents that carry most of it, measured by putting chat's row into base and by taking the latent out of chat.
        Tokens of the template are passed over, but not the last one of an assistant's header, where the model decides;
        so are tokens that training left out. The result says which of them differ more. `skip_template_tokens=False`
        and `include_left_out=True` explain them too.
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
        check_count(num_tokens, "num_tokens", low=1)
        if check_count(limit, "limit", low=1) > _MOST_EXACT:
            raise InvalidInput.of("limit", f"is {limit}, but at most {_MOST_EXACT} latents of a token are measured")
        skip = check_flag(skip_template_tokens, "skip_template_tokens")
        left_out = check_flag(include_left_out, "include_left_out")
        comparison = self._compare(prompt, _NEXT_TOKENS)
        chosen = comparison.most_different(num_tokens, skip_template_tokens=skip, include_left_out=left_out)
        if not chosen:
            raise InvalidInput(
                f"all {len(comparison)} tokens of this prompt are of the template or left out by training; "
                "skip_template_tokens=False and include_left_out=True explain them"
            )
        num_exact = max(limit, _LEAST_EXACT)
        attributions = [self._both(prompt, [token], num_exact, left_out) for token in chosen]
        named = {entry.latent for both in attributions for entry in both.carrying[:limit]}
        peaks = self._peaks(sorted(named))
        return Explanation(comparison, tuple(attributions), peaks, limit, _passed_over(comparison, chosen))

    def _peaks(self, latents: Sequence[int]) -> dict[int, tuple[str, ...]]:
        """The tokens on which each latent is strongest in the analysis."""
        found: dict[int, tuple[str, ...]] = {}
        for start in range(0, len(latents), _AT_ONCE):
            some = latents[start : start + _AT_ONCE]
            found |= zip(some, _blocking.together(*(partial(self._peaks_of, each) for each in some)), strict=True)
        return found

    def _peaks_of(self, latent: int) -> tuple[str, ...]:
        request = latents_pb2.GetLatentRequest(crosscoder=self.name, version_id=self._version, latent=latent)
        reply = self._transport.unary(self._latents.GetLatent, request)
        self._checked(reply.version_id)
        return tuple(reply.latent.top_tokens)

    def contrast(
        self,
        first: Iterable[AnyPrompt],
        second: Iterable[AnyPrompt],
        *,
        limit: int = 20,
        seed: int = 0,
        add_generation_prompt: bool = False,
        parse_control_tokens: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> Contrast:
        """The latents that tell two sets of prompts apart, at the prompts' last token and within them.

        A prompt is given as to `encode_many`; 5 to 500 of each set. `limit` is the number of latents a place; `seed`
        that of the folds and of the shuffled labels. The call ends after ten times the client's `timeout_s`.
        """
        flags = {
            "add_generation_prompt": add_generation_prompt,
            "parse_control_tokens": parse_control_tokens,
            "chat_template_kwargs": chat_template_kwargs,
        }
        request = prompts_pb2.ContrastRequest(
            crosscoder=self.name,
            version_id=self._version,
            first=_prompts(first, "first", flags),
            second=_prompts(second, "second", flags),
            limit=check_count(limit, "limit", low=1),
            seed=check_seed(seed),
        )
        timeout_s = self._transport.connection.long_timeout_s
        reply = self._transport.unary(self._prompts.Contrast, request, timeout_s=timeout_s)
        self._checked(reply.version_id)
        return _decode_effects.contrast(reply, self.name)


def _continuations(first: object, second: object) -> tuple[str, str] | None:
    if first is None and second is None:
        return None
    if first is None or second is None:
        raise InvalidInput.of("second" if second is None else "first", "first and second go together: give both")
    checked = check_text(first, "first"), check_text(second, "second")
    if not all(checked):
        raise InvalidInput.of("second" if checked[0] else "first", "is empty; give at least one character")
    return checked


def _passed_over(comparison: Comparison, chosen: Sequence[int]) -> tuple[int, ...]:
    """Tokens that differ more than the last chosen one, and were not chosen."""
    ranked = comparison.most_different(len(comparison))
    return tuple(t for t in ranked[: ranked.index(chosen[-1])] if t not in chosen)


def _prompts(prompts: Iterable[AnyPrompt], field: str, flags: Mapping[str, Any]) -> list[types_pb2.Prompt]:
    built = []
    for i, prompt in enumerate(as_sequence(prompts, field)):
        try:
            built.append(build_any(prompt, **flags))
        except InvalidInput as error:
            raise InvalidInput.of(f"{field}[{i}]", str(error)) from None
    return built
