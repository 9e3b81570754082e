"""Converts searches to and from the messages of SearchLatents. Knows nothing about calls."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from crosscope_proto.v1 import latents_pb2
from crosscope_server.annotations.snapshot import Snapshot
from crosscope_server.errors import InvalidRequest, Violation
from crosscope_server.latents import Order
from crosscope_server.pages import Key, PageToken
from crosscope_server.search.finding import Found, Place, Words
from crosscope_server.search.indices import Opened
from crosscope_server.search.pattern import Pattern
from crosscope_server.search.snippets import Snippet

if TYPE_CHECKING:
    from crosscope_server.search.searches import Answer

_DEFAULT_RESULTS = 20
_NO_EXAMPLES = "the first page of this search was made before the index of the examples was there; search again"


@dataclass(frozen=True)
class After:
    """Where a search goes on."""

    latent: int
    """The last one of the page before."""
    count: int
    """How many came before, for the case that this latent is found no more."""
    with_examples: bool

    @classmethod
    def of(cls, token: PageToken) -> "After":
        """The place that a token names. Raises InvalidRequest."""
        match token.after:
            case [int(latent), int(count), int(with_examples)] if count >= 0:
                return cls(latent, count, bool(with_examples))
            case _:
                raise InvalidRequest([Violation("page_token", "not a token of a search")])


@dataclass(frozen=True)
class Page:
    """The latents of a page."""

    ids: list[int]
    num_matching: int
    after: Key | None
    """What the token of the next page holds; None on the last page."""


def pattern(request: latents_pb2.SearchLatentsRequest) -> Pattern:
    """What is searched for. Raises InvalidRequest."""
    found = Pattern(request.text, request.is_regex, request.match_case)
    found.check()
    return found


def places(request: latents_pb2.SearchLatentsRequest) -> tuple[Place, ...]:
    """Where to look, in the order of Place."""
    return tuple(sorted(map(Place, request.places))) or tuple(Place)


def words(snapshot: Snapshot) -> Words:
    """What people say, as a search reads it."""
    return {Place.LABEL: snapshot.labels, Place.NOTE: snapshot.notes}


def page(
    answer: "Answer",
    keep: NDArray[np.bool_],
    order: Order | None,
    request: latents_pb2.SearchLatentsRequest,
    at: After | None,
) -> Page:
    """The page behind `at` of the latents that were found and are kept: [latent]; in an order, else best ones first."""
    found = answer.found.order
    ids = found[keep[found]] if order is None else order.ids[np.isin(order.ids, found[keep[found]])]
    start = 0
    if at is not None:
        there = np.flatnonzero(ids == at.latent)
        start = int(there[0]) + 1 if len(there) else at.count
    size = request.page_size if request.HasField("page_size") else _DEFAULT_RESULTS
    chosen = ids[start : start + size].tolist()
    is_last = start + size >= len(ids)
    after: Key | None = None if is_last else [chosen[-1], start + size, int(answer.opened.index is not None)]
    return Page(chosen, len(ids), after)


def counts(answer: "Answer", asked: Sequence[Place], keep: NDArray[np.bool_]) -> list[latents_pb2.SearchCount]:
    """What was found in each place that was asked for, and what was not searched."""
    masks = answer.found.masks
    return [
        latents_pb2.SearchCount(
            place=int(place),  # pyright: ignore[reportArgumentType]
            num_latents=int(np.count_nonzero(masks[place] & keep)) if place in masks else 0,
            not_searched=_not_searched(place, answer.found, answer.opened),
        )
        for place in asked
    ]


def _not_searched(place: Place, found: Found, opened: Opened) -> str:
    if place != Place.EXAMPLE:
        return ""
    if found.examples is not None:
        return found.examples.not_searched
    if opened.building is not None:
        return f"their index is being built, {opened.building:.0%} is done; search again"
    return opened.why_not or _NO_EXAMPLES


def results(
    answer: "Answer", latents: Sequence[latents_pb2.Latent], found: Sequence[Sequence[Snippet]]
) -> list[latents_pb2.SearchResult]:
    """A message for each latent of a page and its snippets."""
    examples = answer.found.examples
    messages = [
        latents_pb2.SearchResult(latent=latent, matches=[_match(each) for each in snippets])
        for latent, snippets in zip(latents, found, strict=True)
    ]
    if examples is not None:
        for message in messages:
            latent = message.latent.id
            message.num_examples = int(examples.num_examples[latent])
            message.num_matching = int(examples.num_matching[latent])
            message.num_firing = int(examples.num_firing[latent])
            message.num_peaking = int(examples.num_peaking[latent])
    return messages


def _match(snippet: Snippet) -> latents_pb2.SearchMatch:
    return latents_pb2.SearchMatch(
        place=int(snippet.place),  # pyright: ignore[reportArgumentType]
        before=snippet.before,
        matched=snippet.matched,
        behind=snippet.behind,
        activation=snippet.activation,
        sequence_id=snippet.sequence,
        token_start=snippet.token_start,
        token_end=snippet.token_end,
    )
