"""The words about a latent on its page: label, star, note, lists and history, changed in place."""

import streamlit as st

from crosscope import Annotation, CrosscoderInfo, Latent, Words
from crosscope._annotations import HISTORY_HEADERS
from crosscope.app import (
    errors,
    session,
    text,
    words,
)
from crosscope.app.table_view import Column, table_view

FIT_HELP = (
    "How well the label fits, as another request to the model judged it: on texts that were not shown (detection), and "
    "on right and wrong marks in them (fuzzing). Balanced accuracy ± standard error; 0.5 is guessing."
)
MAX_NOTE = 400
"""Characters of a note that stand on the page; its field has the whole."""


def panel(latent: Latent, info: CrosscoderInfo) -> None:
    """Draws them. Errors are shown here, so that a page goes on without words."""
    with errors.shown_errors(part="words"), st.container(key="words"):
        words.show_error()
        found = words.of_latent(info.name, info.version_id, latent.id)
        row = st.container(horizontal=True, vertical_alignment="bottom", gap="small")
        with row:
            star(found, info)
            label(found, latent, info)
            with st.popover("Note and lists"):
                note(found, info)
                lists(found, info)
                history(found, info)
        if found.automatic_label:
            automatic_label(found.automatic_label, is_shown=not found.label)
        if found.note:
            shown = found.note.text
            st.markdown(text.plain(shown if len(shown) <= MAX_NOTE else f"{shown[:MAX_NOTE]}…"))
        if found.lists:
            with st.container(horizontal=True):
                for name in found.lists:
                    walk = {"latent": latent.id, "list": name, "order": "list"}
                    session.link("latent", f"List {name}", crosscoder=info.name, **walk)


def automatic_label(words: Words, *, is_shown: bool) -> None:
    """Who wrote it, and how well it fits; the label itself where a person's stands in its place."""
    said = f"Written by {words.author or 'a program'}" if is_shown else f"{words.author or 'A program'}: {words.text}"
    st.caption(text.plain(", ".join(filter(None, (said, words.fit))) + "."), help=FIT_HELP if words.fit else None)


def star(found: Annotation, info: CrosscoderInfo) -> None:
    """A button that sets the star or takes it."""
    is_starred = found.star is not None
    help_ = f"Starred by {found.star.author or 'somebody'}" if found.star else "Give it a star"
    write = (lambda said: said.star(found.latent, not is_starred),)
    st.button("★" if is_starred else "☆", key="star", help=help_, on_click=words.change, args=(info, *write))


def label(found: Annotation, latent: Latent, info: CrosscoderInfo) -> None:
    """The label, to edit in place. A change by somebody else meanwhile is shown, and nothing is written over."""
    revision = found.label.revision if found.label else 0
    key = f"label-{found.latent}-{revision}"
    calls = found.automatic_label.text if found.automatic_label else latent.name

    def write() -> None:
        typed = st.session_state[key].strip()
        words.change(info, lambda said: said.label(found.latent, typed, seen=revision))

    st.text_input(
        "Label",
        found.label.text if found.label else "",
        key=key,
        max_chars=200,
        placeholder=calls.replace("**", "") or "Say what it is about",
        on_change=write,
        width=420,
    )


def note(found: Annotation, info: CrosscoderInfo) -> None:
    """The note."""
    revision = found.note.revision if found.note else 0
    key = f"note-{found.latent}-{revision}"

    def write() -> None:
        typed = st.session_state[key]
        words.change(info, lambda said: said.note(found.latent, typed, seen=revision))

    st.text_area("Note", found.note.text if found.note else "", key=key, max_chars=10_000, on_change=write)


def lists(found: Annotation, info: CrosscoderInfo) -> None:
    """The lists that it is in; a new name makes a list."""
    there = [each.name for each in words.lists(info.name, info.version_id)]
    key = f"lists-{found.latent}-{'-'.join(found.lists)}"

    def write() -> None:
        chosen = st.session_state[key]
        for name in chosen:
            if name not in there:
                words.change(info, lambda said, name=name: said.create_list(name, [found.latent]))
            elif name not in found.lists:
                words.change(info, lambda said, name=name: said.add(name, [found.latent]))
        for name in set(found.lists) - set(chosen):
            words.change(info, lambda said, name=name: said.remove(name, [found.latent]))

    layout = {"accept_new_options": True, "placeholder": "Choose or type"}
    st.multiselect("Lists", there, list(found.lists), key=key, on_change=write, **layout)


def history(found: Annotation, info: CrosscoderInfo) -> None:
    """Who changed what, when it is asked for."""
    if not st.toggle("Show what was changed", key=f"history-{found.latent}"):
        return
    changes = session.crosscoder(info.name, info.version_id).annotations.history(found.latent, 50)
    if not changes:
        st.caption("Nothing was ever said about it.")
        return
    rows = [each.cells for each in changes]
    columns = [
        Column(head, cells, is_text=True) for head, cells in zip(HISTORY_HEADERS, zip(*rows, strict=True), strict=True)
    ]
    table_view("history", "Changes", columns, max_height=260)
