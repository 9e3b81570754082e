"""Words about latents from reply messages, and rows of an export to and from messages. Knows nothing about channels."""

from collections.abc import Mapping
from typing import Any

import crosscope._annotations as types
from crosscope._annotation_files import WHATS
from crosscope._errors import InvalidInput
from crosscope_proto.v1 import annotations_pb2 as pb


def _words(message: pb.Words) -> types.Words:
    scores = {name: message.scores[name] for name in sorted(message.scores)}
    return types.Words(message.text, message.author, message.written_at, message.revision, scores)


def annotation(message: pb.Annotation) -> types.Annotation:
    """All words about one latent."""
    said = {
        what: _words(getattr(message, what)) if message.HasField(what) else None  # pyright: ignore[reportArgumentType]
        for what in WHATS
    }
    return types.Annotation(
        latent=message.latent, lists={place.name: place.position for place in message.lists}, **said
    )


def latent_name(message: pb.LatentName) -> types.LatentName:
    """What a latent is called."""
    return types.LatentName(
        latent=message.latent,
        label=message.label,
        is_automatic=message.label_origin == pb.LABEL_ORIGIN_AUTOMATIC,
        is_starred=message.is_starred,
        peak_context=tuple(message.peak_context),
        top_tokens=tuple(message.top_tokens),
    )


def named_list(message: pb.LatentList) -> types.NamedList:
    """A list."""
    return types.NamedList(message.name, message.num_latents, message.author, message.created_at)


def change(message: pb.Change) -> types.Change:
    """A change."""
    return types.Change(
        revision=message.revision,
        what=message.what,
        list=message.list,
        before=message.before if message.HasField("before") else None,
        after=message.after if message.HasField("after") else None,
        author=message.author,
        changed_at=message.changed_at,
    )


def exported(message: pb.ExportedRow) -> dict[str, Any]:
    """A row of an export."""
    if message.HasField("list"):
        return {"weights": message.weights, "list": message.list.name}
    found = message.annotation
    row: dict[str, Any] = {"weights": message.weights, "latent": found.latent}
    for what in WHATS:
        if found.HasField(what):  # pyright: ignore[reportArgumentType]
            words = _words(getattr(found, what))
            said = {"text": words.text, "author": words.author, "written_at": words.written_at}
            row[what] = said | ({"scores": dict(words.scores)} if words.scores else {})
    if found.lists:
        row["lists"] = {place.name: place.position for place in found.lists}
    return row


def row_message(number: int, row: Mapping[str, Any]) -> pb.ExportedRow:
    """A row of an import. Raises InvalidInput, which names the row."""
    try:
        if "list" in row:
            return pb.ExportedRow(weights=row.get("weights", ""), list=pb.ListPlace(name=row["list"]))
        lists = [pb.ListPlace(name=name, position=position) for name, position in row.get("lists", {}).items()]
        said = {what: pb.Words(**row[what]) for what in WHATS if row.get(what) is not None}
        found = pb.Annotation(latent=row["latent"], lists=lists, **said)
        return pb.ExportedRow(weights=row.get("weights", ""), annotation=found)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise InvalidInput.of(f"rows[{number}]", f"is no row of an export: {error}") from error


def import_report(message: pb.ImportAnnotationsResponse) -> types.ImportReport:
    """What an import changed."""
    return types.ImportReport(
        dry_run=message.dry_run,
        num_rows=message.num_rows,
        num_added=message.num_added,
        num_replaced=message.num_replaced,
        num_unchanged=message.num_unchanged,
        num_lists=message.num_lists,
        num_members=message.num_members,
        num_skipped=message.num_skipped,
        skipped=tuple(
            types.SkippedWords(each.row, each.latent if each.HasField("latent") else None, each.what, each.reason)
            for each in message.skipped
        ),
    )
