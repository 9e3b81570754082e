"""Both models' most probable next tokens, side by side."""

from collections.abc import Sequence

import streamlit as st

from crosscope import NextToken
from crosscope.app import text
from crosscope.app.table_view import Column, table_view


def side_by_side(
    key: str,
    base: Sequence[NextToken],
    chat: Sequence[NextToken],
    *,
    said: tuple[str, str] = ("", ""),
    came: int | None = None,
) -> None:
    """Draws a table a model; `said` stands over each, and the row of the token `came`, an id, is marked."""
    with st.container(key=f"wrap-controls-{key}"):
        columns = st.columns(2)
    for column, name, found, line in zip(columns, ("base", "chat"), (base, chat), said, strict=True):
        with column:
            st.caption(f"**{name}**{line and ', '}{line}")
            rows = [
                Column("rank", [str(rank + 1) for rank in range(len(found))]),
                Column("probability", [f"{each.probability:.1%}" for each in found]),
                Column("next", [text.visible(each.piece) for each in found], is_text=True),
            ]
            place = next((i for i, each in enumerate(found) if each.id == came), None)
            table_view(f"{key}-{name}", f"Next tokens of {name}", rows, chosen=place)
