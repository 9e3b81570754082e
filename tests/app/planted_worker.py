"""An inference worker that speaks the internal contract without any model, so that pages can be checked by hand."""

import math
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc

from crosscope_proto.roles import LeftOut, TokenRole
from crosscope_proto.v1 import effects_pb2, types_pb2
from crosscope_proto.worker.v1 import inference_pb2, inference_pb2_grpc

REST, REFUSED, LOST, SECRET_FOLDER = "\N{FOX FACE}", "refuse-me", "lose-me", "/srv/private/home"
SLOW, CUT, ALIKE = "slowly", "cut-me", "alike"
HOSTILE = "<img src=x onerror=window.hacked=1>"
SORRY, SURE = 901, 902
"""Ids of the tokens that chat and base would say next at the first word."""


class PlantedWorker(inference_pb2_grpc.InferenceServicer):
    """Speaks the internal contract: words as tokens, latent n on the n-th word of the prompt, 1.5 n strong.

    The BOS token, which training left out, fires latent 200 with 500, as an attention sink would. Where an assistant
    speaks, the reasoning of turn 1 is not printed. A word that ends with REST is two tokens, of which the second only
    goes on with the word's last character. A prompt with REFUSED is refused as a template would, one with LOST as a
    worker does whose files are gone. While `free` is not set, calls wait: a slow worker.
    """

    def __init__(self) -> None:
        self.free = threading.Event()
        self.free.set()

    def Tokenize(self, request: inference_pb2.TokenizeRequest, context: Any) -> inference_pb2.TokenizeResponse:
        self._wait()
        return inference_pb2.TokenizeResponse(tokens=_tokens(_fired(request.prompt)), max_prompt_tokens=4096)

    def Encode(self, request: inference_pb2.EncodeRequest, context: Any) -> inference_pb2.EncodeResponse:
        self._wait()
        self._refuse(request.prompt, context)
        fired = _fired(request.prompt)
        starts, latents, values = [0], [], []
        for _, _, code in fired:
            latents += [latent for latent, _ in code]
            values += [value for _, value in code]
            starts.append(len(latents))
        code = types_pb2.SparseCode(row_starts=starts, latents=latents, activations=values)
        return inference_pb2.EncodeResponse(tokens=_tokens(fired), code=code, compute_ms=1.0)

    def Compare(self, request: inference_pb2.CompareRequest, context: Any) -> inference_pb2.CompareResponse:
        """KL(chat ‖ base) of n / 2 at word n and of 100 at BOS; at every token base would go on with SURE, chat with
        SORRY, and the token that came is the third of base and the first of chat."""
        self._wait()
        self._refuse(request.request.prompt, context)
        fired = _fired(request.request.prompt)
        kl = [100.0 if role is TokenRole.BOS else value / 3 for role, value in ((f[1], _value(f)) for f in fired)]
        response = effects_pb2.CompareResponse(
            tokens=_tokens(fired),
            kl_chat_base=kl,
            kl_base_chat=[2 * value for value in kl],
            base=_predictions(len(fired), 3, 0.01, ((SURE, 0.75), (SORRY, 0.125))),
            chat=_predictions(len(fired), 1, 0.5, ((SORRY, 0.875), (SURE, 0.0625))),
            top_n=2,
            pieces={SORRY: HOSTILE, SURE: " sure"},
            difference_norms=[2.0 * _value(each) for each in fired],
            cosines=[0.5] * len(fired),
            version_id=request.request.version_id,
        )
        return inference_pb2.CompareResponse(response=response)

    def Attribute(self, request: inference_pb2.AttributeRequest, context: Any) -> inference_pb2.AttributeResponse:
        """Out of chat, latent 2 carries 3 of 4 nats, latent 5 works against them by one, latent 7 is only estimated.

        Into base, latent 5 carries 2, latent 2 an eighth, latent 9 works against them by one.
        """
        self._wait()
        entry = effects_pb2.AttributeResponse.Entry
        in_base = request.request.model == effects_pb2.MODEL_BASE
        out_of_chat = [
            entry(latent=2, estimate=2.5, effect=3.0, share=0.75, num_active=1, peak_token=3, max=3.0),
            entry(latent=5, estimate=-0.5, effect=-1.0, share=-0.25, num_active=1, peak_token=4, max=7.5),
            entry(latent=7, estimate=0.125, num_active=1, peak_token=4, max=10.5),
        ]
        into_base = [
            entry(latent=5, estimate=1.5, effect=2.0, share=0.5, num_active=1, peak_token=4, max=7.5),
            entry(latent=9, estimate=-0.5, effect=-1.0, share=-0.25, num_active=1, peak_token=5, max=13.5),
            entry(latent=2, estimate=0.25, effect=0.125, share=0.03125, num_active=1, peak_token=3, max=3.0),
        ]
        response = effects_pb2.AttributeResponse(
            tokens=_tokens(_fired(request.request.prompt)),
            explained=request.request.tokens,
            value=4.0,
            entries=into_base if in_base else out_of_chat,
            row_starts=[0] * (len(_fired(request.request.prompt)) + 1),
            num_latents=9,
            effect_of_all=-0.4 if in_base else 3.2,
            effect_of_stream=3.8 if in_base else 3.6,
            num_left_out=1,
            version_id=request.request.version_id,
        )
        return inference_pb2.AttributeResponse(response=response)

    def Generate(
        self, request: inference_pb2.GenerateRequest, context: Any
    ) -> Iterator[inference_pb2.GenerateResponse]:
        """Each model says its name, what is changed and HOSTILE; latent 7 fires on every word, latent 9 on the first.

        With SLOW in the prompt, words come ten a second up to max_new_tokens. With CUT the worker goes after a word.
        With ALIKE changes have no effect.
        """
        self._wait()
        asked = request.request
        said = " ".join(text for _, text in _parts(asked.prompt))
        start = effects_pb2.GenerationStart(tokens=_tokens(_fired(asked.prompt)), version_id=asked.version_id)
        start.code.row_starts.extend([0] * (len(start.tokens.ids) + 1))
        yield _reply(start=start)
        answers = [_words(arm, shows_changes=ALIKE not in said) for arm in asked.arms]
        if SLOW in said:
            answers = [[f" {n}" for n in range(arm.sampling.max_new_tokens)] for arm in asked.arms]
        for n in range(max(map(len, answers))):
            tokens = [_new_token(arm, n, words) for arm, words in enumerate(answers) if n < len(words)]
            yield _reply(step=effects_pb2.GenerationStep(tokens=tokens))
            if CUT in said:
                context.abort(grpc.StatusCode.CANCELLED, "the worker stops")
            if SLOW in said:
                time.sleep(0.1)
        for arm, words in enumerate(answers):
            steered = bool(asked.arms[arm].interventions)
            yield _reply(
                end=effects_pb2.GenerationEnd(
                    arm=arm,
                    reason=effects_pb2.END_REASON_TURN_END,
                    text="".join(words),
                    num_tokens=len(words),
                    num_changed=len(words) + len(start.tokens.ids) - 1 if steered else 0,
                    num_left_out=1 if steered else 0,
                )
            )

    def _wait(self) -> None:
        assert self.free.wait(60), "nobody lets the worker go on"

    def _refuse(self, prompt: types_pb2.Prompt, context: Any) -> None:
        for place, (_, text) in enumerate(_parts(prompt)):
            if REFUSED in text:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"turn {place}: the chat template refuses it")
            if LOST in text:
                context.abort(grpc.StatusCode.DATA_LOSS, f"{SECRET_FOLDER}/crosscoders/demo/CURRENT cannot be read")


