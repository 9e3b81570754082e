"""What every run of the script draws: the sidebar, and the page that the URL names."""

from collections.abc import Mapping
from pathlib import Path

import streamlit as st

from crosscope import CrosscoderInfo, CrosscopeError, Unauthorized
from crosscope.app import address, errors, login, panels, session, text, theme, url
from crosscope.app.views import atlas, jobs, lab, labels, latent, look, overview, search, steer, versus

TITLES = {
    "overview": "Overview",
    "atlas": "Atlas",
    "latent": "Latent",
    "lab": "Prompt lab",
    "steer": "Steer",
    "labels": "Labels",
    "versus": "Compare",
    "search": "Search",
    "look": "Look",
    "jobs": "Jobs",
}
SEARCHED = "crosscope-searched"
"""Key of the session state with the text that the sidebar's field asks for."""
ICON = Path(__file__).with_name("icon.svg")
"""A file of our own: Streamlit's named icons come from another host."""


def draw() -> None:
    """Draws the page that the URL names."""
    st.set_page_config(page_title="crosscope", page_icon=ICON, layout="wide")
    st.html(panels.style())
    st.session_state[url.FILLED_IN] = {}
    views = {
        "overview": overview,
        "atlas": atlas,
        "latent": latent,
        "lab": lab,
        "steer": steer,
        "labels": labels,
        "versus": versus,
        "search": search,
        "look": look,
        "jobs": jobs,
    }
    pages = {
        name: st.Page(
            view.page, title=TITLES[name], url_path="" if name == "overview" else name, default=name == "overview"
        )
        for name, view in views.items()
    }
    current = st.navigation(list(pages.values()), position="hidden")
    if not login.is_known():
        return
    try:
        found = session.crosscoders_with(st.query_params.get("crosscoder"))
    except Unauthorized as error:
        refused(error)
        return
    except CrosscopeError as error:
        sidebar([], current.title)
        no_server(error)
        return
    chosen = sidebar(found, current.title)
    st.session_state[session.CHOSEN] = chosen
    if wanted := st.session_state.pop(SEARCHED, ""):
        address.go("search", crosscoder=chosen.name if chosen else None, text=wanted)
    try:
        current.run()
    except CrosscopeError as error:
        errors.show_error(error)
    address.settle()


def sidebar(found: list[CrosscoderInfo], current: str) -> CrosscoderInfo | None:
    """Links to the pages and the choice of a crosscoder, which is the URL's `crosscoder`. `current` is a page's title.

    A crosscoder that the server cannot read cannot be chosen; the overview says why. What is wrong with the choice
    stands on the page itself, because a phone shows no sidebar.
    """
    published = [info for info in found if not info.broken]
    if published:
        say_if_absent([info.name for info in published], {info.name: info.broken for info in found})
    with st.sidebar:
        st.markdown("**crosscope**")
        chosen = choice(published) if published else None
        if chosen:
            search_box()
        st.html(links(current, chosen.name if chosen else None))
        theme.switch(["" if name == "overview" else name for name in TITLES])
    if chosen:
        say_if_old(published, chosen)
    return chosen


def links(current: str, crosscoder: str | None) -> str:
    """The pages as links, in one element: Streamlit's own links take as long to draw as a small page."""
    items = (
        address.link(
            address.href(name, {"crosscoder": crosscoder}), title, ' aria-current="page"' if title == current else ""
        )
        for name, title in TITLES.items()
    )
    return f'<nav class="xs-pages" aria-label="Pages">{"".join(items)}</nav>'


def search_box() -> None:
    """A field whose text the page Search looks for. The key / leads to it from anywhere (`address`)."""

    def ask() -> None:
        st.session_state[SEARCHED] = st.session_state[address.SEARCH_FIELD].strip()
        st.session_state[address.SEARCH_FIELD] = ""

    hint = "Search latents ( / )"
    st.text_input(
        "Search latents",
        key=address.SEARCH_FIELD,
        max_chars=500,
        placeholder=hint,
        label_visibility="collapsed",
        on_change=ask,
    )


def say_if_absent(names: list[str], reasons: Mapping[str, str]) -> None:
    """Warns if the URL names a crosscoder that is not among `names`, and says which is shown.

    `reasons` says by name why a crosscoder cannot be read; empty if it can.
    """
    wanted = st.query_params.get("crosscoder", names[0])
    if wanted in names:
        return
    reason = reasons.get(wanted)
    what = f"{text.plain(wanted)} cannot be read." if reason else f"There is no crosscoder {text.plain(wanted)}."
    st.warning(f"{what} {text.sentence(reason) if reason else ''} Showing {text.plain(names[0])}.")


def choice(published: list[CrosscoderInfo]) -> CrosscoderInfo:
    """The crosscoder of the URL, else the newest, in the version that this session found first."""
    names = [info.name for info in published]
    wanted = st.query_params.get("crosscoder", names[0])
    if wanted not in names:
        wanted = names[0]
    key = f"crosscoder-{wanted}"
    st.selectbox(
        "Crosscoder",
        names,
        index=names.index(wanted),
        key=key,
        on_change=lambda: url.keep("crosscoder", st.session_state[key]),
    )
    url.fill_in(crosscoder=wanted)
    return session.pin(published[names.index(wanted)])


def say_if_old(published: list[CrosscoderInfo], chosen: CrosscoderInfo) -> None:
    """Says if a newer version of the chosen crosscoder was published, and offers to load it."""
    current = {info.name: info.version_id for info in published}
    if current[chosen.name] != chosen.version_id:
        st.info("A newer version was published. This page still shows the one that you opened.")
        st.button("Reload", on_click=session.unpin, args=(chosen.name,))


def refused(error: Unauthorized) -> None:
    """Draws the page of a viewer whose token is refused, because it was revoked or has ended."""
    st.title("Your token is refused" if login.is_typed() else "The app's token is refused")
    st.markdown(text.plain(str(error)))
    if login.is_typed():
        st.button("Log in again", type="primary", on_click=login.forget)


def no_server(error: CrosscopeError) -> None:
    """Draws the page while no server answers."""
    st.title("No server answers")
    st.markdown(text.plain(text.without_paths(str(error))))
    st.markdown("Start everything with `crosscope up`, or point the app elsewhere with `CROSSCOPE_ADDRESS`.")
    if st.button("Try again", type="primary"):
        session.published.clear()
        st.rerun()
