"""Latent: one latent's evidence, its statistics, and the texts on which it fires."""

from collections.abc import Sequence

import numpy as np
import streamlit as st

from crosscope import CrosscoderInfo, Latent
from crosscope.app import (
    beside,
    latent_examples,
    latent_figures,
    panels,
    provenance,
    session,
    text,
    trial,
    url,
    word_panel,
)
from crosscope.app.selection import Selection
from crosscope.app.views.atlas import current, order_name, ordering


def page() -> None:
    """Draws the page."""
    chosen = session.chosen()
    if chosen is None:
        session.nothing_published("Latent")
        return
    columns = session.atlas(chosen.name, chosen.version_id)
    selection, among = current(chosen, columns)
    ids = selection.ids(ordering(chosen, columns, selection), among)
    latent_id = wanted(ids, chosen.num_latents)
    header(latent_id, ids, chosen, selection)
    if latent_id is None:
        return
    url.fill_in(latent=str(latent_id))
    latent = session.latent(chosen.name, chosen.version_id, latent_id)
    panels.evidence(latent, session.uselessness_floor(chosen))
    word_panel.panel(latent, chosen)
    with st.container(horizontal=True, vertical_alignment="center"):
        session.link("steer", "Steer with this latent", crosscoder=chosen.name, steer=f"{latent_id} add 1")
        export(latent, chosen)
    tried, shown = st.container(), [latent]
    if (second := beside.wanted(chosen.num_latents)) is None:
        alone(latent, chosen, near(ids, latent_id))
    else:
        other = session.latent(chosen.name, chosen.version_id, second)
        shown += [other] if second != latent_id else []
        beside.draw(latent, other, chosen)
    with tried:  # last, because it may wait for a worker
        trial.box(shown, chosen)


def near(ids: np.ndarray, latent_id: int) -> list[int]:
    """The latents before and after one in an order, if there are any."""
    found = np.flatnonzero(ids == latent_id)
    return [each for each in neighbours_in(ids, int(found[0]) if len(found) else None) if each is not None]


def alone(latent: Latent, info: CrosscoderInfo, ahead: Sequence[int]) -> None:
    """One latent: its figures at the left, where it fires at the right. The latents `ahead` are read already."""
    with st.container(key="wrap-latent"):
        left, right = st.columns([2, 3], gap="large")
    with left:
        latent_figures.statistics(latent, info)
        provenance.panel(info)
    with right:
        latent_figures.histogram(latent, info)
        latent_examples.examples(latent, info, ahead)


def export(latent: Latent, info: CrosscoderInfo) -> None:
    """A button that saves the latent and its examples as one file. The file is made when it is clicked."""
    st.download_button(
        "Save as HTML",
        lambda: session.crosscoder(info.name, info.version_id).html([latent.id]),
        f"{info.name}-latent-{latent.id}.html",
        "text/html",
        key=f"export-{latent.id}",
        on_click="ignore",
        help="One file with its figures and examples. It opens without a server and loads nothing.",
    )


def wanted(ids: np.ndarray, num_latents: int) -> int | None:
    """The latent that the URL names, else the first of the order; None if the URL names one that does not exist."""
    text = st.query_params.get("latent")
    if text is None:
        return int(ids[0]) if len(ids) else 0
    return int(text) if text.isdecimal() and int(text) < num_latents else None


def header(latent_id: int | None, ids: np.ndarray, info: CrosscoderInfo, selection: Selection) -> None:
    """Title, previous and next in the chosen order, and a field to go to any latent."""
    if latent_id is None:
        st.title("No such latent")
        st.error(
            f"{text.plain(st.query_params['latent'])} is no latent of {info.name}, whose latents are numbered 0 to "
            f"{info.num_latents - 1}. Choose another below."
        )
    else:
        st.title(f"Latent {latent_id}")
    found = np.flatnonzero(ids == latent_id)
    at = int(found[0]) if len(found) else None
    row = st.container(horizontal=True, vertical_alignment="bottom", gap="small")
    before, after = neighbours_in(ids, at)
    row.button("Previous", shortcut="k", disabled=before is None, on_click=show, args=(before,))
    row.button("Next", shortcut="j", disabled=after is None, on_click=show, args=(after,))
    row.number_input(
        "Go to latent",
        0,
        info.num_latents - 1,
        latent_id or 0,
        key=f"goto-{latent_id}",
        width=130,
        on_change=lambda: show(st.session_state[f"goto-{latent_id}"]),
    )
    if latent_id is not None:
        beside.choice(row, latent_id, info)
    where = (
        f"{text.count(at + 1)} of {text.count(len(ids))}"
        if at is not None
        else f"not among the {text.count(len(ids))} chosen"
    )
    st.caption(f"{where} · {order_name(selection.order)}")


def neighbours_in(ids: np.ndarray, at: int | None) -> tuple[int | None, int | None]:
    """The latents before and after a position; from outside the set (None), next is its first."""
    if at is None:
        return None, int(ids[0]) if len(ids) else None
    return (int(ids[at - 1]) if at > 0 else None), (int(ids[at + 1]) if at + 1 < len(ids) else None)


def show(latent_id: int | None) -> None:
    """Goes to another latent and starts its examples from the top."""
    url.write({"latent": str(latent_id), "n": None, "token": None, "whole": None})
