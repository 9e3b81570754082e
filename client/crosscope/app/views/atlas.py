"""Atlas: every latent as a point, filters, and the chosen ones as a table."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import streamlit as st

from crosscope import CrosscoderInfo
from crosscope.app import address, charts, panels, session, tables, url, words
from crosscope.app.columns import AXES, CLASS_OF_NUMBER, evidence, is_defined
from crosscope.app.palette import CLASS_NAMES
from crosscope.app.selection import (
    DEFAULT_X,
    FREQUENCY_RANGE,
    NU_LIMIT,
    OF_LIST,
    PARAMS,
    SAID,
    Selection,
    default_order,
    polygon_text,
)
from crosscope.app.table_view import table_view

MAX_ROWS = 500
CHART = "atlas-chart"
FILTERS_OPEN = "atlas-filters-open"
ORDERS = [f"{sign}{name}" for name in AXES for sign in ("-", "")]
_CHART_CONFIG: dict[str, Any] = {
    "displaylogo": False,
    "displayModeBar": True,
    "scrollZoom": True,
    "modeBarButtonsToRemove": ["autoScale2d", "toImage", "zoom2d", "zoomIn2d", "zoomOut2d"],
}


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
    with st.expander("Filters and axes", expanded=is_open), st.container(key="wrap-controls"):
        colour = controls(selection, chosen, columns)
    if "rel" in st.query_params:
        st.button("Show every relative norm again", on_click=url.keep, args=("rel", None))
    with st.container(key="wrap-atlas"):
        left, right = st.columns(2, gap="medium")
    with left:
        plot(chosen, columns, selection, among, colour)
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


def controls(selection: Selection, info: CrosscoderInfo, columns: Mapping[str, np.ndarray]) -> str:
    """Draws filters, order and axes, whose values the URL holds. Returns the column of the colour."""
    by_default = default_order(columns)
    url.several(
        "Class",
        CLASS_OF_NUMBER[1:],
        "classes",
        CLASS_NAMES.__getitem__,
        help="By relative norm alone. None chosen: all.",
    )
    server_filters(session.parts(info.name, info.version_id))
    word_filters(info)
    filters = st.columns(4)
    frequency = selection.frequency
    help_ = AXES["frequency"].meaning
    url.slider(filters[0], charts.axis_title("frequency"), FREQUENCY_RANGE, 0.1, frequency, "freq", help=help_)
    limits = (
        ("nu_err", NU_LIMIT, selection.nu_err, "nu_err"),
        ("nu_rec", NU_LIMIT, selection.nu_rec, "nu_rec"),
        ("template_share", 1.0, selection.template, "template"),
    )
    for container, (name, end, value, param) in zip(filters[1:], limits, strict=True):
        axis = AXES[name]
        url.slider(container, f"{axis.label} at most", (0.0, end), 0.05, value, param, help=axis.meaning)
    axes = st.columns(4)
    names = list(AXES)
    url.choice(axes[0], "Across", names, DEFAULT_X, "x", axis_name, help=AXES[selection.x].meaning)
    url.choice(axes[1], "Up", names, by_default.removeprefix("-"), "y", axis_name, help=AXES[selection.y].meaning)
    shade = "rel_norm" if is_defined(columns, "rel_norm") else by_default.removeprefix("-")
    orders = [*([OF_LIST] if selection.in_list else []), *ORDERS]
    colour = url.choice(axes[2], "Colour", names, shade, "colour", axis_name, help="What the colour stands for.")
    order_help = "The order of the table, and of previous and next on a latent's page. A click on a head sets it too."
    url.choice(axes[3], "Order", orders, by_default, "order", order_name, help=order_help)
    return colour


def server_filters(parts: Sequence[str]) -> None:
    """Draws the filters that the server answers: part of the dictionary, and a token at the peaks."""
    row = st.container(horizontal=True)
    if parts:
        help_ = "Part of the dictionary, as training set it apart."
        url.choice(row, "Part", ["", *parts], "", "part", lambda part: part or "all", help=help_, width=180)
    help_ = "A token at the peaks of its strongest examples, blanks around it not counted."
    url.text(row, "Peaks on the token", "peak", help=help_, width=240)


def word_filters(info: CrosscoderInfo) -> None:
    """Draws the filters by what people say."""
    row = st.container(horizontal=True)
    url.text(row, "Label contains", "label", help="Upper and lower case alike.", width=240)
    url.choice(row, "Words", ["", *SAID], "", "said", lambda said: said or "any", width=160)
    with session.shown_errors(part="lists"):
        names = [each.name for each in words.lists(info.name, info.version_id)]
        if names or "list" in st.query_params:
            url.choice(row, "List", ["", *names], "", "list", lambda name: name or "any", width=200)


def axis_name(column: str) -> str:
    """The name of a column as people read it."""
    return AXES[column].label


def order_name(order: str) -> str:
    """The name of an order as people read it."""
    if order in ("id", OF_LIST):
        return "by id" if order == "id" else "in the order of the list"
    return f"{AXES[order.removeprefix('-')].label}, {'highest' if order.startswith('-') else 'lowest'} first"


def plot(
    info: CrosscoderInfo,
    columns: Mapping[str, np.ndarray],
    selection: Selection,
    among: np.ndarray | None,
    colour: str,
) -> None:
    """The scatter plot. A box or lasso becomes the URL's area; a click opens a latent."""
    keep = selection.mask(columns, among)
    floor = session.uselessness_floor(info)
    said = words.known(info)
    labels = {each.latent: each.text for each in said if each.text}
    starred = [each.latent for each in said if each.star]
    axes = (selection.x, selection.y, colour)
    figure = charts.scatter(columns, keep, *axes, selection.area, floor, labels=labels, starred=starred)
    panels.plot(
        figure,
        CHART,
        f"Scatter plot of {int(keep.sum())} latents: {charts.axis_title(selection.x)} across, "
        f"{charts.axis_title(selection.y)} up. The table beside it lists them.",
        zooms=True,
        on_select=take_selection,
        selection_mode=("points", "box", "lasso"),
        config=_CHART_CONFIG,
    )
    hidden = int(keep.sum()) - len(figure.data[0].customdata)  # pyright: ignore[reportAttributeAccessIssue]
    notes = [f"{int(keep.sum()):,} of {len(keep):,} latents."]
    if hidden:
        notes.append(f"{hidden:,} have no value on these axes and are not drawn.")
    for name in [each for each in {selection.x, selection.y, colour} if AXES[each].is_floored]:
        at_floor = int((columns[name][keep] >= floor - 1e-3).sum())
        if at_floor:
            notes.append(f"{at_floor:,} lie at {floor:.2f} in {axis_name(name)}, which reads ≥ {floor:.2f}.")
    notes.append("A click opens a latent; dragging draws a box, and a lasso is in the chart's bar.")
    if said:
        notes.append("Labelled latents have a ring, starred ones are stars.")
    notes += said.missing
    st.caption(" ".join(notes))
    address.clicks(CHART, "latent", {"crosscoder": info.name, "latent": "PLACE", **kept()})


