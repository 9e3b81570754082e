"""The service crosscope.v1.Latents: decode, call, reply. Knows nothing about files."""

# ruff: noqa: ARG002 (gRPC passes a request and a context to every method)

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Protocol

import grpc
import grpc.aio

from crosscope_proto.artefacts import ExampleGroup
from crosscope_proto.v1 import latents_pb2, latents_pb2_grpc
from crosscope_server.annotations import snapshot
from crosscope_server.annotations.snapshot import Snapshot
from crosscope_server.annotations.store import Annotations
from crosscope_server.catalogue import Broken, Card, Catalogue, Version
from crosscope_server.errors import InvalidRequest, Violation
from crosscope_server.examples import Example, Key
from crosscope_server.latents import Filter, Order
from crosscope_server.matches import Matches, counts
from crosscope_server.matching import MIN_COSINE, Side
from crosscope_server.pages import PageToken, decode_token, encode_token
from crosscope_server.search.searches import Searches
from crosscope_server.services import decode, said, search_messages
from crosscope_server.services.latent_rows import latent_messages

Context = grpc.aio.ServicerContext

_DEFAULT_LATENTS = 50
_DEFAULT_EXAMPLES = 10
_LARGE_PAGE = 100
"""Number of latents from which on a reply is built in a thread, off the event loop."""

_GROUPS = {
    latents_pb2.EXAMPLE_GROUP_TOP: ExampleGroup.TOP,
    latents_pb2.EXAMPLE_GROUP_QUANTILE: ExampleGroup.QUANTILE,
    latents_pb2.EXAMPLE_GROUP_SILENT: ExampleGroup.SILENT,
}
_GROUP_NUMBERS = {group: number for number, group in _GROUPS.items()}


class _OfVersion(Protocol):
    """A request that may name a version."""

    crosscoder: str
    version_id: str


