"""Encodes two sets of prompts and scores every latent on every prompt, for a contrast of the sets.

Knows nothing about the statistics of a contrast, workers or the cache.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crosscope_proto.roles import TEMPLATE_ROLES, LeftOut
from crosscope_server.catalogue import Catalogue
from crosscope_server.contrast import NUM_FOLDS, Contrast, Scores, contrast
from crosscope_server.encodings import Encoding, Prompt
from crosscope_server.errors import CallError, InvalidRequest, Overloaded, VersionGone, Violation
from crosscope_server.prompts import Prompts, check_prompt
from crosscope_server.streams import in_order

SETS = ("first", "second")
PLACES = ("decision", "within")
MAX_AT_ONCE = 4
"""Contrasts that run or wait at a time: each holds the codes of up to 1 000 prompts, some 100 MB."""

Row = tuple[NDArray[np.uint32], NDArray[np.float32]]
"""Latents, each once, and their scores."""


@dataclass(frozen=True)
class Place:
    """The contrast at one place of the prompts."""

    name: str
    contrast: Contrast
    num_without_token: int
    """Prompts without a token that is scored here."""


@dataclass(frozen=True)
class Contrasted:
    """A contrast of two sets."""

    places: list[Place]
    num_first: int
    num_second: int
    num_repeats: int
    version_id: str


@dataclass(frozen=True)
class _Scored:
    """One prompt, encoded and scored."""

    member: tuple[int, int]
    """Its set and its index there."""
    ids: tuple[int, ...]
    rows: tuple[Row | None, ...]
    """A row a place; None where it has no token to score."""


class PromptSets:
    """Contrasts sets of prompts. For one event loop."""

    def __init__(self, prompts: Prompts, catalogue: Catalogue, in_flight: int) -> None:
        """`in_flight` prompts of a contrast are encoded at a time."""
        self._prompts = prompts
        self._catalogue = catalogue
        self._in_flight = in_flight
        self._computing = asyncio.Semaphore(1)
        self._num_running = 0

    async def contrast(
        self,
        crosscoder: str,
        wanted: str | None,
        sets: tuple[Sequence[Prompt], Sequence[Prompt]],
        limit: int,
        seed: int,
        timeout_s: float | None,
    ) -> Contrasted:
        """Which latents tell the first set from the second, in the wanted version or the current.

        Raises CallError; that of a single prompt names its set and its index.
        """
        members = [(which, index, prompt) for which in (0, 1) for index, prompt in enumerate(sets[which])]
        for which, index, prompt in members:
            try:
                check_prompt(prompt)
            except CallError as error:
                raise _placed(error, which, index) from error
        version_id = self._catalogue.resolve(crosscoder, wanted)
        if self._num_running >= MAX_AT_ONCE:
            raise Overloaded(f"{MAX_AT_ONCE} contrasts run, the most at a time; try again", retry_after_s=5.0)
        self._num_running += 1
        try:
            return await self._contrast(crosscoder, version_id, members, limit, seed, timeout_s)
        finally:
            self._num_running -= 1

    async def _contrast(
        self,
        crosscoder: str,
        version_id: str,
        members: Sequence[tuple[int, int, Prompt]],
        limit: int,
        seed: int,
        timeout_s: float | None,
    ) -> Contrasted:
        loop = asyncio.get_running_loop()
        ends_at = None if timeout_s is None else loop.time() + timeout_s

        async def one(member: tuple[int, int, Prompt]) -> _Scored:
            which, index, prompt = member
            left_s = None if ends_at is None else max(0.001, ends_at - loop.time())
            try:
                encoded = await self._prompts.encode(crosscoder, version_id, prompt, left_s, is_bulk=True)
            except VersionGone:
                raise
            except CallError as error:
                raise _placed(error, which, index) from error
            ids = tuple(encoded.encoding.tokens.ids)
            return _Scored((which, index), ids, tuple(score(encoded.encoding, place) for place in PLACES))

        scored = [each async for each in in_order(_source(members), one, self._in_flight)]
        kept, num_repeats = _different(scored)
        is_first = np.array([each.member[0] == 0 for each in kept])
        async with self._computing:  # one at a time: each takes all cores and up to some 100 MB
            places = await asyncio.to_thread(_places, kept, is_first, limit, seed)
        return Contrasted(places, int(is_first.sum()), int((~is_first).sum()), num_repeats, version_id)


def score(encoding: Encoding, place: str) -> Row | None:
    """The scores of the latents that fire at a place of a prompt; None if the prompt has no token to score there."""
    tokens = encoding.tokens
    kept = np.ones(len(tokens.ids), bool)
    if tokens.left_out:
        kept = np.asarray(tokens.left_out) == LeftOut.KEPT
    if place == "decision":
        kept[:-1] = False
    else:
        kept &= ~np.isin(np.asarray(tokens.roles), list(TEMPLATE_ROLES))
    if not kept.any():
        return None
    inside = np.repeat(kept, np.diff(encoding.row_starts.astype(np.int64)))
    latents, which = np.unique(encoding.latents[inside], return_inverse=True)
    largest = np.zeros(len(latents), np.float32)
    np.maximum.at(largest, which, encoding.activations[inside])
    return latents, largest


def _places(scored: Sequence[_Scored], is_first: NDArray[np.bool_], limit: int, seed: int) -> list[Place]:
    silent: Row = (np.empty(0, np.uint32), np.empty(0, np.float32))
    places: list[Place] = []
    for index, name in enumerate(PLACES):
        rows = [each.rows[index] for each in scored]
        scores = Scores.of([silent if row is None else row for row in rows])
        places.append(Place(name, contrast(scores, is_first, limit, seed), sum(row is None for row in rows)))
    return places


def _different(scored: Sequence[_Scored]) -> tuple[list[_Scored], int]:
    """The prompts without those that a set has already, and how many these are.

    Raises InvalidRequest for a prompt that both sets have, and for a set with too few different prompts.
    """
    known: dict[tuple[int, ...], _Scored] = {}
    for each in scored:
        other = known.setdefault(each.ids, each)
        if other.member[0] != each.member[0]:
            places = [_place(*member) for member in (other.member, each.member)]
            sentence = (
                f"has the same tokens as {places[0]}; a prompt that is in both sets tells nothing, so take it out"
            )
            raise InvalidRequest([Violation(places[1], sentence)])
    for which, name in enumerate(SETS):
        num = sum(each.member[0] == which for each in known.values())
        if num < NUM_FOLDS:
            sentence = f"has {num} different prompts; give at least {NUM_FOLDS}"
            raise InvalidRequest([Violation(name, sentence)])
    return list(known.values()), len(scored) - len(known)


def _place(which: int, index: int) -> str:
    return f"{SETS[which]}[{index}]"


def _placed(error: CallError, which: int, index: int) -> CallError:
    """The same error, which names the prompt."""
    place = _place(which, index)
    if isinstance(error, InvalidRequest):
        violations = [
            Violation(place + violation.field.removeprefix("prompt"), violation.sentence)
            for violation in error.violations
        ]
        return InvalidRequest(violations, f"{place}: {error.sentence}")
    return type(error)(f"{place}: {error.sentence}", retry_after_s=error.retry_after_s)


async def _source(members: Sequence[tuple[int, int, Prompt]]) -> AsyncIterator[tuple[int, int, Prompt]]:
    for member in members:
        yield member
