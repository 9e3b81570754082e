"""What people say about latents, as pages read it and change it.

Words change at any time, so answers are kept for a moment only; a change by this app shows at once.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import streamlit as st

from crosscope import (
    Annotation,
    AnnotationList,
    Annotations,
    CrosscoderInfo,
    CrosscopeError,
    LatentName,
    NamedList,
    ServerError,
)
from crosscope.app import (
    address,
    errors,
    session,
)
from crosscope.app.table_view import Column, Gauge
from crosscope.app.tables import gauged
from crosscope.app.text import count, number, sentence
from crosscope_proto.labels import SCORES

FRESH_S = 2
"""Seconds for which an answer is kept."""
_ERROR = "words-error"
"""Key of the session state with the error of the last change."""

IN_BRACKETS = "In brackets: of a label in whose place a person's stands."
MEASURES = {
    "detection": "Of an automatic label: how well a model that reads the label tells held-out texts on which the "
    "latent fires from others (balanced accuracy, math §14; half is chance). Behind it the number of texts; the "
    f"whisker is the standard error. {IN_BRACKETS}",
    "fuzzing": f"The same for marked tokens: whether they are those that the label is about. {IN_BRACKETS}",
}
"""Scores of automatic labels (SCORES) that tables show, with help."""

Conditions = tuple[tuple[str, str, float | str], ...]


@st.cache_resource(ttl=FRESH_S, max_entries=16, show_spinner=False)
def found(name: str, version_id: str) -> AnnotationList:
    """All latents that have words, by id."""
    return session.crosscoder(name, version_id).annotations.all()


@st.cache_resource(ttl=FRESH_S, max_entries=64, show_spinner=False)
def of_latent(name: str, version_id: str, latent: int) -> Annotation:
    """All words about one latent."""
    return session.crosscoder(name, version_id).annotations.get(latent)


@st.cache_resource(ttl=FRESH_S, max_entries=16, show_spinner=False)
def lists(name: str, version_id: str) -> list[NamedList]:
    """All lists, by name."""
    return session.crosscoder(name, version_id).annotations.lists()


@st.cache_resource(ttl=FRESH_S, max_entries=64, show_spinner=False)
def _names(name: str, version_id: str, latents: tuple[int, ...]) -> dict[int, LatentName]:
    return session.crosscoder(name, version_id).annotations.names(latents)


@st.cache_resource(ttl=FRESH_S, max_entries=32, show_spinner=False)
def among(name: str, version_id: str, conditions: Conditions) -> np.ndarray:
    """[matching] ids of the latents that meet conditions on words; in the order of the list, if one is about a list."""
    order_by = "list" if any(column == "list" for column, _, _ in conditions) else ""
    latents = session.crosscoder(name, version_id).latents(list(conditions), order_by, limit=None)
    return np.array([latent.id for latent in latents], dtype=np.int64)


def scores(info: CrosscoderInfo) -> dict[str, np.ndarray]:
    """How well automatic labels fit: [latent] float64 for each of SCORES, NaN without a score, as the server has it.

    An automatic label keeps its scores when a person's stands in its place.
    """
    found = {name: np.full(info.num_latents, math.nan) for name in SCORES}
    for each in known(info):
        for name, values in found.items():
            if each.automatic_label and each.latent < info.num_latents:
                values[each.latent] = each.automatic_label.scores.get(name, math.nan)
    return found


def has_scores(info: CrosscoderInfo) -> bool:
    """Whether any automatic label has a score."""
    return any(_scores(each) for each in known(info))


def fits(
    info: CrosscoderInfo,
    latents: Sequence[int] | np.ndarray,
    order: Callable[[str], tuple[str, str]] = lambda _: ("", ""),
) -> list[Column]:
    """How well the automatic labels of latents fit, as a column of a table; none if none of them has a score.

    Each cell has a bar for each measure, with its standard error, its figure, and the number of texts. `order` gives
    the link of a measure's head and the direction of the table's present order by it.
    """
    there = {each.latent: each for each in known(info) if each.automatic_label}
    rows = [there.get(int(latent)) for latent in latents]
    shown = [name for name in MEASURES if any(name in _scores(each) for each in rows)]
    return [gauged("fit", [_fit(name, rows, *order(name)) for name in shown])] if shown else []


def order_by_fit(order: str, measure: str) -> tuple[str, str]:
    """The link of a head that orders by a measure, best first and then worst first, and its direction in an order."""
    now = {f"-{measure}": "descending", measure: "ascending"}.get(order, "")
    return address.here({"order": measure if now == "descending" else f"-{measure}"}), now


def _scores(each: Annotation | None) -> Mapping[str, float]:
    return each.automatic_label.scores if each and each.automatic_label else {}


def _fit(measure: str, rows: Sequence[Annotation | None], link: str, direction: str) -> Gauge:
    def cell(each: Annotation | None) -> str:
        scores = _scores(each)
        num = scores.get(f"{measure}_n")
        said = number(scores.get(measure), 2) + (f" n {count(num)}" if num is not None else "")
        return f"({said})" if each and each.label and measure in scores else said

    def of(name: str) -> list[float]:
        return [_scores(each).get(name, math.nan) for each in rows]

    errors, help_ = of(f"{measure}_se"), MEASURES[measure]
    return Gauge(measure, list(map(cell, rows)), of(measure), errors, help=help_, order=link, ordered=direction)


class Known(list[Annotation]):
    """All latents that have words, as far as the server can say."""

    missing: tuple[str, ...] = ()
    """Why words are missing, as sentences in Markdown."""


def known(info: CrosscoderInfo) -> Known:
    """All latents that have words, for pages that go on without them."""
    try:
        return Known(found(info.name, info.version_id))
    except CrosscopeError as error:
        nothing = Known()
        nothing.missing = (f"Labels and stars are missing: {sentence(str(error))}",)
        return nothing


def cells(info: CrosscoderInfo, latents: Sequence[int] | np.ndarray) -> list[str]:
    """What latents are called, as cells of a table; empty ones where an old server cannot say."""
    if not len(latents):
        return []
    try:
        called = _names(info.name, info.version_id, tuple(int(latent) for latent in latents))
    except ServerError:
        return [""] * len(latents)
    return [shown(called[int(latent)]) for latent in latents]


def shown(name: LatentName) -> str:
    """What a latent is called, with its star."""
    return f"{'★ ' if name.is_starred else ''}{name}"


def change(info: CrosscoderInfo, write: Callable[[Annotations], object]) -> None:
    """Changes words. For callbacks: the next run shows an error where `show_error` is called."""
    st.session_state.pop(_ERROR, None)
    try:
        write(session.crosscoder(info.name, info.version_id).annotations)
    except CrosscopeError as error:
        st.session_state[_ERROR] = error
    for cached in (found, of_latent, lists, _names, among, session.groups):
        cached.clear()


def show_error() -> None:
    """Shows why the last change failed, if it did."""
    if (error := st.session_state.pop(_ERROR, None)) is not None:
        errors.show_error(error, part="words")
