"""The best single-latent detector of each tagged behaviour.

A behaviour is scored at two places: its decision token (the last token of the assistant's header) and its own tokens.
An occurrence scores a latent's activation at the decision token, or its largest activation within the span. An
assistant message without the behaviour scores the activation at its decision token, or the largest one in its whole
content. A token that the token policy left out counts as zero. Only data sets with a tagged text take part, and of
equal texts only one.

Knows nothing about models.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crosscope_proto.column import arrow_schema
from crosscope_proto.columns import BEHAVIOUR_COLUMNS
from crosscope_proto.roles import TokenRole
from crosscope_worker.analysis.store import Segments, Store, ranges

if TYPE_CHECKING:
    from crosscope_worker.data.texts import Text

Ints = NDArray[np.int64]
PLACES = ("decision", "within")


@dataclass(frozen=True)
class Spans:
    """Token spans to score; arrays are [span]. A decision is a span of one token."""

    text: Ints
    start: Ints
    end: Ints


@dataclass(frozen=True)
class Scores:
    """The latents that fire in spans: [entry] arrays, at most one entry a latent and span."""

    latent: Ints
    span: Ints
    value: NDArray[np.float64]


@dataclass(frozen=True)
class Detector:
    """A latent that says yes above a threshold, and how well it separates."""

    latent: int
    threshold: float
    recall: float
    false_rate: float


@dataclass
class _Tags:
    """Assistant messages and tagged occurrences of all texts."""

    turns: list[tuple[int, int, int]]
    """(text, start, end) of the content."""
    names: list[set[str]]
    """The behaviours that are tagged in each message."""
    occurrences: list[tuple[str, int, int, int, int]]
    """(name, text, decision, start, end)."""


def behaviour_table(store: Store, segments: Segments) -> pa.Table:
    """The table of BEHAVIOUR_COLUMNS, sorted by (behaviour, place); empty where nothing is tagged."""
    tags = _read_tags(store.texts)
    rows: list[dict[str, Any]] = []
    if tags.occurrences:
        turns = np.array(tags.turns, dtype=np.int64).reshape(-1, 3)
        found = np.array([occurrence[1:] for occurrence in tags.occurrences], dtype=np.int64)
        for place in PLACES:
            if place == "decision":
                negative = Spans(turns[:, 0], turns[:, 1] - 1, turns[:, 1])
                positive = Spans(found[:, 0], found[:, 1], found[:, 1] + 1)
            else:
                negative = Spans(turns[:, 0], turns[:, 1], turns[:, 2])
                positive = Spans(found[:, 0], found[:, 2], found[:, 3])
            rows += _rows(tags, place, span_scores(store, segments, positive), span_scores(store, segments, negative))
    rows.sort(key=lambda row: (row["behaviour"], row["place"]))
    return pa.Table.from_pylist(rows, schema=arrow_schema(BEHAVIOUR_COLUMNS))


def _rows(tags: _Tags, place: str, positive: Scores, negative: Scores) -> Iterator[dict[str, Any]]:
    names = np.array([occurrence[0] for occurrence in tags.occurrences])
    for name in sorted(set(names.tolist())):
        has = names == name
        without = np.array([name not in each for each in tags.names], dtype=bool)
        yes, no = has[positive.span], without[negative.span]
        num_positive, num_negative = int(has.sum()), int(without.sum())
        detector = best_detector(
            np.concatenate([positive.latent[yes], negative.latent[no]]),
            np.concatenate([positive.value[yes], negative.value[no]]),
            np.repeat([True, False], [int(yes.sum()), int(no.sum())]),
            num_positive,
            num_negative,
        )
        if detector is not None:
            counts = {"num_positive": num_positive, "num_negative": num_negative}
            yield {"behaviour": name, "place": place, **vars(detector), **counts}


def best_detector(
    latent: Ints, value: NDArray[np.float64], is_positive: NDArray[np.bool_], num_positive: int, num_negative: int
) -> Detector | None:
    """The latent and threshold with the largest Youden's J = recall - false rate; None if no latent ever fires.

    Arrays are [entry], the non-zero scores; spans without an entry score zero. The threshold lies half-way between the
    smallest score that says yes and the latent's next smaller score (zero if there is none). Ties go to the smaller
    latent id, then to the higher threshold. Without a negative span the false rate is 0.
    """
    if len(latent) == 0:
        return None
    order = np.lexsort((-value, latent))
    latent, value, is_positive = latent[order], value[order], is_positive[order]
    first = np.concatenate([[True], latent[1:] != latent[:-1]])
    begins = np.flatnonzero(first)
    group = np.cumsum(first) - 1

    def share(hits: NDArray[np.bool_], of: int) -> NDArray[np.float64]:
        running = np.cumsum(hits)
        before = running[begins] - hits[begins]
        return (running - before[group]) / max(of, 1)

    recall, false_rate = share(is_positive, num_positive), share(~is_positive, num_negative)
    same_latent = np.concatenate([latent[1:] == latent[:-1], [False]])
    next_value = np.where(same_latent, np.concatenate([value[1:], [0.0]]), 0.0)
    youden = np.where(next_value < value, recall - false_rate, -np.inf)
    best = int(np.argmax(youden))
    threshold = (value[best] + next_value[best]) / 2
    return Detector(int(latent[best]), float(threshold), float(recall[best]), float(false_rate[best]))


def span_scores(store: Store, segments: Segments, spans: Spans, segments_at_once: int = 1 << 20) -> Scores:
    """Each latent's largest activation in each span in which it fires; spans may overlap."""
    order = np.argsort(spans.text, kind="stable")
    per_text = np.bincount(spans.text, minlength=len(store.texts))
    first_span = np.cumsum(per_text) - per_text
    relevant = np.flatnonzero((per_text > 0)[segments.text])
    parts: list[tuple[Ints, Ints, NDArray[np.float64]]] = []
    for begin in range(0, len(relevant), segments_at_once):
        chosen = relevant[begin : begin + segments_at_once]
        text, length = segments.text[chosen].astype(np.int64), segments.length[chosen].astype(np.int64)
        entries = store.entries(segments.start[chosen], length)
        entry_text, entry_latent = np.repeat(text, length), np.repeat(segments.latent[chosen].astype(np.int64), length)
        spread = per_text[entry_text]
        span = order[ranges(first_span[entry_text], spread)]
        position = np.repeat(entries["position"].astype(np.int64), spread)
        inside = (spans.start[span] <= position) & (position < spans.end[span])
        latent, span = np.repeat(entry_latent, spread)[inside], span[inside]
        value = np.repeat(entries["value"].astype(np.float64), spread)[inside]
        parts.append(_largest(latent, span, value))
    if not parts:
        return Scores(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
    return Scores(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _largest(latent: Ints, span: Ints, value: NDArray[np.float64]) -> tuple[Ints, Ints, NDArray[np.float64]]:
    """The largest value of each (latent, span), ordered by both."""
    if len(latent) == 0:
        return latent, span, value
    order = np.lexsort((span, latent))
    latent, span, value = latent[order], span[order], value[order]
    begins = np.flatnonzero(np.concatenate([[True], (latent[1:] != latent[:-1]) | (span[1:] != span[:-1])]))
    return latent[begins], span[begins], np.maximum.reduceat(value, begins)


def _read_tags(texts: "Sequence[Text]") -> _Tags:
    tagged = {text.dataset for text in texts if text.behaviours}
    tags = _Tags([], [], [])
    for number, text in enumerate(texts):
        if text.dataset not in tagged:
            continue
        for start, end in assistant_turns(np.asarray(text.roles)):
            tags.turns.append((number, start, end))
            overlapping = (each for each in text.behaviours if each.decision == start - 1 or start <= each.start < end)
            tags.names.append({each.name for each in overlapping})
        tags.occurrences += [(each.name, number, each.decision, each.start, each.end) for each in text.behaviours]
    return tags


def assistant_turns(roles: NDArray[np.uint8]) -> list[tuple[int, int]]:
    """(start, end) of each run of assistant content."""
    inside = np.concatenate([[False], roles == TokenRole.ASSISTANT, [False]]).astype(np.int8)
    edges = np.diff(inside)
    return list(zip(np.flatnonzero(edges == 1).tolist(), np.flatnonzero(edges == -1).tolist(), strict=True))