def _reply(**event: Any) -> inference_pb2.GenerateResponse:
    return inference_pb2.GenerateResponse(response=effects_pb2.GenerateResponse(**event))


def _words(arm: effects_pb2.Arm, *, shows_changes: bool) -> list[str]:
    name = effects_pb2.Model.Name(arm.model).removeprefix("MODEL_").lower()
    changes = [f" {effects_pb2.Action.Name(each.action)[7:].lower()}{list(each.latents)}" for each in arm.interventions]
    return [name, *(changes if shows_changes else ()), f" {HOSTILE}"]


_SECOND = types_pb2.TOKEN_LEFT_OUT_NORM
"""Training left out tokens like the second of an answer."""


def _new_token(arm: int, n: int, words: list[str]) -> effects_pb2.NewToken:
    fires = [(7, 2.0), (9, 1.0)] if n == 0 else [(7, 2.0)]
    is_last = n + 1 == len(words)
    return effects_pb2.NewToken(
        arm=arm,
        id=n,
        piece=words[n],
        log_probability=-0.25 * (n + 1),
        role=types_pb2.TOKEN_ROLE_ASSISTANT,
        latents=[] if is_last else [latent for latent, _ in fires],
        activations=[] if is_last else [value for _, value in fires],
        left_out=None if is_last else _SECOND if n == 1 else types_pb2.TOKEN_LEFT_OUT_UNSPECIFIED,
    )


