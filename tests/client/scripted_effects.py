"""A scripted server that answers compare, generate, attribute and contrast with replies that are worked out by hand."""

import threading
from typing import Any

import grpc
from fixtures_waiting import PATIENCE_S
from google.rpc.error_details_pb2 import BadRequest

from crosscope_proto.roles import LeftOut, TokenRole
from crosscope_proto.v1 import effects_pb2, latents_pb2, prompts_pb2, types_pb2

from .conftest import ScriptedLatents, ScriptedPrompts, abort

NAN = float("nan")
ANSWERS = {effects_pb2.MODEL_BASE: ["y", "e", "s"], effects_pb2.MODEL_CHAT: ["n", "o"]}
"""The tokens of every answer, by model."""


class NamedLatents(ScriptedLatents):
    """Also knows on which tokens a latent is strongest."""

    def GetLatent(self, request, context):
        latent = latents_pb2.Latent(id=request.latent, top_tokens=["▁cannot", f"<i>{request.latent}</i>"])
        return latents_pb2.GetLatentResponse(latent=latent, version_id="v1")


class ScriptedEffects(ScriptedPrompts):
    """Makes each character a token, after BOS, which training left out.

    KL(chat ‖ base) at token t is t / 2. Base answers "yes" and chat "no", by END_REASON_TURN_END; a changed arm was
    changed at 4 tokens and left 1 alone. Training left out tokens like an answer's second. A prompt with "fail" is
    refused behind the first token, one with "wait" waits there until the caller has gone, one with "cut" ends there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.last: Any = None
        self.models: list[int] = []
        """The models of the attributions that were asked for."""
        self.left = threading.Event()
        """Set once the last generation is over, or its caller has gone."""
        self.deadline_s = 0.0

    def prompt_tokens(self, prompt: types_pb2.Prompt) -> types_pb2.Tokens:
        tokens = self.tokens(prompt)
        tokens.left_out.extend([LeftOut.BOS.value] + [LeftOut.KEPT.value] * (len(tokens.ids) - 1))  # pyright: ignore[reportArgumentType]
        return tokens

    def Compare(self, request, context):
        self.last = request
        if request.pair == "nowhere":
            return abort(context, grpc.StatusCode.NOT_FOUND, "there is no pair 'nowhere'")
        tokens, n = self.prompt_tokens(request.prompt), request.top_n
        num = len(tokens.ids)

        def model(sign: float) -> effects_pb2.ModelPredictions:
            return effects_pb2.ModelPredictions(
                log_probabilities=[sign * t for t in range(num - 1)] + [NAN],
                ranks=[*range(1, num), 0],
                entropies=[0.25] * num,
                top_ids=[100 + rank for _ in range(num) for rank in range(n)],
                top_log_probabilities=[sign * (rank + 1) for _ in range(num) for rank in range(n)],
                norms=[2.0] * num,
                error_norms=[0.5] * num if sign == -1 and not request.pair else [],
            )

        return effects_pb2.CompareResponse(
            tokens=tokens,
            kl_chat_base=[t / 2 for t in range(num)],
            kl_base_chat=[t / 4 for t in range(num)],
            base=model(-0.5),
            chat=model(-1),
            top_n=n,
            pieces={100 + rank: f"<{rank}>" for rank in range(n)},
            difference_norms=[1.0] * num,
            cosines=[0.9] * num,
            version_id="" if request.pair else "v1",
            compute_ms=3.0,
        )

    def Generate(self, request, context):
        self.last, self.deadline_s = request, context.time_remaining()
        self.left = left = threading.Event()
        context.add_callback(left.set)
        tokens = self.prompt_tokens(request.prompt)
        start = effects_pb2.GenerationStart(tokens=tokens, version_id="" if request.pair else "v1")
        if request.with_code:
            start.code.CopyFrom(self.encode(prompts_pb2.EncodeRequest(prompt=request.prompt)).code)
        yield effects_pb2.GenerateResponse(start=start)
        said = [
            (arm, sample, ANSWERS[request.arms[arm].model], bool(request.arms[arm].interventions))
            for arm in range(len(request.arms))
            for sample in range(request.arms[arm].sampling.num_samples)
        ]
        for i in range(4):
            going = [each for each in said if i < len(each[2])]
            new = [self._token(arm, sample, answer, i, request.with_code) for arm, sample, answer, _ in going]
            if new:
                yield effects_pb2.GenerateResponse(step=effects_pb2.GenerationStep(tokens=new))
            if "fail" in request.prompt.text:
                abort(context, grpc.StatusCode.INTERNAL, "the worker died")
            if "wait" in request.prompt.text:
                left.wait(PATIENCE_S)
            if "cut" in request.prompt.text:
                return
            for arm, sample, answer, is_changed in said:
                if i == len(answer):
                    yield effects_pb2.GenerateResponse(end=self._end(arm, sample, answer, is_changed))

    @staticmethod
    def _token(arm: int, sample: int, answer: list[str], i: int, with_code: bool) -> effects_pb2.NewToken:
        fires: dict[str, Any] = {}
        if with_code and i < len(answer) - 1:
            left_out = LeftOut.NORM if i == 1 else LeftOut.KEPT
            fires = {"latents": [9, 3], "activations": [1.5 + 40 * i, 0.5], "left_out": left_out.value}
        return effects_pb2.NewToken(
            arm=arm,
            sample=sample,
            id=ord(answer[i][0]),
            piece=answer[i],
            log_probability=-0.5 * (i + 1),
            role=TokenRole.ASSISTANT.value,  # pyright: ignore[reportArgumentType]
            **fires,
        )

    @staticmethod
    def _end(arm: int, sample: int, answer: list[str], is_changed: bool) -> effects_pb2.GenerationEnd:
        changes: dict[str, Any] = {"num_changed": 4, "num_left_out": 1} if is_changed else {}
        return effects_pb2.GenerationEnd(
            arm=arm,
            sample=sample,
            reason=effects_pb2.END_REASON_TURN_END,
            text="".join(answer),
            num_tokens=len(answer),
            **changes,
        )

    def Attribute(self, request, context):
        """The KL is 2.

        Out of chat, latent 7 carries 1.5 of it, latent 8 -0.5, latent 3 an estimated 0.25, which was not run. Put into
        base, latent 9 carries 1.75, latent 8 0.5, latent 7 -0.25, latent 5 -0.5. A prompt with "alone" is one of a
        dictionary of chat alone, whose rows base cannot take.
        """
        self.last, self.deadline_s = request, context.time_remaining()
        self.models.append(request.model)
        entry = effects_pb2.AttributeResponse.Entry
        tokens = self.prompt_tokens(request.prompt)
        in_base = request.model == effects_pb2.MODEL_BASE
        if in_base and "alone" in request.prompt.text:
            violation = BadRequest.FieldViolation(field="model", description="this crosscoder reads chat alone")
            refusal = BadRequest(field_violations=[violation])
            return abort(context, grpc.StatusCode.INVALID_ARGUMENT, "this crosscoder reads chat alone", refusal)
        entries = [
            entry(latent=7, estimate=1.25, effect=1.5, share=0.75, num_active=2, peak_token=1, max=4.0),
            entry(latent=8, estimate=-0.25, effect=-0.5, share=-0.25, num_active=1, peak_token=2, max=1.0),
            entry(latent=3, estimate=0.25, num_active=len(tokens.ids), peak_token=0, max=0.5),
        ]
        if in_base:
            entries = [
                entry(latent=latent, estimate=effect, effect=effect, share=effect / 2, num_active=1, max=1.0)
                for latent, effect in ((9, 1.75), (8, 0.5), (5, -0.5), (7, -0.25))
            ]
        explained = list(request.tokens) or [len(tokens.ids) - 1]
        at_the_end = [3] * (len(tokens.ids) - 2)
        return effects_pb2.AttributeResponse(
            tokens=tokens,
            explained=[] if request.HasField("continuations") else explained,
            value=2.0,
            entries=entries[: request.limit],
            row_starts=[0, 1, 3, *at_the_end],
            token_entries=[2, 0, 1],
            token_estimates=[0.25, 1.25, -0.25],
            num_latents=5,
            effect_of_all=-0.5 if in_base else 1.2,
            effect_of_stream=1.9 if in_base else 1.8,
            num_left_out=1,
            version_id="v1",
            compute_ms=4.0,
        )

    def Contrast(self, request, context):
        self.last = request
        entry = prompts_pb2.ContrastResponse.Entry
        place = prompts_pb2.ContrastResponse.Place
        found = [entry(latent=7, auc=1.0, auc_se=0.01, mean_first=3.0, mean_second=0.0, p_value=0.05)]
        shared = {"held_out_auc": 0.9, "held_out_auc_se": 0.05, "shuffled_auc": 0.5, "num_shuffles": 20}
        return prompts_pb2.ContrastResponse(
            places=[
                place(place="decision", entries=found, num_latents=30, **shared),  # pyright: ignore[reportArgumentType]
                place(place="within", num_latents=40, num_without_token=2, **shared),  # pyright: ignore[reportArgumentType]
            ],
            num_first=len(request.first),
            num_second=len(request.second),
            num_repeats=1,
            version_id="v1",
        )
