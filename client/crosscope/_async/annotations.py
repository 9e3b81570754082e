"""What people say about the latents of a crosscoder: labels, notes, stars, lists."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crosscope import _annotation_files, _decode_annotations
from crosscope._annotations import (
    Annotation,
    AnnotationExport,
    AnnotationList,
    History,
    ImportReport,
    LatentName,
    NamedList,
)
from crosscope._async.transport import AsyncTransport
from crosscope._errors import InvalidInput
from crosscope._prompts import check_count, check_flag, check_text
from crosscope._public import public
from crosscope_proto.v1 import annotations_pb2 as pb
from crosscope_proto.v1.annotations_pb2_grpc import AnnotationsStub

if TYPE_CHECKING:
    import pandas as pd

_IDS_A_CALL = 1000
_ROWS_A_MESSAGE, _BYTES_A_MESSAGE = 1000, 1_000_000
"""The most that one message of an import holds; a server takes 4 MB."""
_LATENTS_A_PAGE = 500


@public
class AsyncAnnotations:
    """The words about the latents of a crosscoder: `crosscoder.annotations`.

    They belong to its weights: every version with these weights shows them, and a new training does not. A write may
    name in `seen` the revision that it saw, 0 for nothing. If another change came in between, it raises StaleWrite and
    changes nothing. Every change is recorded with the client's author (`Client(author=…)`, else CROSSCOPE_AUTHOR, else
    the login name), as claimed.
    """

    def __init__(self, transport: AsyncTransport, crosscoder: str, version_id: str | None) -> None:
        self._transport = transport
        self._of = pb.WordsOf(crosscoder=crosscoder, version_id=version_id)

    @property
    def author(self) -> str:
        """The name that changes are recorded with."""
        return self._transport.connection.author

    async def get(self, latent: int) -> Annotation:
        """All words about one latent."""
        request = pb.GetAnnotationRequest(of=self._of, latent=check_count(latent, "latent"))
        reply = await self._transport.unary(self._stub.GetAnnotation, request)
        return _decode_annotations.annotation(reply.annotation)

    async def label(
        self,
        latent: int,
        text: str | None,
        *,
        seen: int | None = None,
        scores: Mapping[str, float] | None = None,
        by_program: str | None = None,
    ) -> Annotation:
        """Writes a latent's label, at most 200 characters on one line; None or "" clears it.

        `by_program` names the program that says the label, with `scores` for how well it fits. Such a label never takes
        the place of a person's.
        """
        request = pb.SetLabelRequest(
            of=self._of,
            latent=check_count(latent, "latent"),
            text=check_text(text or "", "text"),
            origin=pb.LABEL_ORIGIN_PERSON if by_program is None else pb.LABEL_ORIGIN_AUTOMATIC,
            author=self.author if by_program is None else check_text(by_program, "by_program"),
            seen_revision=seen,
            scores=scores,
        )
        reply = await self._transport.unary(self._stub.SetLabel, request)
        return _decode_annotations.annotation(reply.annotation)

    async def note(self, latent: int, text: str | None, *, seen: int | None = None) -> Annotation:
        """Writes a latent's note, at most 10 000 characters; None or "" clears it."""
        request = pb.WriteNoteRequest(
            of=self._of,
            latent=check_count(latent, "latent"),
            text=check_text(text or "", "text"),
            author=self.author,
            seen_revision=seen,
        )
        reply = await self._transport.unary(self._stub.WriteNote, request)
        return _decode_annotations.annotation(reply.annotation)

    async def star(self, latent: int, is_starred: bool = True) -> Annotation:
        """Sets a latent's star, or takes it."""
        request = pb.SetStarRequest(
            of=self._of,
            latent=check_count(latent, "latent"),
            is_starred=check_flag(is_starred, "is_starred"),
            author=self.author,
        )
        reply = await self._transport.unary(self._stub.SetStar, request)
        return _decode_annotations.annotation(reply.annotation)

    async def all(
        self,
        text: str = "",
        *,
        is_labelled: bool = False,
        is_noted: bool = False,
        is_starred: bool = False,
        in_list: str = "",
        limit: int | None = None,
    ) -> AnnotationList:
        """The latents that have words, by id: those whose label or note contains `text`, and that meet all conditions.

        Raises NotFound for a list that there is not.
        """
        request = pb.ListAnnotationsRequest(
            of=self._of,
            text=check_text(text, "text"),
            is_labelled=is_labelled,
            is_noted=is_noted,
            is_starred=is_starred,
            list=check_text(in_list, "in_list"),
            page_size=_LATENTS_A_PAGE if limit is None else min(check_count(limit, "limit", low=1), _LATENTS_A_PAGE),
        )
        found: list[Annotation] = []
        while True:
            reply = await self._transport.unary(self._stub.ListAnnotations, request)
            found += map(_decode_annotations.annotation, reply.annotations)
            if not reply.next_page_token or (limit is not None and len(found) >= limit):
                break
            request.page_token = reply.next_page_token
        return AnnotationList(
            found[:limit],
            notes=reply.notes,
            num_matching=reply.num_matching,
            num_labelled=reply.num_labelled,
            num_starred=reply.num_starred,
            num_noted=reply.num_noted,
            revision=reply.revision,
        )

    async def names(self, latents: Iterable[int]) -> dict[int, LatentName]:
        """What latents are called, by id: the label, else the strongest peak in its text."""
        ids = list(dict.fromkeys(check_count(latent, "latents") for latent in latents))
        found: dict[int, LatentName] = {}
        for first in range(0, len(ids), _IDS_A_CALL):
            request = pb.GetNamesRequest(of=self._of, latents=ids[first : first + _IDS_A_CALL])
            reply = await self._transport.unary(self._stub.GetNames, request)
            found |= {each.latent: _decode_annotations.latent_name(each) for each in reply.names}
        return found

    async def history(self, latent: int, limit: int = 100) -> History:
        """What was changed about a latent, newest first."""
        request = pb.GetHistoryRequest(of=self._of, latent=check_count(latent, "latent"))
        request.page_size = min(check_count(limit, "limit", low=1), _LATENTS_A_PAGE)
        found = History()
        while True:
            reply = await self._transport.unary(self._stub.GetHistory, request)
            found += map(_decode_annotations.change, reply.changes)
            if not reply.next_page_token or len(found) >= limit:
                return History(found[:limit])
            request.page_token = reply.next_page_token

    async def lists(self) -> list[NamedList]:
        """All lists, by name."""
        reply = await self._transport.unary(self._stub.ListLists, pb.ListListsRequest(of=self._of))
        return [_decode_annotations.named_list(each) for each in reply.lists]

    async def members(self, name: str) -> tuple[int, ...]:
        """Ids of the latents of a list, in its order. Raises NotFound."""
        request = pb.GetListRequest(of=self._of, name=check_text(name, "name"))
        return tuple((await self._transport.unary(self._stub.GetList, request)).latents)

    async def create_list(self, name: str, latents: Iterable[int] = ()) -> NamedList:
        """Makes a list, with latents in this order. Raises Conflict for a name that is taken."""
        request = pb.CreateListRequest(of=self._of, name=check_text(name, "name"), author=self.author)
        reply = await self._transport.unary(self._stub.CreateList, request)
        ids = list(latents)
        return await self.add(name, ids) if ids else _decode_annotations.named_list(reply.list)

    async def rename_list(self, name: str, new_name: str) -> NamedList:
        """Gives a list another name. Raises NotFound, or Conflict for a name that is taken."""
        names = {"name": check_text(name, "name"), "new_name": check_text(new_name, "new_name")}
        request = pb.RenameListRequest(of=self._of, author=self.author, **names)
        reply = await self._transport.unary(self._stub.RenameList, request)
        return _decode_annotations.named_list(reply.list)

    async def delete_list(self, name: str) -> NamedList:
        """Deletes a list; returns it as it was. Its latents keep all other words. Raises NotFound."""
        request = pb.DeleteListRequest(of=self._of, name=check_text(name, "name"), author=self.author)
        reply = await self._transport.unary(self._stub.DeleteList, request)
        return _decode_annotations.named_list(reply.list)

    async def add(self, name: str, latents: Iterable[int]) -> NamedList:
        """Puts latents at the end of a list, in order; one that is in it keeps its place. Raises NotFound."""
        return await self._change(name, "add", latents)

    async def remove(self, name: str, latents: Iterable[int]) -> NamedList:
        """Takes latents out of a list; one that is not in it changes nothing. Raises NotFound."""
        return await self._change(name, "remove", latents)

    async def _change(self, name: str, how: str, latents: Iterable[int]) -> NamedList:
        rest = [check_count(latent, "latents") for latent in latents]
        while True:
            some: dict[str, Any] = {how: rest[:_IDS_A_CALL]}
            request = pb.ChangeListRequest(of=self._of, name=check_text(name, "name"), author=self.author, **some)
            reply = await self._transport.unary(self._stub.ChangeList, request)
            rest = rest[_IDS_A_CALL:]
            if not rest:
                return _decode_annotations.named_list(reply.list)

    async def export(self, path: Path | str | None = None, *, with_earlier: bool = False) -> AnnotationExport:
        """All words, lists first, then latents by id; also written to `path`, by its ending as JSON or CSV.

        `with_earlier` adds words about other weights that were published under this name. JSON and CSV hold the same,
        and `import_` reads both back exactly. In CSV a text that a spreadsheet would run as a formula has an apostrophe
        in front.
        """
        request = pb.ExportAnnotationsRequest(of=self._of, with_earlier=with_earlier)
        rows = AnnotationExport()
        timeout_s = self._transport.connection.timeout_s
        async for reply in self._transport.stream(self._stub.ExportAnnotations, request, timeout_s):
            rows += map(_decode_annotations.exported, reply.rows)
        if path is not None:
            _annotation_files.write(Path(path), rows, self._of.crosscoder)
        return rows

    async def import_(
        self,
        source: "Path | str | pd.DataFrame | Sequence[Mapping[str, Any]]",
        *,
        dry_run: bool = False,
        replace: bool = False,
        any_weights: bool = False,
    ) -> ImportReport:
        """Writes exported words: a file, a data frame or the rows of `export`; all in one step.

        `dry_run` counts what would change and changes nothing. Words that differ from those that are there are skipped,
        unless `replace` is set; so are words about other weights, unless `any_weights` is set. The report names what
        was skipped. Raises InvalidInput for a file that is no export.
        """
        rows = _rows(source)
        options = {"dry_run": dry_run, "replace": replace, "any_weights": any_weights, "author": self.author}
        first = pb.ImportAnnotationsRequest(options=pb.ImportAnnotationsRequest.Options(of=self._of, **options))
        messages = [_decode_annotations.row_message(number, row) for number, row in enumerate(rows)]
        requests = [first, *(pb.ImportAnnotationsRequest(rows=piece) for piece in _pieces(messages))]
        reply = await self._transport.upload(self._stub.ImportAnnotations, requests)
        return _decode_annotations.import_report(reply)

    @property
    def _stub(self):
        return self._transport.stub(AnnotationsStub)


def _pieces(rows: Iterable[pb.ExportedRow]) -> Iterator[list[pb.ExportedRow]]:
    """The rows in pieces that fit a message."""
    piece: list[pb.ExportedRow] = []
    size = 0
    for row in rows:
        size += row.ByteSize()
        if piece and (size > _BYTES_A_MESSAGE or len(piece) == _ROWS_A_MESSAGE):
            yield piece
            piece, size = [], row.ByteSize()
        piece.append(row)
    yield piece


def _rows(source: Any) -> Sequence[Mapping[str, Any]]:
    if isinstance(source, Path | str):
        try:
            return _annotation_files.read(Path(source))
        except OSError as error:
            raise InvalidInput.of("source", f"cannot read {str(source)!r}: {error.strerror}") from error
    if hasattr(source, "columns"):
        return _annotation_files.of_frame(source)
    return source
