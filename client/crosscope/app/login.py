"""Who looks at a page: the token with which this session calls the server, and the form that asks for one.

Each viewer acts as themselves: what they may not do with their token, the app does not do for them. Knows no page.
"""

import hmac
import tomllib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import streamlit as st

from crosscope import Client, CrosscopeError, Unauthorized
from crosscope.app.guard import COOKIE
from crosscope.app.settings import AppSettings, Login, read_settings
from crosscope.app.text import plain

_TOKEN = "crosscope-token"
_acting: ContextVar[str | None] = ContextVar("acting")
"""The token for which a thread beside the page works."""


@cache
def settings() -> AppSettings:
    """The settings of this process."""
    return read_settings()


def token() -> str | None:
    """The token of this session; None: the app's own."""
    try:
        return _acting.get()
    except LookupError:
        return st.session_state.get(_TOKEN)


@contextmanager
def acting_with(given: str | None) -> Generator[None]:
    """A block in which this thread acts with a token."""
    before = _acting.set(given)
    try:
        yield
    finally:
        _acting.reset(before)


def run_as(given: str | None, work: Callable[..., Any], *arguments: Any) -> Any:
    """The result of some work in another thread, which acts with a token."""
    with acting_with(given):
        return work(*arguments)


def is_known() -> bool:
    """Whether this session may see pages; else draws what it takes to be known."""
    login = settings().login
    if login is Login.OPEN or st.session_state.get(_TOKEN) or (login is Login.KEY and _has_key()):
        return True
    if login is Login.OIDC:
        return _known_by_address()
    _ask()
    return False


def forget() -> None:
    """Makes this session a stranger's, because its token is refused."""
    st.session_state.pop(_TOKEN, None)


def is_typed() -> bool:
    """Whether this session acts with a token of its own."""
    return _TOKEN in st.session_state


def _has_key() -> bool:
    given, key = st.context.cookies.get(COOKIE, ""), settings().key
    return key is not None and hmac.compare_digest(given.encode(), key.encode())


def _ask() -> None:
    """Draws the form for a token."""
    st.title("Who are you?")
    with st.form("crosscope-login"):
        given = st.text_input("Token", type="password", help="From whoever runs this server: `crosscope tokens add`.")
        sent = st.form_submit_button("Log in", type="primary")
    if settings().login is Login.KEY:
        st.caption("If you started crosscope yourself, open the address that `crosscope up` printed.")
    if sent and given.strip():
        _log_in(given.strip())


def _log_in(given: str) -> None:
    """Keeps a token if the server knows it, and draws the page again."""
    try:
        with Client(settings().address, token=given) as client:
            client.crosscoders()
    except Unauthorized:
        st.error("The server does not know that token.")
    except CrosscopeError as error:
        st.error(plain(str(error)))
    else:
        st.session_state[_TOKEN] = given
        st.rerun()


def _known_by_address() -> bool:
    """Whether somebody has logged in at the identity provider whose address has a token."""
    if not getattr(st.user, "is_logged_in", False):
        st.title("Who are you?")
        st.button("Log in", type="primary", on_click=st.login)
        return False
    email = str(st.user.get("email") or "")
    verified = st.user.get("email_verified") is True
    found = tokens_by_address().get(email.lower()) if verified else None
    if found:
        st.session_state[_TOKEN] = found
        return True
    st.title("You have no token")
    if verified:
        st.markdown(f"Whoever runs this app has to add {plain(email)} to `CROSSCOPE_APP_OIDC_TOKENS`.")
    else:  # anybody may write any address into an account whose provider does not look
        st.markdown(f"The identity provider does not say that {plain(email) or 'your e-mail address'} is verified.")
    st.button("Log out", on_click=st.logout)
    return False


def tokens_by_address() -> dict[str, str]:
    """The tokens by e-mail address, in small letters; read each time that somebody logs in."""
    path = settings().oidc_tokens
    assert path is not None
    try:
        return {str(email).lower(): str(each) for email, each in tomllib.loads(path.read_text()).items()}
    except (OSError, ValueError) as error:
        st.error(f"The list of tokens cannot be read: {type(error).__name__}.")
        return {}
