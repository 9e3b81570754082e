"""An app without content, of two pages and a button: what it costs is Streamlit's own."""

import streamlit as st


def one() -> None:
    """The first page."""
    st.title("One")
    st.button("Run")
    st.session_state["runs"] = st.session_state.get("runs", 0) + 1
    st.markdown(f"run {st.session_state['runs']}")
    st.page_link(pages[1], label="to two")


def two() -> None:
    """The second page."""
    st.title("Two")
    st.page_link(pages[0], label="to one")


pages = [st.Page(one, url_path="", default=True), st.Page(two, url_path="two")]
st.navigation(pages, position="hidden").run()
