"""Labels: everything that people said about the latents of a crosscoder; lists; import and export."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import streamlit as st

from crosscope import Annotation, AnnotationExport, CrosscoderInfo, ImportReport
from crosscope._annotation_files import parse, text_of
from crosscope._annotations import moment
from crosscope._export import MOST_EXPORTED
from crosscope.app import address, session, tables, text, url, words
from crosscope.app.selection import BY_FIT, OF_LIST, SAID
from crosscope.app.table_view import Column, table_view

MAX_ROWS = 500
_REPORT = "labels-report"
"""Key of the session state with the report of the last import."""
_SHOWN_SKIPPED = 20


def page() -> None:
    """Draws the page."""
    chosen = session.chosen()
    if chosen is None:
        session.nothing_published("Labels")
        return
    st.title("Labels")
    words.show_error()
    found = words.found(chosen.name, chosen.version_id)
    for note in found.notes:
        st.info(text.sentence(note))
    sizes = (found.num_labelled, found.num_starred, found.num_noted)
    kinds = ("labelled", "starred", "with a note")
    counts = " · ".join(f"{text.count(size)} {kind}" for size, kind in zip(sizes, kinds, strict=True))
    st.caption(f"{counts}. They belong to the weights of {text.plain(chosen.name)}, in every version of them.")
    with st.container(key="wrap-labels"):
        left, right = st.columns([3, 1], gap="large")
    with left:
        listing(chosen, found)
    with right:
        lists(chosen)
        transfer(chosen)


def listing(info: CrosscoderInfo, found: Sequence[Annotation]) -> None:
    """Latents with words, behind a search; a row opens its latent, from which J and K walk the same set."""
    row = st.container(horizontal=True, vertical_alignment="bottom")
    wanted = url.text(row, "Search labels and notes", "text", width=280)
    said = url.choice(row, "Words", ["", *SAID], "", "said", lambda each: each or "any", width=160)
    names = [each.name for each in words.lists(info.name, info.version_id)]
    in_list = url.choice(row, "List", ["", *names], "", "list", lambda name: name or "any", width=200)
    shown = [each for each in found if meets(each, wanted, said, in_list)]
    order = order_of(in_list)
    shown.sort(key=lambda each: place(each, order, in_list))
    if not shown:
        st.markdown(
            "No latent meets these conditions." if found else "Nothing was said yet. A latent's page takes a label."
        )
        return
    some = shown[:MAX_ROWS]
    about: dict[str, Any] = {"said": said, "list": in_list, "order": order}
    links = [address.href("latent", {"crosscoder": info.name, "latent": each.latent, **about}) for each in some]
    table_view("labels", "Latents with words", columns(info, some, order), links, max_height=640)
    cut = f"The first {MAX_ROWS} of {text.count(len(shown))}; an export holds all. " if len(shown) > MAX_ROWS else ""
    st.caption(f"{cut}A row opens its latent; J and K go on from there.")
    save(info, [each.latent for each in shown], in_list)


def order_of(in_list: str) -> str:
    """The order of the URL: by how well labels fit, else that of the chosen list, else by id."""
    return url.option_of(BY_FIT, OF_LIST if in_list else "id", "order")


def place(each: Annotation, order: str, in_list: str) -> tuple[float, int]:
    """What orders latents, smallest first: those without a score last, equal ones by id."""
    if order not in BY_FIT:
        return (each.lists[in_list] if order == OF_LIST else 0, each.latent)
    scores = each.automatic_label.scores if each.automatic_label else {}
    value = scores.get(order.removeprefix("-"), math.nan)
    return (math.inf if math.isnan(value) else -value if order.startswith("-") else value, each.latent)


def save(info: CrosscoderInfo, latents: Sequence[int], name: str) -> None:
    """A button that saves the shown latents with their examples as one file, which is made when it is clicked."""
    some = latents[:MOST_EXPORTED]
    title = f"{info.name}: {name or 'latents with words'}"
    st.download_button(
        f"Save these {text.count(len(some))} as HTML",
        lambda: session.crosscoder(info.name, info.version_id).html(some, title=title),
        f"{info.name}-{name or 'words'}.html",
        "text/html",
        key="save-list",
        on_click="ignore",
        help=f"One file with figures and examples. It opens without a server. At most {text.count(MOST_EXPORTED)}.",
    )


def meets(each: Annotation, wanted: str, said: str, in_list: str) -> bool:
    """Whether the words about a latent meet the conditions of the page."""
    texts = [part.text for part in (each.label, each.automatic_label, each.note) if part]
    has = {"labelled": bool(each.text), "starred": each.star is not None, "noted": each.note is not None}
    return (
        (not wanted or any(wanted.casefold() in part.casefold() for part in texts))
        and (not said or has[said])
        and (not in_list or in_list in each.lists)
    )


def columns(info: CrosscoderInfo, some: Sequence[Annotation], order: str) -> list[Column]:
    """The words of latents as columns; a head of a score orders the table by it, that of the ids as it was before."""
    said = [[each.label, each.automatic_label, each.note, each.star] for each in some]
    last = [max((part for part in parts if part), key=lambda part: part.written_at, default=None) for parts in said]
    ids = [str(each.latent) for each in some]
    back = address.here({"order": None}) if order in BY_FIT else ""
    return [
        Column("latent", ids, order=back),
        Column("name", words.cells(info, [each.latent for each in some]), tables.NAME_HELP, is_text=True),
        *words.fits(info, [each.latent for each in some], partial(words.order_by_fit, order)),
        Column("note", [each.note.text.replace("\n", " ") if each.note else "" for each in some], is_text=True),
        Column("lists", [", ".join(each.lists) for each in some], is_text=True),
        Column("by", [part.author if part else "" for part in last], "Who said the last of it.", is_text=True),
        Column("when", [moment(part.written_at) if part else "" for part in last], is_text=True),
    ]


def lists(info: CrosscoderInfo) -> None:
    """The lists, each with a link to its latents; the chosen one can be renamed and deleted."""
    st.header("Lists")
    there = words.lists(info.name, info.version_id)
    if there:
        rows = [
            Column("list", [each.name for each in there], is_text=True),
            Column("latents", [text.count(each.num_latents) for each in there]),
        ]
        links = [address.here({"list": each.name}) for each in there]
        table_view("lists", "Lists", rows, links, max_height=260)
    key = "new-list"

    def create() -> None:
        if name := st.session_state[key].strip():
            words.change(info, lambda said: said.create_list(name))
            st.session_state[key] = ""

    st.text_input("New list", key=key, max_chars=100, placeholder="Its name", on_change=create)
    if (name := st.query_params.get("list", "")) in [each.name for each in there]:
        chosen_list(name, info)


def chosen_list(name: str, info: CrosscoderInfo) -> None:
    """The controls of the chosen list."""
    key = f"rename-{name}"

    def rename() -> None:
        new = st.session_state[key].strip()
        words.change(info, lambda said: said.rename_list(name, new))
        url.keep("list", new)

    def delete() -> None:
        words.change(info, lambda said: said.delete_list(name))
        url.keep("list", None)

    with st.popover(f"Change {text.plain(name)}"):
        st.text_input("Name of the list", name, key=key, max_chars=100, on_change=rename)
        st.button("Delete the list", on_click=delete, help="Its latents keep all other words.")


def transfer(info: CrosscoderInfo) -> None:
    """Export and import."""
    st.header("Export and import")
    row = st.container(horizontal=True)
    for ending, mime in (("json", "application/json"), ("csv", "text/csv")):
        file = Path(f"{info.name}-labels.{ending}")
        row.download_button(
            ending.upper(),
            lambda file=file: text_of(
                file, session.crosscoder(info.name, info.version_id).annotations.export(), info.name
            ),
            file_name=file.name,
            mime=mime,
            on_click="ignore",
        )
    given = st.file_uploader("A file to import", ["json", "csv"])
    if given is None:
        st.session_state.pop(_REPORT, None)
        return
    replace = st.toggle("Write over words that differ", help="Off: what people said stays, and the row is skipped.")
    any_weights = st.toggle("Take words about other weights", help="Of another training, for instance.")
    rows = parse(Path(given.name), given.getvalue())
    how = {"replace": replace, "any_weights": any_weights}

    def write(*, dry_run: bool) -> None:
        st.session_state.pop(_REPORT, None)

        def keep(said: Any) -> None:
            st.session_state[_REPORT] = said.import_(rows, dry_run=dry_run, **how)

        words.change(info, keep)

    buttons = st.container(horizontal=True)
    buttons.button("Count what would change", on_click=write, kwargs={"dry_run": True})
    buttons.button("Import", type="primary", on_click=write, kwargs={"dry_run": False})
    if (report := st.session_state.get(_REPORT)) is not None:
        show_report(report)


def exported(info: CrosscoderInfo) -> AnnotationExport:
    """All words, as they are now."""
    return session.crosscoder(info.name, info.version_id).annotations.export()


def show_report(report: ImportReport) -> None:
    """What an import changed or would change, and what it skipped."""
    first, *rest = str(report).splitlines()
    st.markdown(text.plain(first))
    if rest:
        more = [f"… {len(rest) - _SHOWN_SKIPPED} more"] if len(rest) > _SHOWN_SKIPPED else []
        st.markdown("\n".join(f"- {text.plain(line)}" for line in [*rest[:_SHOWN_SKIPPED], *more]))
