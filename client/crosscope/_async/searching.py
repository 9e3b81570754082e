"""Searches for latents of a crosscoder."""

import time
from collections.abc import Iterable

from crosscope import _aio, _decode
from crosscope._async.transport import AsyncTransport
from crosscope._errors import InvalidInput
from crosscope._filters import Condition, build_filters
from crosscope._latents import LatentStatistics
from crosscope._prompts import check_count, check_flag, check_text
from crosscope._search import SearchCount, SearchMatch, SearchPlace, SearchResult, SearchResults
from crosscope_proto.v1 import latents_pb2 as pb
from crosscope_proto.v1.latents_pb2_grpc import LatentsStub

_RESULTS_A_PAGE = 200
_ASK_AGAIN_S = 0.5
_MOST_CHARACTERS = 500
_PLACES = {
    SearchPlace.LABEL: pb.SEARCH_PLACE_LABEL,
    SearchPlace.PEAK: pb.SEARCH_PLACE_PEAK,
    SearchPlace.LOGIT_BASE: pb.SEARCH_PLACE_LOGIT_BASE,
    SearchPlace.LOGIT_CHAT: pb.SEARCH_PLACE_LOGIT_CHAT,
    SearchPlace.EXAMPLE: pb.SEARCH_PLACE_EXAMPLE,
    SearchPlace.NOTE: pb.SEARCH_PLACE_NOTE,
}
_NAMES = {number: name for name, number in _PLACES.items()}


async def search(
    transport: AsyncTransport,
    of: tuple[str, str | None],
    text: str,
    places: str | Iterable[str],
    where: Condition | Iterable[Condition],
    *,
    regex: bool,
    match_case: bool,
    order_by: str,
    limit: int,
    wait_s: float,
) -> SearchResults:
    """What `Crosscoder.search` gives; `of` is the crosscoder and its version."""
    said = check_text(text, "text")
    if not 1 <= len(said) <= _MOST_CHARACTERS:
        raise InvalidInput.of("text", f"has {len(said)} characters; a search takes 1 to {_MOST_CHARACTERS}")
    request = pb.SearchLatentsRequest(
        crosscoder=of[0],
        version_id=of[1],
        text=said,
        is_regex=check_flag(regex, "regex"),
        match_case=check_flag(match_case, "match_case"),
        places=_places(places),
        filters=build_filters(where),
        order_by=check_text(order_by, "order_by"),
        page_size=min(check_count(limit, "limit", low=1), _RESULTS_A_PAGE),
    )
    ends_at = time.monotonic() + wait_s
    reply = await _ask(transport, request)
    while reply.HasField("building") and time.monotonic() < ends_at:
        await _aio.sleep(_ASK_AGAIN_S)
        reply = await _ask(transport, request)
    first, found = reply, list(reply.results)
    while reply.next_page_token and len(found) < limit:
        request.page_token = reply.next_page_token
        reply = await _ask(transport, request)
        found.extend(reply.results)
    return SearchResults(
        [_result(each, of[0], reply.version_id) for each in found[:limit]],
        first.num_matching,
        tuple(SearchCount(_NAMES[each.place], each.num_latents, each.not_searched) for each in first.counts),
        (first.num_text_matches, first.num_texts),
        first.building if first.HasField("building") else None,
        tuple(first.notes),
    )


async def _ask(transport: AsyncTransport, request: pb.SearchLatentsRequest) -> pb.SearchLatentsResponse:
    return await transport.unary(transport.stub(LatentsStub).SearchLatents, request)


def _places(places: str | Iterable[str]) -> list[pb.SearchPlace.ValueType]:
    names = [places] if isinstance(places, str) else list(places)
    for name in names:
        if name not in list(SearchPlace):
            raise InvalidInput.of("places", f"{name!r} is no place; use some of {', '.join(SearchPlace)}")
    return [_PLACES[SearchPlace(name)] for name in dict.fromkeys(names)]


def _result(message: pb.SearchResult, crosscoder: str, version_id: str) -> SearchResult:
    return SearchResult(
        latent=LatentStatistics(crosscoder=crosscoder, version_id=version_id, **_decode.latent_fields(message.latent)),
        matches=tuple(_match(each) for each in message.matches),
        num_examples=message.num_examples,
        num_matching=message.num_matching,
        num_firing=message.num_firing,
        num_peaking=message.num_peaking,
    )


def _match(message: pb.SearchMatch) -> SearchMatch:
    return SearchMatch(
        place=_NAMES[message.place],
        before=message.before,
        matched=message.matched,
        behind=message.behind,
        activation=message.activation if message.HasField("activation") else None,
        sequence_id=message.sequence_id if message.HasField("sequence_id") else None,
        token_start=message.token_start,
        token_end=message.token_end,
    )
