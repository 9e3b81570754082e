"""The service crosscope.v1.Looks: decode, call, reply. Knows nothing about files."""

# ruff: noqa: ARG002 (gRPC passes a request and a context to every method)

import asyncio
from collections.abc import Mapping
from typing import Any

import grpc.aio

from crosscope_proto.left_out import left_out
from crosscope_proto.v1 import looks_pb2, looks_pb2_grpc, types_pb2
from crosscope_server.looks import Look, LookCard, Looks

Context = grpc.aio.ServicerContext
Row = Mapping[str, Any]


class LooksService(looks_pb2_grpc.LooksServicer):
    """What differs between the models of a pair."""

    def __init__(self, looks: Looks) -> None:
        self._looks = looks

    async def ListLooks(self, request: looks_pb2.ListLooksRequest, context: Context) -> looks_pb2.ListLooksResponse:
        """All looks."""
        cards, broken = await asyncio.to_thread(self._looks.cards)
        unreadable = (looks_pb2.Look(name=name, broken=sentence) for name, sentence in broken)
        return looks_pb2.ListLooksResponse(looks=[*map(_card, cards), *unreadable])

    async def GetLook(self, request: looks_pb2.GetLookRequest, context: Context) -> looks_pb2.GetLookResponse:
        """One look."""
        look = await asyncio.to_thread(self._looks.open, request.name)
        limit = request.max_findings if request.HasField("max_findings") else None
        return await asyncio.to_thread(_reply, look, limit)


def _card(card: LookCard) -> looks_pb2.Look:
    manifest = card.manifest
    return looks_pb2.Look(
        name=manifest.name,
        pair=manifest.pair.name,
        base_model=manifest.pair.base,
        chat_model=manifest.pair.chat_model,
        num_layers=manifest.num_layers,
        datasets=manifest.datasets,
        num_tokens=manifest.num_tokens,
        num_texts=manifest.num_texts,
        figures=manifest.figures,
        recommended_layer=manifest.recommended_layer,
        reason=manifest.reason,
        left_out=[*manifest.warnings, *left_out(manifest.skipped, manifest.texts)],
        unavailable=manifest.unavailable,
        sweep_tokens=manifest.sweep_tokens,
        sweep_texts=manifest.sweep_texts,
        num_folded=manifest.num_folded,
        created_at=manifest.created_at,
        manifest_json=card.manifest_json,
    )


def _reply(look: Look, limit: int | None) -> looks_pb2.GetLookResponse:
    findings = look.tables["findings"]
    some = findings[:limit]
    # Texts that no finding of the reply is in, and that do not differ most, stay out; the others move up.
    needed = {row["text"] for row in some}
    chosen = [index for index, row in enumerate(look.tables["texts"]) if row["rank"] or index in needed]
    place = {index: new for new, index in enumerate(chosen)}
    return looks_pb2.GetLookResponse(
        look=_card(look.card),
        layers=[looks_pb2.LookLayer(**row) for row in look.tables["layers"]],
        groups=[looks_pb2.LookGroup(**row) for row in look.tables["groups"]],
        texts=[_text(look.tables["texts"][index]) for index in chosen],
        findings=[_finding(row, place[row["text"]]) for row in some],
        first=[looks_pb2.LookFirst(**row) for row in look.tables["first"]],
        continuations=[_continuation(row) for row in look.tables["continuations"]],
        num_findings=len(findings),
    )


def _tokens(row: Row) -> types_pb2.Tokens:
    return types_pb2.Tokens(ids=row["token_ids"], pieces=row["pieces"], roles=row["roles"])


def _text(row: Row) -> looks_pb2.LookText:
    return looks_pb2.LookText(
        dataset=row["dataset"],
        place=row["place"],
        rank=row["rank"],
        num_tokens=row["num_tokens"],
        mean=row["mean"],
        sum=row["sum"],
        tokens=_tokens(row),
        kl=row["kl"],
    )


def _finding(row: Row, text: int) -> looks_pb2.LookFinding:
    base, chat = (
        looks_pb2.LookNext(
            ids=row[f"{model}_ids"],
            pieces=row[f"{model}_pieces"],
            log_probabilities=row[f"{model}_log_probabilities"],
        )
        for model in ("base", "chat")
    )
    return looks_pb2.LookFinding(text=text, position=row["position"], kl=row["kl"], base=base, chat=chat)


def _continuation(row: Row) -> looks_pb2.LookContinuation:
    return looks_pb2.LookContinuation(
        dataset=row["dataset"],
        place=row["place"],
        kl=row["kl"],
        prompt=_tokens(row),
        base_text=row["base_text"],
        chat_text=row["chat_text"],
        base_ended=bool(row["base_ended"]),
        chat_ended=bool(row["chat_ended"]),
    )
