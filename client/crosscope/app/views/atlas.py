"""Atlas: every latent as a point, filters, and the chosen ones as a table."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from crosscope import CrosscoderInfo
from crosscope.app import (
    address,
    errors,
    panels,
    session,
    tables,
    text,
    url,
    words,
)
from crosscope.app.columns import (
    AXES,
    CLASS_OF_NUMBER,
    LABELS,
    SPECIFIC_OF_NUMBER,
    VERDICT_OF_NUMBER,
    is_defined,
)
from crosscope.app.palette import CLASS_NAMES, VERDICT_NAMES
from crosscope.app.scatter_view import Points, axis_title, scatter_view
from crosscope.app.selection import (
    BY_FIT,
    DEFAULT_X,
    MAX_IDS,
    OF_LIST,
    ORDERS,
    PARAMS,
    RANGES,
    SAID,
    VERDICT,
    Selection,
    default_order,
)
from crosscope.app.table_view import table_view
from crosscope_proto.labels import SCORES

ROWS = 50
"""Rows of the table on a page."""
CHART = "atlas-chart"
FILTERS_OPEN = "atlas-filters-open"


def page() -> None:
    """Draws the page."""
    chosen = session.chosen()
    if chosen is None:
        session.nothing_published("Atlas")
        return
    st.title("Atlas")
    columns = session.atlas(chosen.name, chosen.version_id)
    selection, among = current(chosen, columns)
    # Opened for the filters of the URL, it stays open when the last one is taken away.
    if not set(st.query_params).isdisjoint(PARAMS):
        st.session_state[FILTERS_OPEN] = True
    is_open = st.session_state.get(FILTERS_OPEN, False)
    if box := panels.folded("Filters and axes", "atlas-filters", opened=is_open):
        with box, st.container(key="wrap-controls"):
            controls(selection, chosen, columns)
    with st.container(key="wrap-atlas"):
        left, right = st.columns([5, 6], gap="medium")
    with left:
        plot(chosen, columns, selection, among)
    with right:
        listing(chosen, columns, selection, among)


def current(info: CrosscoderInfo, columns: Mapping[str, np.ndarray]) -> tuple[Selection, np.ndarray | None]:
    """The selection of the URL, and the ids that the server found for it (`among` of `Selection.mask`)."""
    params = {name: st.query_params.get_all(name) for name in PARAMS}
    selection = Selection.from_params(params, default_order(columns))
    if selection.part and selection.part not in session.parts(info.name, info.version_id):
        selection = replace(selection, part="")
    among = session.among(info.name, info.version_id, selection.part, selection.peak)
    if conditions := selection.words():
        said = words.among(info.name, info.version_id, conditions)
        among = said if among is None else said[np.isin(said, among)]
    return selection, among


def ordering(info: CrosscoderInfo, columns: Mapping[str, np.ndarray], selection: Selection) -> Mapping[str, np.ndarray]:
    """The columns that `Selection.ids` needs: those of the atlas, and how well labels fit where that is the order."""
    return {**columns, **words.scores(info)} if selection.order in BY_FIT else columns


def shade(columns: Mapping[str, np.ndarray]) -> str:
    """The column that colours the points where the URL names none."""
    return "rel_norm" if is_defined(columns, "rel_norm") else default_order(columns).removeprefix("-")


def controls(selection: Selection, info: CrosscoderInfo, columns: Mapping[str, np.ndarray]) -> None:
    """Draws filters, order and axes, whose values the URL holds."""
    by_default = default_order(columns)
    kinds()
    server_filters(info)
    half = len(RANGES) // 2
    for container, (name, whole) in zip([*st.columns(half), *st.columns(half)], RANGES.items(), strict=True):
        title, help_ = axis_title(whole.column), AXES[whole.column].meaning
        url.slider(container, title, (whole.low, whole.high), whole.step, selection.bound(name), name, help=help_)
    axes = st.columns(4)
    names = list(AXES)
    url.choice(axes[0], "Across", names, DEFAULT_X, "x", axis_name, help=AXES[selection.x].meaning)
    url.choice(axes[1], "Up", names, by_default.removeprefix("-"), "y", axis_name, help=AXES[selection.y].meaning)
    by_fit = BY_FIT if selection.order in BY_FIT or words.has_scores(info) else ()
    orders = [*([OF_LIST] if selection.in_list else []), *ORDERS, *by_fit]
    url.choice(axes[2], "Colour", names, shade(columns), "colour", axis_name, help="What the colour stands for.")
    order_help = "The order of the table, and of previous and next on a latent's page. A click on a head sets it too."
    url.choice(axes[3], "Order", orders, by_default, "order", order_name, help=order_help)


def kinds() -> None:
    """Draws the filters by class, by verdict and by the model that a latent is specific to."""
    with st.container(horizontal=True):
        help_ = "By relative norm or β ratio alone; the verdict says more. None chosen: all."
        url.several("Class", CLASS_OF_NUMBER[1:], "classes", CLASS_NAMES.__getitem__, help=help_)
        help_ = "What the measurements say of the class. None chosen: all."
        url.several("Verdict", VERDICT_OF_NUMBER[1:], "verdict", VERDICT_NAMES.__getitem__, help=help_)
        help_ = "By its measurements, whatever its class. Each: each model lacks the other's row. None chosen: all."
        url.several("Specific to", SPECIFIC_OF_NUMBER[1:], "specific", str, help=help_)


def server_filters(info: CrosscoderInfo) -> None:
    """Draws the filters that the server answers: part of the dictionary, a token at the peaks, what people say."""
    row = st.container(horizontal=True)
    if parts := session.parts(info.name, info.version_id):
        help_ = "Part of the dictionary, as training set it apart."
        url.choice(row, "Part", ["", *parts], "", "part", lambda part: part or "all", help=help_, width=180)
    help_ = "A token at the peaks of its strongest examples, blanks around it not counted."
    url.text(row, "Peaks on the token", "peak", help=help_, width=220)
    url.text(row, "Ids", "ids", help=f"Only these latents, at most {MAX_IDS}: 7, 20, 21.", width=160)
    word_filters(row, info)


def word_filters(row: DeltaGenerator, info: CrosscoderInfo) -> None:
    """Draws the filters by what people say."""
    url.text(row, "Label contains", "label", help="Upper and lower case alike.", width=220)
    url.choice(row, "Words", ["", *SAID], "", "said", lambda said: said or "any", width=160)
    with errors.shown_errors(part="lists"):
        names = [each.name for each in words.lists(info.name, info.version_id)]
        if names or "list" in st.query_params:
            url.choice(row, "List", ["", *names], "", "list", lambda name: name or "any", width=200)


def axis_name(column: str) -> str:
    """The name of a column as people read it."""
    return f"fit of the label ({column})" if column in SCORES else LABELS[column]


def order_name(order: str) -> str:
    """The name of an order as people read it."""
    if order in ("id", OF_LIST):
        return "by id" if order == "id" else "in the order of the list"
    if order.removeprefix("-") == VERDICT:
        return f"verdict, {'worst' if order.startswith('-') else 'best'} first"
    return f"{axis_name(order.removeprefix('-'))}, {'highest' if order.startswith('-') else 'lowest'} first"


def plot(
    info: CrosscoderInfo,
    columns: Mapping[str, np.ndarray],
    selection: Selection,
    among: np.ndarray | None,
) -> None:
    """The scatter plot. A box or lasso becomes the URL's area; a click opens a latent."""
    colour = url.option_of(list(AXES), shade(columns), "colour")
    keep = selection.mask(columns, among)
    said = words.known(info)
    labels = {each.latent: each.text for each in said if each.text}
    starred = [each.latent for each in said if each.star]
    floor, num_kept = session.uselessness_floor(info), int(keep.sum())
    version = f"{info.name} {info.version_id}"
    axes = (selection.x, selection.y, colour)
    points = Points(version, keep, *axes, selection.area, floor, labels=labels, starred=starred)
    scatter_view(
        CHART,
        f"Scatter plot of {text.count(num_kept)} latents: {axis_title(selection.x)} across, "
        f"{axis_title(selection.y)} up. Arrow keys go from point to point, Enter opens one. The table lists them.",
        columns,
        points,
        href=address.href("latent", {"crosscoder": info.name, "latent": "PLACE", **kept()}),
        area_href=address.here({"area": "AREA", url.PAGE: None}),
    )
    notes = [f"{text.count(num_kept)} of {text.count(len(keep))} latents."]
    if hidden := int((keep & ~points.placed(columns)).sum()):
        notes.append(f"{text.count(hidden)} have no value on these axes and are not drawn.")
    for name in dict.fromkeys(each for each in (selection.x, selection.y, colour) if AXES[each].is_floored):
        if at_floor := int((columns[name][keep] >= floor - 1e-3).sum()):
            shown = text.number(floor)
            notes.append(f"{text.count(at_floor)} lie at {shown} in {axis_name(name)}, which reads ≥ {shown}.")
    notes.append("Chat-specific latents lie on top. A click opens a latent; dragging draws a box or a lasso.")
    if said:
        notes.append("Labelled latents have a ring, starred ones are stars.")
    notes += said.missing
    st.caption(" ".join(notes))


