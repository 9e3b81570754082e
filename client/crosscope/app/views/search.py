"""Search: latents by a text or a regular expression, each with the place where it was found."""

from functools import partial

import streamlit as st

from crosscope import CrosscoderInfo, SearchPlace, SearchResults
from crosscope._search import SEARCH_HEADERS, search_rows
from crosscope.app import (
    address,
    errors,
    session,
    tables,
    text,
    url,
    words,
)
from crosscope.app.columns import CLASS_OF_NUMBER
from crosscope.app.palette import CLASS_NAMES
from crosscope.app.selection import BY_FIT
from crosscope.app.table_view import Column, table_view

LIMITS = (20, 50, 200)
PLACES = {
    SearchPlace.LABEL: "labels",
    SearchPlace.PEAK: "peaks",
    SearchPlace.LOGIT_BASE: "raised in base",
    SearchPlace.LOGIT_CHAT: "raised in chat",
    SearchPlace.EXAMPLE: "examples",
    SearchPlace.NOTE: "notes",
}
_HELP = {
    "in": "Where the text was found.",
    "activation": "The latent's activation on the match, of its own largest; – where it is silent on the match.",
    "match": "The match in brackets, with what stands around it.",
}


def page() -> None:
    """Draws the page."""
    chosen = session.chosen()
    if chosen is None:
        session.nothing_published("Search")
        return
    st.title("Search")
    row = st.container(horizontal=True, vertical_alignment="bottom")
    wanted = url.text(row, "Text", "text", width=360, max_chars=500, placeholder="refus")
    regex = url.toggle(row, "Regular expression", "regex")
    match_case = url.toggle(row, "Match case", "case")
    limit = url.choice(row, "Rows", LIMITS, LIMITS[0], "rows", width=100)
    places = url.several("Look only in", list(PLACES), "in", lambda name: PLACES[SearchPlace(name)])
    classes = url.several("Class", CLASS_OF_NUMBER[1:], "classes", lambda name: CLASS_NAMES[name])
    if not wanted:
        st.markdown("Latents whose activation lies on the text come first. A text is found within words too.")
        return
    order = url.option_of(("", *BY_FIT), "", "order")
    if order:
        st.button("Best matches first", on_click=url.keep, args=("order", None))
    with errors.shown_errors(wanted):
        results(chosen, wanted, tuple(places), tuple(classes), regex, match_case, order, limit)


def results(
    info: CrosscoderInfo,
    wanted: str,
    places: tuple[str, ...],
    classes: tuple[str, ...],
    regex: bool,
    match_case: bool,
    order: str,
    limit: int,
) -> None:
    """What was found, and what was not searched."""
    found = _found(info, wanted, places, classes, regex, match_case, order, limit)
    if found.building is not None:
        st.progress(found.building, "The index of the examples is being built; they are not searched yet.")
        st.button("Search again")
    for count in found.counts:
        if count.not_searched and found.building is None:
            st.warning(f"Not searched in {PLACES[count.place]}: {text.plain(count.not_searched)}")
    for note in found.notes:
        st.info(text.sentence(note))
    counts = " · ".join(f"{PLACES[each.place]} {text.count(each.num_latents)}" for each in found.counts)
    texts = f"{text.count(found.num_text_matches)} matches in {text.count(found.num_texts)} texts"
    st.caption(f"{text.count(found.num_matching)} latents: {counts}. {texts}.")
    if not found:
        st.markdown("No latent was found.")
        return
    rows = [(each, row) for each in found for row in search_rows(each)]
    cells: dict[str, list[str]] = {head: [row[i] for _, row in rows] for i, head in enumerate(SEARCH_HEADERS)}
    where = [PLACES[SearchPlace(place)] for place in cells["in"]]
    fits = words.fits(info, [each.latent.id for each, _ in rows], partial(words.order_by_fit, order))
    if order and not fits:
        st.caption("No label of these latents has a score, so they come by id.")
    columns = [
        Column("latent", [str(each.latent.id) for each, _ in rows]),
        Column("name", cells["name"], tables.NAME_HELP, is_text=True, is_narrow=True),
        Column("in", where, _HELP["in"], is_text=True),
        Column("match", cells["match"], _HELP["match"], is_text=True),
        Column("activation", cells["activation"], _HELP["activation"]),
        *(fits or [Column("class", cells["class"], is_text=True)]),
    ]
    links = [address.href("latent", {"crosscoder": info.name, "latent": each.latent.id}) for each, _ in rows]
    table_view("search", "Latents found", columns, links, max_height=640)
    if found.num_matching > len(found):
        st.caption(f"The first {len(found)} of {text.count(found.num_matching)}.")


def _found(
    info: CrosscoderInfo,
    wanted: str,
    places: tuple[str, ...],
    classes: tuple[str, ...],
    regex: bool,
    match_case: bool,
    order: str,
    limit: int,
) -> SearchResults:
    crosscoder = session.crosscoder(info.name, info.version_id)
    # A condition names one class; those that were not chosen are excluded one by one.
    excluded = [("latent_class", "!=", name) for name in CLASS_OF_NUMBER[1:] if classes and name not in classes]
    how = {"regex": regex, "match_case": match_case, "order_by": order, "limit": limit, "wait_s": 0.0}
    return crosscoder.search(wanted, places, excluded, **how)
