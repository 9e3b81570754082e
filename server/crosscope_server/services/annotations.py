"""The service crosscope.v1.Annotations: decode, call, reply. Knows nothing about SQL."""

# ruff: noqa: ARG002 (gRPC passes a request and a context to every method)

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Protocol, TypeVar

import grpc.aio

from crosscope_proto.access import is_name
from crosscope_proto.v1 import annotations_pb2 as pb
from crosscope_proto.v1 import annotations_pb2_grpc
from crosscope_server.annotations.records import Conditions, Dictionary, Said, What
from crosscope_server.annotations.store import Annotations
from crosscope_server.annotations.transfer import Options, Row
from crosscope_server.callers import calling
from crosscope_server.catalogue import Catalogue, Version
from crosscope_server.errors import BrokenArtefact, InvalidRequest, NotFound, Violation
from crosscope_server.pages import decode_token, encode_token
from crosscope_server.services import said, word_messages
from crosscope_server.validation import check

Context = grpc.aio.ServicerContext
T = TypeVar("T")

_DEFAULT_LATENTS = 100
_DEFAULT_CHANGES = 50
MAX_ROWS = 100_000
"""Rows of one import."""
MAX_BYTES = 64 * 1024 * 1024
"""Bytes of one import, which wait in memory until all are there."""


class _Written(Protocol):
    """A request that changes something."""

    author: str


def author_of(request: _Written) -> str:
    """Whose change it is: the token's name. The operator may name another, and so may all where there are no tokens."""
    name = calling().name
    return name if is_name(name) else request.author


