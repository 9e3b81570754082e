"""Matches the latents of two versions, and remembers the last answers.

Knows nothing about protobuf.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from crosscope_server.catalogue import Catalogue, Version
from crosscope_server.errors import InvalidRequest, Overloaded, Violation
from crosscope_server.matching import MIN_COSINE, Dictionary, Side, match
from crosscope_server.rows import decoder_rows

MAX_WORK = 2_000_000_000_000
"""Multiplications of one answer: 20 000 latents against 20 000 of a pair of width 2 304; a minute on two cores."""
KINDS = ("latent_class", "verdict", "specific_to")
"""Columns by which matches are counted."""
MAX_WAITING = 4
"""Matches that run or wait at a time."""
_KEPT = 8

Key = tuple[str, str, str, str]
"""Names and versions of both."""


@dataclass(frozen=True)
class Count:
    """Latents of one kind, and what became of them."""

    column: str
    value: str
    num: int
    num_matched: int
    num_alone: int
    mean_cosine: float


class Matches:
    """Matches versions, one pair of them at a time. For one event loop."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._known: OrderedDict[Key, asyncio.Task[tuple[Side, Side]]] = OrderedDict()
        self._computing = asyncio.Semaphore(1)

    async def match(self, one: Version, other: Version) -> tuple[Side, Side]:
        """The nearest latents in both directions. Raises InvalidRequest or BrokenArtefact."""
        check(one, other)
        key = (one.card.manifest.name, one.version_id, other.card.manifest.name, other.version_id)
        task = self._known.get(key)
        if task is None:
            if sum(not each.done() for each in self._known.values()) >= MAX_WAITING:
                raise Overloaded(
                    f"{MAX_WAITING} matches run or wait, the most at a time; try again", retry_after_s=20.0
                )
            task = self._known[key] = asyncio.create_task(self._match(one, other))
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        try:
            return await asyncio.shield(task)
        except Exception:
            if self._known.get(key) is task:
                del self._known[key]  # somebody may mend its files
            raise

    async def _match(self, one: Version, other: Version) -> tuple[Side, Side]:
        async with self._computing:
            dictionaries = [
                await self._catalogue.read(version, lambda version=version: _dictionary(version))
                for version in (one, other)
            ]
            return await asyncio.to_thread(match, *dictionaries)


def check(one: Version, other: Version) -> None:
    """Raises InvalidRequest for two versions whose latents cannot be compared, or are too many."""
    a, b = one.card.manifest, other.card.manifest
    for what, of_a, of_b in (
        ("base model", a.pair.base, b.pair.base),
        ("chat model", a.pair.chat_model, b.pair.chat_model),
        ("layer", a.layer, b.layer),
        ("widths", a.d_model, b.d_model),
    ):
        if of_a != of_b:
            only = "only crosscoders of one layer of one pair can be matched"
            raise _refused(f"the {what} of {a.name} is {of_a}, that of {b.name} is {of_b}; {only}")
    if (a.reads == "difference") != (b.reads == "difference") and a.d_model[0] != a.d_model[1]:
        raise _refused(f"{a.name} or {b.name} is a dictionary of differences, and the widths {a.d_model} differ")
    num_a, num_b = (int(np.count_nonzero(_living(version))) for version in (one, other))
    if not num_a or not num_b:
        raise _refused(f"{a.name} has {num_a} and {b.name} {num_b} living latents; both need at least one")
    if (work := num_a * num_b * sum(a.d_model)) > MAX_WORK:
        command = f"python -m crosscope_worker.analysis.stability crosscoders/{a.name} crosscoders/{b.name}"
        raise _refused(
            f"{num_a} and {num_b} living latents of width {sum(a.d_model)} are {work:.1e} multiplications, more than "
            f"{MAX_WORK:.0e}; run {command} in the home folder, on a GPU with --device cuda"
        )


def counts(version: Version, side: Side) -> Iterator[Count]:
    """The counts of all living latents, then of each kind that there is."""
    yield _count("", "", side, np.ones(len(side.latents), bool))
    for column in KINDS:
        values, names = version.table.column(column)[side.latents], version.table.categories(column)
        for number in [*range(1, len(names)), 0]:  # the undefined ones last
            if (chosen := values == number).any():
                yield _count(column, names[number], side, chosen)


def _count(column: str, value: str, side: Side, chosen: np.ndarray) -> Count:
    cosines = side.cosines[chosen]
    matched, alone = (int(np.count_nonzero(each)) for each in (side.matched[chosen], cosines < MIN_COSINE))
    mean = float(cosines.mean(dtype=np.float64)) if len(cosines) else float("nan")
    return Count(column, value, len(cosines), matched, alone, mean)


def _dictionary(version: Version) -> Dictionary:
    manifest = version.card.manifest
    rows = decoder_rows(version.card.tables, manifest.num_latents, sum(manifest.d_model))
    return Dictionary(rows, manifest.d_model, _living(version), manifest.reads == "difference", manifest.input_scale)


def _living(version: Version) -> np.ndarray:
    return version.table.column("num_active") > 0


def _refused(sentence: str) -> InvalidRequest:
    return InvalidRequest([Violation("other", sentence)])
