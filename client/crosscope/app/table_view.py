"""The app's tables: HTML tables whose rows and heads are links. They are made of whole columns.

A Streamlit component in plain JavaScript (`table_view.js`). A row opens on a click or on Enter, never because it has
the focus. A head that orders the table is a link to the same page in that order, so that the order covers every row,
not only the drawn ones. Cells are hostile input: they travel as data and become text nodes. Knows nothing about the
server.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from streamlit.components import v2

from crosscope.app.address import SCRIPT
from crosscope.app.palette import css_variables

_FOLDER = Path(__file__).parent
ROW_HEIGHT = 30
MAX_HEIGHT = 500


@dataclass(frozen=True)
class Column:
    """One column as people read it."""

    head: str
    cells: Sequence[str]
    help: str = ""
    """What the column says; shown at its head."""
    is_text: bool = False
    """Texts stand to the left, figures to the right."""
    is_narrow: bool = False
    """Whether a long text is cut early, so that the figures beside it stay in view; hovering shows the whole."""
    order: str = ""
    """A link that orders the table by this column; empty: the head is no link."""
    links: Sequence[str] = ()
    """A link of each cell, if the cells have links of their own."""
    ordered: str = ""
    """"ascending" or "descending" where the table is in this column's order."""


@cache
def _component() -> Any:
    return v2.component(
        "crosscope_table_view",
        html='<div class="root"></div>',
        css=css_variables(".root") + (_FOLDER / "table_view.css").read_text("utf-8"),
        js=SCRIPT + (_FOLDER / "table_view.js").read_text("utf-8"),
    )


def table_view(
    key: str,
    label: str,
    columns: Sequence[Column],
    links: Sequence[str] = (),
    *,
    chosen: int | None = None,
    max_height: int = MAX_HEIGHT,
) -> None:
    """Draws a table; row i links to `links[i]`, if there are links. `label` names it for screen readers.

    `chosen` is the row that the page is about now.
    """
    content = {
        "label": label,
        "columns": [
            {
                "head": column.head,
                "help": column.help,
                "text": column.is_text,
                "narrow": column.is_narrow,
                "order": column.order,
                "links": list(column.links),
                "ordered": column.ordered,
            }
            for column in columns
        ],
        "rows": list(zip(*(column.cells for column in columns), strict=True)),
        "links": list(links),
        "max_height": max_height,
        "row_height": ROW_HEIGHT,
    }
    revision = hashlib.blake2b(json.dumps(content).encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
    _component()(key=key, data={**content, "revision": revision, "chosen": chosen})