def take_selection() -> None:
    """Writes the area that was selected in the chart into the URL."""
    chosen = st.session_state[CHART]["selection"]
    outlines = [*chosen["box"], *chosen["lasso"]]
    if outlines:
        xs, ys = outlines[0]["x"], outlines[0]["y"]
        corners = list(zip(xs, ys, strict=True))
        if chosen["box"]:
            corners = [(xs[0], ys[0]), (xs[1], ys[0]), (xs[1], ys[1]), (xs[0], ys[1])]
        url.keep("area", polygon_text(corners))


def kept() -> dict[str, list[str]]:
    """The parameters of the set and the order, for links to a latent's page."""
    return {name: st.query_params.get_all(name) for name in PARAMS}


def ordered_by(selection: Selection, column: str, by_default: str) -> tuple[str, str]:
    """The link that orders by a column, largest first and then smallest first, and the present direction."""
    now = {f"-{column}": "descending", column: "ascending"}.get(selection.order, "")
    order = column if now == "descending" else f"-{column}"
    return address.here({"order": None if order == by_default else order}), now


def listing(
    info: CrosscoderInfo, columns: Mapping[str, np.ndarray], selection: Selection, among: np.ndarray | None
) -> None:
    """The chosen latents as a table, and as CSV."""
    ids = selection.ids(columns, among)
    row = st.container(horizontal=True, vertical_alignment="center")
    row.markdown(f"**{len(ids):,} latents** · {order_name(selection.order)}")
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
    undefined(columns, ids, selection.order.removeprefix("-"))
    shown = ids[:MAX_ROWS]
    rows = tables.of_latents(
        shown,
        columns,
        (*evidence(columns), "frequency", "template_share"),
        floor=session.uselessness_floor(info),
        names_of_latents=words.cells(info, shown),
        order=lambda column: ordered_by(selection, column, default_order(columns)),
    )
    links = [address.href("latent", {"crosscoder": info.name, "latent": latent, **kept()}) for latent in shown.tolist()]
    table_view("atlas-table", "Latents", rows, links)
    cut = f"The first {MAX_ROWS} in this order; the CSV holds all. " if len(ids) > MAX_ROWS else ""
    st.caption(f"{cut}A row opens its latent; a head orders all {len(ids):,} by its column.")
    glossary()


def undefined(columns: Mapping[str, np.ndarray], ids: np.ndarray, by: str) -> None:
    """Says how many latents have no value of the order; if none has one, names columns that they have."""
    missing = 0 if by in ("id", OF_LIST) else int((~np.isfinite(columns[by][ids])).sum())
    if missing == len(ids):
        have = ", ".join(axis.label for name, axis in AXES.items() if np.isfinite(columns[name][ids]).any())
        st.info(f"None of these latents has a {axis_name(by)}, so they are listed by id. They have {have}.")
    elif missing:
        st.caption(f"{missing:,} of {len(ids):,} have no {axis_name(by)}; they come last.")


def glossary() -> None:
    """Draws the meanings of the columns, behind a button."""
    with st.popover("What the columns say"):
        st.markdown("\n".join(f"- **{axis.short}**, {axis.label}: {axis.meaning}" for axis in AXES.values()))