class LatentsService(latents_pb2_grpc.LatentsServicer):
    """Offline questions."""

    def __init__(self, catalogue: Catalogue, annotations: Annotations, searches: Searches) -> None:
        self._catalogue = catalogue
        self._annotations = annotations
        self._matches = Matches(catalogue)
        self._searches = searches

    async def ListCrosscoders(
        self, request: latents_pb2.ListCrosscodersRequest, context: Context
    ) -> latents_pb2.ListCrosscodersResponse:
        """All published crosscoders."""
        cards, broken = await self._catalogue.cards()
        messages = [*map(_card_message, cards), *map(_broken_message, broken)]
        return latents_pb2.ListCrosscodersResponse(crosscoders=messages)

    async def GetCrosscoder(
        self, request: latents_pb2.GetCrosscoderRequest, context: Context
    ) -> latents_pb2.GetCrosscoderResponse:
        """One crosscoder's card."""
        version = await self._version(request)
        detectors = await self._catalogue.read(version, lambda: version.detectors)
        return latents_pb2.GetCrosscoderResponse(
            crosscoder=_card_message(version.card),
            detectors=[latents_pb2.BehaviourDetector(**dataclasses.asdict(detector)) for detector in detectors],
        )

    async def GetTrainingCurves(
        self, request: latents_pb2.GetTrainingCurvesRequest, context: Context
    ) -> latents_pb2.GetTrainingCurvesResponse:
        """Training curves."""
        version = await self._version(request)
        curves = await self._catalogue.read(version, lambda: version.curves)
        message = latents_pb2.GetTrainingCurvesResponse.Curve
        return latents_pb2.GetTrainingCurvesResponse(
            steps=curves.steps,
            curves=[message(name=name, values=values) for name, values in curves.values.items()],
            version_id=version.version_id,
        )

    async def ListLatents(
        self, request: latents_pb2.ListLatentsRequest, context: Context
    ) -> latents_pb2.ListLatentsResponse:
        """A page of latents."""
        filters = [decode.latent_filter(condition) for condition in request.filters]
        query = [request.crosscoder, [dataclasses.astuple(condition) for condition in filters], request.order_by]
        token = decode_token(request.page_token, query) if request.page_token else None
        version = await self._version(request, token)
        after = None if token is None else _last_latent(token, version)
        size = request.page_size if request.HasField("page_size") else _DEFAULT_LATENTS
        by_words = request.order_by.removeprefix("-") in snapshot.COLUMNS
        about = [i for i, condition in enumerate(filters) if condition.column in snapshot.COLUMNS]
        words, missing = await said.words(self._annotations, version, is_needed=by_words or bool(about))
        num_latents = version.table.num_latents
        met = {i: words.meets(i, filters[i], num_latents) for i in about}
        order = _ordered(request.order_by, filters, version, words)
        page = version.table.page(filters, request.order_by, after, size, met=met, order=order)
        elsewhere = await said.elsewhere(self._annotations, version) if by_words or about else ()
        messages = await _latents(version, page.ids, words)
        return latents_pb2.ListLatentsResponse(
            latents=messages,
            next_page_token="" if page.is_last else encode_token(version.version_id, [page.ids[-1]], query),
            num_matching=page.num_matching,
            version_id=version.version_id,
            num_undefined=page.num_undefined,
            notes=[*page.notes, *missing, *elsewhere],
        )

    async def GetLatent(self, request: latents_pb2.GetLatentRequest, context: Context) -> latents_pb2.GetLatentResponse:
        """One latent."""
        version = await self._version(request)
        version.table.check_id(request.latent)
        words, missing = await said.words(self._annotations, version)
        [message] = await _latents(version, [request.latent], words)
        return latents_pb2.GetLatentResponse(latent=message, version_id=version.version_id, notes=missing)

    async def SearchLatents(
        self, request: latents_pb2.SearchLatentsRequest, context: Context
    ) -> latents_pb2.SearchLatentsResponse:
        """A page of the latents that a text or a regular expression finds."""
        pattern, places = search_messages.pattern(request), search_messages.places(request)
        filters = [decode.latent_filter(condition) for condition in request.filters]
        asked = [dataclasses.astuple(each) for each in (pattern, *filters)]
        query = [request.crosscoder, asked, places, request.order_by]
        token = decode_token(request.page_token, query) if request.page_token else None
        at = None if token is None else search_messages.After.of(token)
        version = await self._version(request, token)
        by_words = request.order_by.removeprefix("-") in snapshot.COLUMNS
        about = [i for i, condition in enumerate(filters) if condition.column in snapshot.COLUMNS]
        words, missing = await said.words(self._annotations, version, is_needed=by_words or bool(about))
        num_latents = version.table.num_latents
        order = _ordered(request.order_by, filters, version, words) if request.order_by else None
        keep = version.table.matching(filters, {i: words.meets(i, filters[i], num_latents) for i in about})
        with_examples = at is None or at.with_examples
        texts = search_messages.words(words)
        answer = await self._searches.find(
            version, pattern, places, (words.revision, texts), with_examples=with_examples
        )
        page = search_messages.page(answer, keep, order, request, at)
        snippets = await self._searches.snippets(answer, version, pattern, texts, page.ids)
        examples = answer.found.examples
        return latents_pb2.SearchLatentsResponse(
            results=search_messages.results(answer, await _latents(version, page.ids, words), snippets),
            next_page_token="" if page.after is None else encode_token(version.version_id, page.after, query),
            num_matching=page.num_matching,
            version_id=version.version_id,
            counts=search_messages.counts(answer, places, keep),
            num_text_matches=0 if examples is None else len(examples.text),
            num_texts=0 if examples is None else examples.num_texts,
            building=answer.opened.building,
            notes=[*missing, *answer.found.notes],
        )

    async def ListExamples(
        self, request: latents_pb2.ListExamplesRequest, context: Context
    ) -> latents_pb2.ListExamplesResponse:
        """A page of a latent's examples."""
        query = [request.crosscoder, request.latent, request.group, request.dataset]
        token = decode_token(request.page_token, query) if request.page_token else None
        version = await self._version(request, token)
        version.table.check_id(request.latent)
        datasets = version.card.manifest.datasets
        if request.dataset and request.dataset not in datasets:
            sentence = f"no data set {request.dataset!r}; there are {', '.join(datasets)}"
            raise InvalidRequest([Violation("dataset", sentence)])
        read = partial(
            version.examples.page,
            request.latent,
            _GROUPS.get(request.group),
            request.dataset or None,
            None if token is None else _last_example(token),
            request.page_size if request.HasField("page_size") else _DEFAULT_EXAMPLES,
            request.context if request.HasField("context") else None,
        )
        examples, is_last = await self._catalogue.read(version, read)
        return latents_pb2.ListExamplesResponse(
            examples=[_example_message(example) for example in examples],
            next_page_token="" if is_last else encode_token(version.version_id, [*examples[-1].key], query),
            version_id=version.version_id,
        )

    async def GetAtlas(
        self, request: latents_pb2.GetAtlasRequest, context: Context
    ) -> AsyncIterator[latents_pb2.GetAtlasResponse]:
        """Packed columns."""
        version = await self._version(request)
        about = [column for column in request.columns if column in snapshot.FIGURES]
        words, _ = await said.words(self._annotations, version, is_needed=True) if about else (Snapshot(), ())
        beside = {column: words.figures(column, version.table.num_latents) for column in about}
        for column, start, values in version.table.pack(request.columns, beside):
            yield latents_pb2.GetAtlasResponse(
                column=column,
                latent_start=start,
                values=values,
                num_latents=version.table.num_latents,
                version_id=version.version_id,
                categories=version.table.categories(column),
            )

    async def MatchLatents(
        self, request: latents_pb2.MatchLatentsRequest, context: Context
    ) -> latents_pb2.MatchLatentsResponse:
        """The nearest latents of two crosscoders."""
        one = await self._version(request)
        other = await self._catalogue.open(request.other, request.other_version_id or None)
        first, second = await self._matches.match(one, other)
        return latents_pb2.MatchLatentsResponse(
            first=_side_message(one, first), second=_side_message(other, second), min_cosine=MIN_COSINE
        )

    async def _version(self, request: _OfVersion, token: PageToken | None = None) -> Version:
        """The version that a request or its page token names, else the current one."""
        wanted = request.version_id or None
        if token is not None:
            if wanted not in (None, token.version_id):
                sentence = f"belongs to version {token.version_id[:60]!r}, but version_id is {wanted!r}"
                raise InvalidRequest([Violation("page_token", sentence)])
            wanted = token.version_id
        return await self._catalogue.open(request.crosscoder, wanted)


