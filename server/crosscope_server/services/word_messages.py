"""Words about latents from and to the messages of crosscope.v1.Annotations."""

import math
from collections.abc import Sequence

from crosscope_proto.v1 import annotations_pb2 as pb
from crosscope_server.annotations.records import Change, LatentWords, ListInfo, Said, What
from crosscope_server.annotations.snapshot import Snapshot
from crosscope_server.annotations.transfer import Report, Row
from crosscope_server.latents import LatentTable

_MAX_REASON = 300
"""Characters of the reason why a part of a row was skipped."""


def annotation(words: LatentWords) -> pb.Annotation:
    """All words about one latent."""
    said = {str(what): _words(each) for what, each in words.said.items()}
    lists = [pb.ListPlace(name=name, position=position) for name, position in words.lists.items()]
    return pb.Annotation(latent=words.latent, lists=lists, **said)  # pyright: ignore[reportArgumentType]


def _words(said: Said) -> pb.Words:
    return pb.Words(
        text=said.text,
        author=said.author,
        written_at=said.written_at,
        revision=said.revision,
        scores=said.scores,
    )


def change(found: Change) -> pb.Change:
    """A change."""
    return pb.Change(**vars(found))


def latent_list(info: ListInfo) -> pb.LatentList:
    """A list."""
    return pb.LatentList(**vars(info))


def names(table: LatentTable, words: Snapshot, latents: Sequence[int]) -> list[pb.LatentName]:
    """What latents are called."""
    contexts, tops = table.tokens("peak_context", latents), table.tokens("top_tokens", latents)
    return [
        pb.LatentName(
            latent=latent,
            label=words.labels.get(latent, ""),
            label_origin=_origin(latent, words),
            is_starred=words.is_starred(latent),
            peak_context=context if any(context) else (),
            top_tokens=top,
        )
        for latent, context, top in zip(latents, contexts, tops, strict=True)
    ]


def _origin(latent: int, words: Snapshot) -> pb.LabelOrigin.ValueType:
    if latent not in words.labels:
        return pb.LABEL_ORIGIN_UNSPECIFIED
    return pb.LABEL_ORIGIN_AUTOMATIC if latent in words.automatic else pb.LABEL_ORIGIN_PERSON


def exported(found: Row) -> pb.ExportedRow:
    """A row of an export."""
    if found.words is None:
        return pb.ExportedRow(weights=found.weights, list=pb.ListPlace(name=found.list))
    return pb.ExportedRow(weights=found.weights, annotation=annotation(found.words))


def row(message: pb.ExportedRow, wrong: str = "") -> Row:
    """A row of an import; `wrong` says why it cannot be taken."""
    if message.WhichOneof("row") == "list":
        return Row(message.weights, list=message.list.name, wrong=wrong)
    found = message.annotation
    said = {what: _said(getattr(found, what)) for what in What if found.HasField(what)}  # pyright: ignore[reportArgumentType]
    lists = {place.name: place.position for place in found.lists}
    return Row(message.weights, LatentWords(found.latent, said, lists), wrong=wrong)


def _said(message: pb.Words) -> Said:
    scores = {name: score for name, score in message.scores.items() if math.isfinite(score)}
    return Said(message.text, message.author, message.written_at, 0, scores)


def report(found: Report, *, dry_run: bool) -> pb.ImportAnnotationsResponse:
    """What an import changed, or would change."""
    skipped = [
        pb.ImportAnnotationsResponse.Skipped(
            row=each.row, latent=each.latent, what=each.what, reason=each.reason[:_MAX_REASON]
        )
        for each in found.skipped
    ]
    counts = {name: count for name, count in vars(found).items() if name != "skipped"}
    return pb.ImportAnnotationsResponse(**counts, skipped=skipped, dry_run=dry_run)
