"""What people say about latents, as pages read it and change it.

Words change at any time, so answers are kept for a moment only; a change by this app shows at once.
"""

from collections.abc import Callable, Sequence

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
from crosscope.app import session
from crosscope.app.text import sentence

FRESH_S = 2
"""Seconds for which an answer is kept."""
_ERROR = "words-error"
"""Key of the session state with the error of the last change."""

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
        session.show_error(error, part="words")
