"""Looks from reply messages. Knows nothing about channels."""

from typing import Any

from crosscope._comparison import NextToken
from crosscope._decode import tokens
from crosscope._findings import Continuation, Finding, FirstDifference, LookGroup, LookLayer, LookText
from crosscope._looks import LookInfo
from crosscope._types import Estimate
from crosscope_proto.v1 import looks_pb2


def look_info(message: looks_pb2.Look) -> LookInfo:
    """What a look is about."""
    return LookInfo(
        name=message.name,
        pair=message.pair,
        base_model=message.base_model,
        chat_model=message.chat_model,
        num_layers=message.num_layers,
        datasets=tuple(message.datasets),
        num_tokens=message.num_tokens,
        num_texts=message.num_texts,
        figures=dict(message.figures),
        recommended_layer=message.recommended_layer if message.HasField("recommended_layer") else None,
        reason=message.reason,
        left_out=tuple(message.left_out),
        unavailable={name: message.unavailable[name] for name in sorted(message.unavailable)},
        sweep_tokens=message.sweep_tokens,
        sweep_texts=message.sweep_texts,
        num_folded=message.num_folded,
        created_at=message.created_at,
        manifest_json=message.manifest_json,
        broken=message.broken,
    )


def look_fields(message: looks_pb2.GetLookResponse) -> dict[str, Any]:
    """The fields of LookContents."""
    texts = [_text(each) for each in message.texts]
    ranked = sorted((text for text in texts if text.rank), key=lambda text: text.rank)
    return dict(  # noqa: C408 (names as in the class)
        info=look_info(message.look),
        layers=tuple(map(_layer, message.layers)),
        groups=tuple(
            LookGroup(
                each.kind, each.name, each.num_tokens, each.num_texts, Estimate(each.mean, each.mean_se), each.share
            )
            for each in message.groups
        ),
        findings=tuple(
            Finding(texts[each.text], each.position, each.kl, _likely(each.base), _likely(each.chat))
            for each in message.findings
        ),
        conversations=tuple(ranked),
        first=tuple(map(_first, message.first)),
        continuations=tuple(map(_continuation, message.continuations)),
        num_findings=message.num_findings,
    )


def _layer(message: looks_pb2.LookLayer) -> LookLayer:
    shares = Estimate(message.share_chat, message.share_chat_se), Estimate(message.share_base, message.share_base_se)
    return LookLayer(message.layer, *shares)


def _text(message: looks_pb2.LookText) -> LookText:
    return LookText(
        dataset=message.dataset,
        place=message.place,
        rank=message.rank,
        num_tokens=message.num_tokens,
        mean=message.mean,
        sum=message.sum,
        tokens=tokens(message.tokens),
        kl=tuple(message.kl),
    )


def _likely(message: looks_pb2.LookNext) -> tuple[NextToken, ...]:
    columns = message.ids, message.pieces, message.log_probabilities
    return tuple(NextToken(*each) for each in zip(*columns, strict=True))


def _first(message: looks_pb2.LookFirst) -> FirstDifference:
    return FirstDifference(
        dataset=message.dataset,
        layer=message.layer,
        position=message.position,
        num_texts=message.num_texts,
        norm=message.norm,
        norm_base=message.norm_base,
        tokens_base=tuple(message.tokens_base),
        tokens_chat=tuple(message.tokens_chat),
    )


def _continuation(message: looks_pb2.LookContinuation) -> Continuation:
    return Continuation(
        dataset=message.dataset,
        place=message.place,
        kl=message.kl,
        prompt=tokens(message.prompt),
        base=message.base_text,
        chat=message.chat_text,
        base_ended=message.base_ended,
        chat_ended=message.chat_ended,
    )
