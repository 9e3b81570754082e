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
    errors,
    session,
)
from crosscope.app.table_view import Column, Gauge
from crosscope.app.tables import gauged
from crosscope.app.text import count, number, sentence

FRESH_S = 2
"""Seconds for which an answer is kept."""
_ERROR = "words-error"
"""Key of the session state with the error of the last change."""

MEASURES = {
    "detection": "Of an automatic label: how well a model that reads the label tells held-out texts on which the "
    "latent fires from others (balanced accuracy, math §14; half is chance). Behind it the number of texts; the "
    "whisker is the standard error.",
    "fuzzing": "The same for marked tokens: whether they are those that the label is about.",
}
"""Scores of automatic labels that tables show, with help."""

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


def fits(info: CrosscoderInfo, latents: Sequence[int] | np.ndarray) -> list[Column]:
    """How well the automatic labels of latents fit, as a column of a table; none if no such label is shown.

    Each cell has a bar for each measure, with its standard error, its figure, and the number of texts.
    """
    there = {each.latent: each.automatic_label for each in known(info) if each.automatic_label and not each.label}
    scores = [label.scores if (label := there.get(int(latent))) else {} for latent in latents]
    shown = [measure for measure in MEASURES if any(measure in each for each in scores)]
    return [gauged("fit", [_fit(measure, scores) for measure in shown])] if shown else []


def _fit(measure: str, scores: Sequence[Mapping[str, float]]) -> Gauge:
    def cell(each: Mapping[str, float]) -> str:
        num = each.get(f"{measure}_n")
        return number(each.get(measure), 2) + (f" n {count(num)}" if num is not None else "")

    def of(name: str) -> list[float]:
        return [each.get(name, math.nan) for each in scores]

    return Gauge(measure, list(map(cell, scores)), of(measure), of(f"{measure}_se"), help=MEASURES[measure])


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