def _ordered(order_by: str, filters: Sequence[Filter], version: Version, words: Snapshot) -> Order:
    """All latents in the order by what people say, or by a column of the table. Raises InvalidRequest or NotFound."""
    if order_by.removeprefix("-") in snapshot.COLUMNS:
        return words.order(order_by, filters, version.table.num_latents)
    return version.table.order(order_by)


def _last_latent(token: PageToken, version: Version) -> int:
    match token.after:
        case [int(latent)] if 0 <= latent < version.table.num_latents:
            return latent
        case _:
            raise InvalidRequest([Violation("page_token", "not a token of a listing of latents")])


def _last_example(token: PageToken) -> Key:
    match token.after:
        case [str(group), int(quantile), str(dataset), int(rank)]:
            return group, quantile, dataset, rank
        case _:
            raise InvalidRequest([Violation("page_token", "not a token of a listing of examples")])


async def _latents(version: Version, ids: list[int], words: Snapshot) -> list[latents_pb2.Latent]:
    def messages() -> list[latents_pb2.Latent]:
        found = latent_messages(version.table.rows(ids))
        for message in found:
            message.label = words.labels.get(message.id, "")
            message.is_starred = words.is_starred(message.id)
        return found

    return messages() if len(ids) < _LARGE_PAGE else await asyncio.to_thread(messages)


def _example_message(example: Example) -> latents_pb2.Example:
    return latents_pb2.Example(
        sequence_id=example.sequence_id,
        dataset=example.dataset,
        group=_GROUP_NUMBERS[example.group],
        quantile=example.quantile,
        rank=example.rank,
        tokens=decode.tokens_message(example.tokens),
        token_start=example.token_start,
        num_tokens=example.num_tokens,
        positions=example.positions,
        activations=example.activations,
        max=example.max,
        peak=example.peak,
        repeats=example.repeats,
        group_low=example.group_low,
        group_high=example.group_high,
        group_texts=example.group_texts,
    )


def _side_message(version: Version, side: Side) -> latents_pb2.MatchedSide:
    return latents_pb2.MatchedSide(
        crosscoder=version.card.manifest.name,
        version_id=version.version_id,
        latents=side.latents,
        nearest=side.nearest,
        cosines=side.cosines,
        is_mutual=side.mutual,
        counts=[latents_pb2.MatchCount(**dataclasses.asdict(count)) for count in counts(version, side)],
        num_dead=version.table.num_latents - len(side.latents),
    )


def _broken_message(broken: Broken) -> latents_pb2.Crosscoder:
    return latents_pb2.Crosscoder(
        name=broken.name,
        version_id=broken.version_id,
        manifest_json=broken.manifest_json,
        broken=broken.sentence,
    )


def _card_message(card: Card) -> latents_pb2.Crosscoder:
    manifest = card.manifest
    return latents_pb2.Crosscoder(
        name=manifest.name,
        version_id=manifest.version_id,
        pair=manifest.pair.name,
        base_model=manifest.pair.base,
        chat_model=manifest.pair.chat_model,
        layer=manifest.layer,
        variant=manifest.variant,
        num_latents=manifest.num_latents,
        d_model=manifest.d_model,
        datasets=manifest.datasets,
        analysis_tokens=manifest.analysis_tokens,
        training_tokens=manifest.training_tokens,
        metrics=manifest.metrics,
        class_counts=manifest.class_counts,
        histogram_edges=manifest.histogram_edges,
        created_at=manifest.created_at,
        manifest_json=card.manifest_json,
    )
