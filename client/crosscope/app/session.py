"""What all pages share: the client, the chosen crosscoder, and cached answers about it.

A session keeps the version of a crosscoder that it found first until a person asks for the newer one, so that no page
mixes two versions. Caches are keyed by version id. What every token may read is shared by all viewers. Does not know
widgets and URLs, which belong to the pages.
"""

import json
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import streamlit as st

from crosscope import (
    Client,
    Crosscoder,
    CrosscoderInfo,
    Detector,
    ExampleList,
    InvalidInput,
    JobInfo,
    Latent,
    LatentGroupList,
    LatentMatches,
    Look,
    LookInfo,
    TrainingCurves,
)
from crosscope.app import address, login
from crosscope.app.columns import ATLAS_COLUMNS, complete
from crosscope.app.settings import DEFAULT_ADDRESS
from crosscope_proto.artefacts import LatentPart

CHOSEN = "crosscope-chosen"
"""Key of the session state with the card of the chosen crosscoder, or None."""
PINNED = "crosscope-pinned"
"""Key of the session state with the cards of the crosscoders that this session has opened, by name."""
MOST_CARDS = 9
"""Groups of latents that the overview shows."""


def client() -> Client:
    """The connection of this viewer: each token has one. The address comes from CROSSCOPE_ADDRESS."""
    return clients(login.token())


@st.cache_resource(max_entries=64, show_spinner=False)
def clients(token: str | None) -> Client:
    """The connection of all viewers with a token; None: with the app's own."""
    return Client(os.environ.get("CROSSCOPE_ADDRESS") or DEFAULT_ADDRESS, token)


def crosscoders() -> list[CrosscoderInfo]:
    """Cards of all published crosscoders, newest first, those that cannot be read last.

    Each viewer asks anew, so that whoever lost their token sees no further page.
    """
    return published(login.token())


@st.cache_data(ttl=2, show_spinner=False)
def published(token: str | None) -> list[CrosscoderInfo]:
    """What `crosscoders` answers with a token."""
    return [crosscoder.info for crosscoder in clients(token).crosscoders()]


def crosscoders_with(name: str | None) -> list[CrosscoderInfo]:
    """Cards of all published crosscoders; asks again if the last answer did not have the one called `name`."""
    found = crosscoders()
    if name is None or any(info.name == name for info in found):
        return found
    published.clear()
    return crosscoders()


@st.cache_data(ttl=1, show_spinner=False)
def jobs(limit: int = 50) -> list[JobInfo]:
    """Jobs, newest first."""
    return [job.info for job in client().jobs.list(limit=limit)]


def crosscoder(name: str, version_id: str) -> Crosscoder:
    """The viewer's handle of one version. Every question about a crosscoder goes through it."""
    return crosscoder_as(login.token(), name, version_id)


@st.cache_resource(max_entries=64, show_spinner=False)
def crosscoder_as(token: str | None, name: str, version_id: str) -> Crosscoder:
    """The handle of one version for a token; None: for the app's own."""
    return clients(token).crosscoder(name, version=version_id)


def pin(published: CrosscoderInfo) -> CrosscoderInfo:
    """The card of the version that this session shows: the one found first, whatever is published meanwhile."""
    return st.session_state.setdefault(PINNED, {}).setdefault(published.name, published)


def unpin(name: str) -> None:
    """Forgets the version of a crosscoder, so that the next run shows the newest."""
    st.session_state.setdefault(PINNED, {}).pop(name, None)
    published.clear()


@st.cache_resource(max_entries=4, show_spinner="Reading the atlas …")
def _atlas(name: str, version_id: str) -> tuple[Mapping[str, np.ndarray], tuple[str, ...]]:
    columns = crosscoder(name, version_id).columns(*ATLAS_COLUMNS, only_known=True)
    values = complete(columns.read())
    for each in values.values():
        each.flags.writeable = False
    return values, columns.unknown


def atlas(name: str, version_id: str) -> Mapping[str, np.ndarray]:
    """ATLAS_COLUMNS of all latents, [latent] float32 each, read-only; NaN in those that the server does not know."""
    return _atlas(name, version_id)[0]


def unknown_columns(name: str, version_id: str) -> tuple[str, ...]:
    """Those of ATLAS_COLUMNS that the server does not know, because it is older than the app."""
    return _atlas(name, version_id)[1]


@st.cache_resource(max_entries=64, show_spinner="Asking for these latents …")
def among(name: str, version_id: str, part: str, peak: str) -> np.ndarray | None:
    """[matching] ids of the latents of a part that peak on a token, "" for any; None if both are any."""
    conditions = [(column, "=", value) for column, value in (("part", part), ("top_tokens", peak)) if value]
    if not conditions:
        return None
    found = crosscoder(name, version_id).latents(conditions, limit=None)
    return np.array([latent.id for latent in found], dtype=np.int64)