def _value(token: tuple[str, TokenRole, list[tuple[int, float]]]) -> float:
    return token[2][0][1] if token[2] and token[1] is not TokenRole.BOS else 0.0


def _predictions(
    count: int, rank: int, probability: float, top: tuple[tuple[int, float], ...]
) -> effects_pb2.ModelPredictions:
    return effects_pb2.ModelPredictions(
        log_probabilities=[math.log(probability)] * (count - 1) + [math.nan],
        ranks=[rank] * (count - 1) + [0],
        entropies=[1.5] * count,
        top_ids=[each for each, _ in top] * count,
        top_log_probabilities=[math.log(p) for _, p in top] * count,
        norms=[10.0] * count,
        error_norms=[float(n) for n in range(count)],
    )


Fired = list[tuple[str, TokenRole, list[tuple[int, float]]]]
"""Piece, role, and (latent, value) pairs of each token."""


def _fired(prompt: types_pb2.Prompt) -> Fired:
    tokens: Fired = [("<bos>", TokenRole.BOS, [(200, 500.0)])]
    words = 0
    for role, text in _parts(prompt):
        if role is not TokenRole.TEXT:
            tokens.append(("<start_of_turn>", TokenRole.HEADER, []))
        for word in text.split(" "):
            words += 1
            tokens.append((word if words == 1 else f" {word}", role, [(words, 1.5 * words)]))
            if word.endswith(REST):
                tokens.append(("", role, []))
    return tokens


def _tokens(fired: Fired) -> types_pb2.Tokens:
    roles = [types_pb2.TokenRole.ValueType(role) for _, role, _ in fired]
    left_out = [LeftOut.BOS if role is TokenRole.BOS else LeftOut.KEPT for _, role, _ in fired]
    return types_pb2.Tokens(
        ids=range(len(fired)),
        pieces=[piece for piece, _, _ in fired],
        roles=roles,
        left_out=[types_pb2.TokenLeftOut.ValueType(reason) for reason in left_out],
        dropped_reasoning=[1] if TokenRole.ASSISTANT in (role for _, role, _ in fired) else [],
    )


def _parts(prompt: types_pb2.Prompt) -> list[tuple[TokenRole, str]]:
    if prompt.WhichOneof("content") == "token_ids":
        return [(TokenRole.TEXT, " ".join(map(str, prompt.token_ids.ids[1:])))]
    if prompt.WhichOneof("content") == "text":
        return [(TokenRole.TEXT, prompt.text)]
    return [(TokenRole[turn.role.upper()], turn.content) for turn in prompt.conversation.turns]