class AnnotationsService(annotations_pb2_grpc.AnnotationsServicer):
    """What people say about latents."""

    def __init__(self, annotations: Annotations, catalogue: Catalogue) -> None:
        self._annotations = annotations
        self._catalogue = catalogue

    async def GetAnnotation(self, request: pb.GetAnnotationRequest, context: Context) -> pb.GetAnnotationResponse:
        """All words about one latent."""
        about = await self._about(request.of, request.latent)
        words = await self._annotations.words(about.weights, request.latent)
        return pb.GetAnnotationResponse(annotation=word_messages.annotation(words), weights=about.weights)

    async def ListAnnotations(self, request: pb.ListAnnotationsRequest, context: Context) -> pb.ListAnnotationsResponse:
        """Latents that have words."""
        version = await self._version(request.of)
        about = said.dictionary(version)
        conditions = Conditions(request.text, request.is_labelled, request.is_noted, request.is_starred, request.list)
        query = [about.weights, *vars(conditions).values()]
        after = _after(request.page_token, query, -1)
        size = request.page_size if request.HasField("page_size") else _DEFAULT_LATENTS
        found = await self._annotations.listing(about.weights, conditions, after, size)
        last = "" if found.is_last else encode_token(about.weights, [found.latents[-1].latent], query)
        return pb.ListAnnotationsResponse(
            annotations=map(word_messages.annotation, found.latents),
            next_page_token=last,
            num_matching=found.num_matching,
            weights=about.weights,
            revision=found.revision,
            notes=await said.elsewhere(self._annotations, version),
            num_labelled=found.totals.labelled,
            num_starred=found.totals.starred,
            num_noted=found.totals.noted,
        )

    async def GetNames(self, request: pb.GetNamesRequest, context: Context) -> pb.GetNamesResponse:
        """What latents are called."""
        version = await self._version(request.of)
        for latent in request.latents:
            version.table.check_id(latent)
        words, notes = await said.words(self._annotations, version)
        names = await asyncio.to_thread(word_messages.names, version.table, words, list(request.latents))
        return pb.GetNamesResponse(names=names, version_id=version.version_id, notes=notes)

    async def SetLabel(self, request: pb.SetLabelRequest, context: Context) -> pb.SetLabelResponse:
        """Writes or clears a label."""
        author = author_of(request)
        what = What.AUTOMATIC_LABEL if request.origin == pb.LABEL_ORIGIN_AUTOMATIC else What.LABEL
        if request.scores and what is What.LABEL:
            raise InvalidRequest([Violation("scores", "are of automatic labels; a person's label has none")])
        label = Said(request.text, author, time.time(), scores=dict(request.scores)) if request.text else None
        seen = request.seen_revision if request.HasField("seen_revision") else None
        about = await self._about(request.of, request.latent)
        words = await self._annotations.say(about, request.latent, what, label, author, seen)
        return pb.SetLabelResponse(annotation=word_messages.annotation(words))

    async def WriteNote(self, request: pb.WriteNoteRequest, context: Context) -> pb.WriteNoteResponse:
        """Writes or clears a note."""
        author = author_of(request)
        note = Said(request.text, author, time.time()) if request.text else None
        seen = request.seen_revision if request.HasField("seen_revision") else None
        about = await self._about(request.of, request.latent)
        words = await self._annotations.say(about, request.latent, What.NOTE, note, author, seen)
        return pb.WriteNoteResponse(annotation=word_messages.annotation(words))

    async def SetStar(self, request: pb.SetStarRequest, context: Context) -> pb.SetStarResponse:
        """Sets or takes a star."""
        author = author_of(request)
        star = Said("", author, time.time()) if request.is_starred else None
        about = await self._about(request.of, request.latent)
        words = await self._annotations.say(about, request.latent, What.STAR, star, author, None)
        return pb.SetStarResponse(annotation=word_messages.annotation(words))

    async def GetHistory(self, request: pb.GetHistoryRequest, context: Context) -> pb.GetHistoryResponse:
        """What was changed about a latent."""
        about = await self._about(request.of, request.latent)
        query = [about.weights, request.latent]
        before = _after(request.page_token, query, None)
        size = request.page_size if request.HasField("page_size") else _DEFAULT_CHANGES
        found = await self._annotations.history(about.weights, request.latent, before, size + 1)
        more = len(found) > size
        return pb.GetHistoryResponse(
            changes=map(word_messages.change, found[:size]),
            next_page_token=encode_token(about.weights, [found[size - 1].revision], query) if more else "",
        )

    async def ListLists(self, request: pb.ListListsRequest, context: Context) -> pb.ListListsResponse:
        """All lists."""
        version = await self._version(request.of)
        found = await self._annotations.lists(said.dictionary(version).weights)
        notes = await said.elsewhere(self._annotations, version)
        return pb.ListListsResponse(lists=map(word_messages.latent_list, found), notes=notes)

    async def GetList(self, request: pb.GetListRequest, context: Context) -> pb.GetListResponse:
        """One list."""
        about = await self._about(request.of)
        info, latents = await self._annotations.members(about.weights, request.name)
        return pb.GetListResponse(list=word_messages.latent_list(info), latents=latents)

    async def CreateList(self, request: pb.CreateListRequest, context: Context) -> pb.CreateListResponse:
        """Makes a list."""
        about = await self._about(request.of)
        info = await self._annotations.create_list(about, request.name, author_of(request))
        return pb.CreateListResponse(list=word_messages.latent_list(info))

    async def RenameList(self, request: pb.RenameListRequest, context: Context) -> pb.RenameListResponse:
        """Gives a list another name."""
        about = await self._about(request.of)
        info = await self._annotations.rename_list(about, request.name, request.new_name, author_of(request))
        return pb.RenameListResponse(list=word_messages.latent_list(info))

    async def DeleteList(self, request: pb.DeleteListRequest, context: Context) -> pb.DeleteListResponse:
        """Deletes a list."""
        about = await self._about(request.of)
        info = await self._annotations.delete_list(about, request.name, author_of(request))
        return pb.DeleteListResponse(list=word_messages.latent_list(info))

    async def ChangeList(self, request: pb.ChangeListRequest, context: Context) -> pb.ChangeListResponse:
        """Changes what is in a list."""
        version = await self._version(request.of)
        for latent in (*request.add, *request.remove):
            version.table.check_id(latent)
        about, author = said.dictionary(version), author_of(request)
        changed = self._annotations.change_list(about, request.name, request.add, request.remove, author)
        info, num_added, num_removed = await changed
        found = word_messages.latent_list(info)
        return pb.ChangeListResponse(list=found, num_added=num_added, num_removed=num_removed)

    async def ExportAnnotations(
        self, request: pb.ExportAnnotationsRequest, context: Context
    ) -> AsyncIterator[pb.ExportAnnotationsResponse]:
        """All words of a crosscoder."""
        named = await self._annotations.dictionaries(request.of.crosscoder)
        try:
            weights = [(await self._about(request.of)).weights]
        except (NotFound, BrokenArtefact):
            # Words outlive their crosscoder. Whoever names a version means that one.
            if request.of.HasField("version_id") or not (request.with_earlier and named):
                raise
            weights = []
        if request.with_earlier:
            weights += [each for each in named if each not in weights]
        async for rows in self._annotations.exported(weights):
            yield pb.ExportAnnotationsResponse(rows=map(word_messages.exported, rows))

    async def ImportAnnotations(
        self, request_iterator: AsyncIterator[pb.ImportAnnotationsRequest], context: Context
    ) -> pb.ImportAnnotationsResponse:
        """Writes exported words."""
        options: pb.ImportAnnotationsRequest.Options | None = None
        rows: list[pb.ExportedRow] = []
        num_bytes = 0
        async for request in request_iterator:
            if options is None:
                if not request.HasField("options"):
                    raise InvalidRequest([Violation("options", "the first message must hold the options")])
                options = request.options
                check(options)
            rows += request.rows
            num_bytes += request.ByteSize()
            if len(rows) > MAX_ROWS or num_bytes > MAX_BYTES:
                sentence = f"an import has at most {MAX_ROWS} rows and {MAX_BYTES >> 20} MiB; import it in parts"
                raise InvalidRequest([Violation("rows", sentence)])
        if options is None:
            raise InvalidRequest([Violation("options", "there is no message; the first must hold the options")])
        about, author = await self._about(options.of), author_of(options)
        how = Options(author, time.time(), options.replace, options.any_weights)
        decoded = await asyncio.to_thread(lambda: [_row(each) for each in rows])
        report = await self._annotations.import_rows(about, decoded, how, is_kept=not options.dry_run)
        return word_messages.report(report, dry_run=options.dry_run)

    async def _version(self, of: pb.WordsOf) -> Version:
        return await self._catalogue.open(of.crosscoder, of.version_id or None)

    async def _about(self, of: pb.WordsOf, latent: int | None = None) -> Dictionary:
        """The dictionary that a request is about. Raises NotFound, also where it has no such latent."""
        version = await self._version(of)
        if latent is not None:
            version.table.check_id(latent)
        return said.dictionary(version)


def _after(token: str, query: list[object], first: T) -> int | T:
    """Where a listing goes on; `first` on the first page. Raises InvalidRequest."""
    if not token:
        return first
    match decode_token(token, query).after:
        case [int(after)]:
            return after
        case _:
            raise InvalidRequest([Violation("page_token", "not a token of this listing; leave it empty to begin")])


def _row(message: pb.ExportedRow) -> Row:
    """An imported row. One that breaks a rule says which."""
    try:
        check(message)
    except InvalidRequest as error:
        return word_messages.row(message, error.sentence)
    return word_messages.row(message)