@st.cache_resource(max_entries=16, show_spinner=False)
def parts(name: str, version_id: str) -> list[str]:
    """The parts of a dictionary; empty if it has none."""
    asked = crosscoder(name, version_id)
    return [part for part in LatentPart if _has_part(asked, part)] if asked.latent(0).part else []


def _has_part(asked: Crosscoder, part: str) -> bool:
    try:
        return asked.latents([("part", "=", part)], limit=1).num_matching > 0
    except InvalidInput:  # the server names the parts that there are instead
        return False


@st.cache_resource(max_entries=16, show_spinner=False)
def detectors(name: str, version_id: str) -> list[Detector]:
    """The latents that best detect planted behaviours."""
    return list(crosscoder(name, version_id).detectors())


@st.cache_resource(max_entries=16, show_spinner="Grouping latents …")
def groups(name: str, version_id: str) -> LatentGroupList:
    """Groups of latents that are specific to chat."""
    return crosscoder(name, version_id).groups(limit=MOST_CARDS)


def comparable(one: CrosscoderInfo, other: CrosscoderInfo) -> bool:
    """Whether two crosscoders are different ones of one layer of one pair, so that their latents can be matched."""
    same = ("base_model", "chat_model", "layer", "d_model")
    return one.name != other.name and all(getattr(one, name) == getattr(other, name) for name in same)


@st.cache_resource(max_entries=8, show_spinner="Matching latents …")
def matches(name: str, version_id: str, other: str, other_version_id: str) -> LatentMatches:
    """The nearest latents of two crosscoders."""
    return crosscoder(name, version_id).match(crosscoder(other, other_version_id))


@st.cache_resource(max_entries=16, show_spinner=False)
def training_curves(name: str, version_id: str) -> TrainingCurves:
    """Figures over training."""
    return crosscoder(name, version_id).training_curves()


@st.cache_resource(max_entries=512, show_spinner=False)
def latent(name: str, version_id: str, latent_id: int) -> Latent:
    """One latent's statistics."""
    return crosscoder(name, version_id).latent(latent_id)


@st.cache_resource(max_entries=128, show_spinner=False)
def examples(
    name: str, version_id: str, latent_id: int, limit: int, group: str | None, dataset: str | None, context: int | None
) -> ExampleList:
    """Examples of one latent."""
    return crosscoder(name, version_id).examples(latent_id, limit=limit, group=group, dataset=dataset, context=context)


@st.cache_data(ttl=2, show_spinner=False)
def looks() -> list[LookInfo]:
    """All looks, newest first, those that cannot be read last."""
    return client().looks()


@st.cache_resource(max_entries=8, show_spinner="Reading the look …")
def look(name: str, created_at: float) -> Look:  # noqa: ARG001
    """One look; a later one of the same name was created at another time."""
    return client().look(name)


def link(page: str, label: str, **params: Any) -> None:
    """Draws a link to a page of the app with parameters in its URL; None leaves one out. `label` is plain text."""
    st.html(address.link(address.href(page, params), label), width="content")


def broken() -> list[CrosscoderInfo]:
    """Cards of the crosscoders that the server cannot read."""
    return [info for info in crosscoders() if info.broken]


def chosen() -> CrosscoderInfo | None:
    """The card of the crosscoder that the page is about; None while nothing is published."""
    return st.session_state.get(CHOSEN)


def nothing_published(title: str) -> None:
    """Draws a page while there is no crosscoder."""
    st.title(title)
    st.markdown("There is no crosscoder yet. The overview shows the jobs that make one.")
    link("overview", "Overview")


def manifest(info: CrosscoderInfo) -> dict[str, Any]:
    """The manifest that was published with a version; empty if the server sent none."""
    return json.loads(info.manifest_json or "{}")


def uselessness_floor(info: CrosscoderInfo) -> float:
    """The largest value of floored columns: -ln of the smallest scale told apart (math §5); inf where unknown."""
    floor = (manifest(info).get("uselessness") or {}).get("floor")
    return -math.log(floor) if isinstance(floor, int | float) and floor > 0 else math.inf


def bos_left_out(info: CrosscoderInfo) -> bool:
    """Whether the token policy kept BOS out of training and analysis."""
    policy = (manifest(info).get("recipe") or {}).get("tokens") or {}
    return bool(policy.get("skip_bos")) or int(policy.get("skip_first") or 0) > 0