def kept() -> dict[str, list[str]]:
    """The parameters of the set and the order, for links to a latent's page."""
    return {name: st.query_params.get_all(name) for name in PARAMS}


def ordered_by(selection: Selection, column: str, by_default: str) -> tuple[str, str]:
    """The link that orders by a column, largest first and then smallest first, and the present direction."""
    now = {f"-{column}": "descending", column: "ascending"}.get(selection.order, "")
    first, second = (column, f"-{column}") if column == VERDICT else (f"-{column}", column)
    order = second if selection.order == first else first
    return address.here({"order": None if order == by_default else order, url.PAGE: None}), now


def listing(
    info: CrosscoderInfo, columns: Mapping[str, np.ndarray], selection: Selection, among: np.ndarray | None
) -> None:
    """The chosen latents as a table, and as CSV."""
    by = ordering(info, columns, selection)
    ids = selection.ids(by, among)
    row = st.container(horizontal=True, vertical_alignment="center")
    row.markdown(f"**{text.count(len(ids))} latents** · {order_name(selection.order)}")
    if selection.area:
        row.button("Clear the area", on_click=url.keep, args=("area", None))
    row.download_button(
        "CSV",
        lambda: tables.csv(ids, columns, words.known(info)),
        file_name=f"{info.name}-{info.version_id}-latents.csv",
        mime="text/csv",
        on_click="ignore",
    )
    if not len(ids):
        lacking = [axis_name(name) for name in selection.limited() if not is_defined(columns, name)]
        why = f"No latent of {info.name} has a {' or '.join(lacking)}, so none" if lacking else "No latent"
        st.markdown(f"{why} meets these conditions. Widen a filter or clear the area.")
        return
    undefined(by, ids, selection.order.removeprefix("-"))
    at = min(url.page(), (len(ids) - 1) // ROWS)
    shown = ids[at * ROWS : (at + 1) * ROWS]
    order = partial(ordered_by, selection, by_default=default_order(columns))
    rows = tables.of_latents(
        shown,
        columns,
        tables.beside(selection.order.removeprefix("-"), columns),
        floor=session.uselessness_floor(info),
        names_of_latents=words.cells(info, shown),
        more=words.fits(info, shown, order),
        order=order,
    )
    links = [address.href("latent", {"crosscoder": info.name, "latent": latent, **kept()}) for latent in shown.tolist()]
    table_view("atlas-table", "Latents", rows, links)
    pages(at, len(ids))
    glossary()


def pages(at: int, total: int) -> None:
    """Draws which rows of all are shown, and the way to the others."""
    last = (total - 1) // ROWS
    row = st.container(horizontal=True, vertical_alignment="center")
    first, end = at * ROWS + 1, min(total, (at + 1) * ROWS)
    row.caption(f"{text.count(first)} to {text.count(end)} of {text.count(total)}. A head orders all of them.")
    if last:
        for label, to in (("First", 0), ("Earlier", at - 1), ("Later", at + 1), ("Last", last)):
            is_there = 0 <= to <= last and to != at
            row.button(label, on_click=url.keep, args=(url.PAGE, str(to + 1)), disabled=not is_there)


def undefined(columns: Mapping[str, np.ndarray], ids: np.ndarray, by: str) -> None:
    """Says how many latents have no value of the order; if none has one, names columns that they have."""
    missing = 0 if by in ("id", OF_LIST) else int((~np.isfinite(columns[by][ids])).sum())
    if missing == len(ids):
        have = ", ".join(axis.label for name, axis in AXES.items() if np.isfinite(columns[name][ids]).any())
        st.info(f"None of these latents has a {axis_name(by)}, so they are listed by id. They have {have}.")
    elif missing:
        st.caption(f"{text.count(missing)} of {text.count(len(ids))} have no {axis_name(by)}; they come last.")


def glossary() -> None:
    """Draws the meanings of the columns, behind a button."""
    with st.popover("What the columns say"):
        st.markdown("\n".join(f"- **{axis.short}**, {axis.label}: {axis.meaning}" for axis in AXES.values()))
