"""What a page shows where a call failed: what happened, at which fields, and how to go on. No traceback, no paths."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

import streamlit as st

from crosscope import Busy, CrosscopeError, InvalidInput, Unauthorized, Unavailable, VersionGone
from crosscope.app import login, session
from crosscope.app.text import plain, without_paths


def show_error(
    error: CrosscopeError, said: str = "", as_on_page: Callable[[str], str] = str, part: str = "page"
) -> None:
    """Shows what happened and at which fields, with a button for what may help: to try again, or another token.

    Paths on the server's machine are cut short, except those in `said`, which is what the person wrote. `as_on_page`
    gives a sentence or a field with the page's names and numbers. `part` names the part of the page that failed; a page
    may show one error of each.
    """

    def sentence(text: str) -> str:
        return plain(without_paths(as_on_page(text), said))

    if isinstance(error, VersionGone):
        version_gone(error)
    elif isinstance(error, InvalidInput) and error.violations:
        lines = [f"- `{as_on_page(field) or 'whole'}`: {sentence(text)}" for field, text in error.violations]
        st.error("\n".join(["This cannot be used as it is:", "", *lines]))
    else:
        st.error(sentence(str(error)))
    if isinstance(error, Unavailable | Busy):
        st.button("Try again", key=f"retry-{part}-{type(error).__name__}-{hash(str(error))}")
    if isinstance(error, Unauthorized) and login.is_typed():
        st.button("Log in with another token", key=f"login-{part}", on_click=login.forget)


def version_gone(error: VersionGone) -> None:
    """Says that the version of this session no longer exists, and offers the newest."""
    newest = f" The newest is {plain(error.newest)}." if error.newest else ""
    st.warning(f"The version that this page shows is gone.{newest}")
    info = session.chosen()
    if info and st.button("Reload", key="reload-gone", type="primary"):
        session.unpin(info.name)
        st.rerun()


@contextmanager
def shown_errors(said: str = "", part: str = "page") -> Generator[None]:
    """Shows the SDK's errors in place of what the block would have drawn; `said` and `part` as in `show_error`."""
    try:
        yield
    except CrosscopeError as error:
        show_error(error, said, part=part)
