"""The browser's address. The page itself moves it, so that each step is one entry of the history.

Streamlit's own `switch_page` writes the new page's parameters onto the old page first, which leaves an entry that
nobody visited. Here the browser gets the whole address at once and tells Streamlit that it has moved, as its Back
button would. Knows pages by name only.
"""

from collections.abc import Mapping
from functools import cache
from html import escape
from typing import Any, NoReturn
from urllib.parse import urlencode
from uuid import uuid4

import streamlit as st
from streamlit.components import v2

from crosscope.app import url

SCRIPT = """
export function follow(href) {
  const target = new URL(href, window.location.href);
  const move = () => {
    if (target.href === window.location.href) return;
    window.history.pushState({}, "", target);
    window.dispatchEvent(new PopStateEvent("popstate"));
  };
  if (performance.now() - (window.crosscopeTyped ?? -Infinity) < 400) setTimeout(move, 250);
  else move();
}
"""
"""The script by which components go to another page; they include it.

A field that was just left sends its text to its own page. The text must arrive before the step to the next page, or
Streamlit stays on the old one.
"""

SEARCH_FIELD = "sidebar-search"
"""Key of the field that the key / leads to."""
_MOUNT = """
const done = (window.crosscopeMoves ??= new Set());
const query = (text) => new URLSearchParams(text).toString();

function listen() {
  if (window.crosscopeListens) return;
  window.crosscopeListens = true;
  document.addEventListener("focusout", ({ target }) => {
    if (target.matches("textarea, input")) window.crosscopeTyped = performance.now();
  }, true);
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.composedPath()[0].matches?.("input, textarea, select, [contenteditable]")) return;
    const field = document.querySelector(".st-key-sidebar-search input");
    if (!field) return;
    event.preventDefault();
    field.focus();
  }, true);
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a.xs-link");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    const href = link.getAttribute("href");
    if (new URL(href, window.location.href).href === window.location.href) window.crosscopeAgain?.();
    else follow(href);
  }, true);
}

export default function ({ data, setTriggerValue }) {
  listen();
  window.crosscopeAgain = () => setTriggerValue("again", true);
  if (!data || done.has(data.move)) return;
  done.add(data.move);
  if (data.seen === null) follow(data.href);
  else if (query(data.seen) === query(window.location.search)) {
    window.history.replaceState(window.history.state, "", data.href);
  }
}
"""
"""Takes the links of class xs-link over, so that every step goes the same way; one to the page that is shown draws it
again. / goes to the sidebar's field."""


@cache
def _component() -> Any:
    return v2.component("crosscope_address", html="<span hidden></span>", js=SCRIPT + _MOUNT)


def href(page: str, params: Mapping[str, Any]) -> str:
    """A link from any page of the app to another one, relative, so that it holds below any path."""
    query = urlencode(texts(params), doseq=True)
    path = "./" if page == "overview" else page
    return f"{path}?{query}" if query else path


def link(href: str, says: str, attributes: str = "") -> str:
    """A link of the app as HTML, which the browser follows as a step within it; `says` is plain text."""
    return f'<a class="xs-link" href="{escape(href)}"{attributes}>{escape(says)}</a>'


def here(changes: Mapping[str, Any]) -> str:
    """A link to this page with other parameters; None takes one out."""
    merged = {**url.canonical(), **changes}
    return "?" + urlencode(texts(merged), doseq=True)


def texts(params: Mapping[str, Any]) -> dict[str, list[str]]:
    """Parameters as URLs take them, each a list of texts; empty ones are left out."""
    lists = {name: value if isinstance(value, list | tuple) else [value] for name, value in params.items()}
    found = {name: [str(one) for one in values if one is not None and one != ""] for name, values in lists.items()}
    return {name: values for name, values in found.items() if values}


def go(page: str, **params: Any) -> NoReturn:
    """Shows another page; the rest of this run is not drawn."""
    _component()(key="address-go", data={"href": href(page, params), "seen": None, "move": uuid4().hex})
    st.stop()


def settle() -> None:
    """Writes what the page filled in into the address, without an entry in the history."""
    seen = url.params()
    fits = url.canonical() == seen
    data = None if fits else {"href": here({}), "seen": urlencode(seen, doseq=True), "move": uuid4().hex}
    _component()(key="address-settle", data=data, on_again_change=_draw_again)


def _draw_again() -> None:
    """Does nothing: the run that a trigger causes draws the page again."""
