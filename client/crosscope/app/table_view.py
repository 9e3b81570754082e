"""The app's tables: HTML tables whose rows and heads are links. They are made of whole columns.

A Streamlit component in plain JavaScript (`table_view.js`). A row opens on a click or on Enter, never because it has
the focus. A head that orders the table is a link to the same page in that order, so that the order covers every row,
not only the drawn ones. Cells are hostile input: they travel as data and become text nodes. Knows nothing about the
server.
"""

import hashlib
import json
import math
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
NARROW_CELL = 8
"""Characters of a gauge's figure that fit over its bar."""


@dataclass(frozen=True)
class Gauge:
    """A figure that shares a cell with others: a bar, its standard error as a whisker, and the figure."""

    head: str
    cells: Sequence[str]
    values: Sequence[float]
    """What the bars say; NaN has no bar."""
    errors: Sequence[float] = ()
    """Standard errors of `values`, if there are any."""
    top: float = 1.0
    """The value at which the bar is full."""
    limit: float | None = None
    """A value that decides something; the bar has a line there."""
    help: str = ""
    order: str = ""
    ordered: str = ""
    """As of a column."""


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
    """Whether a long text is cut early, so that the figures beside it stay in view; hovering shows the whole. A part
    between ** and ** is bold, as in the name of a latent."""
    is_brief: bool = False
    """Whether a text takes two lines where the table is narrow."""
    order: str = ""
    """A link that orders the table by this column; empty: the head is no link."""
    links: Sequence[str] = ()
    """A link of each cell, if the cells have links of their own."""
    ordered: str = ""
    """"ascending" or "descending" where the table is in this column's order."""
    gauges: Sequence[Gauge] = ()
    """What each cell draws. `cells` then say the same in words."""


@cache
def _component() -> Any:
    return v2.component(
        "crosscope_table_view",
        html='<div class="root"></div>',
        css=css_variables(".root") + (_FOLDER / "table_view.css").read_text("utf-8"),
        js=SCRIPT + "".join((_FOLDER / name).read_text("utf-8") for name in ("parts.js", "table_view.js")),
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
                "brief": column.is_brief,
                "order": column.order,
                "links": list(column.links),
                "ordered": column.ordered,
                "gauges": [_gauge(gauge) for gauge in column.gauges],
                "wide": any(len(cell) > NARROW_CELL for gauge in column.gauges for cell in gauge.cells),
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


def _gauge(gauge: Gauge) -> dict[str, Any]:
    """A gauge as the browser draws it: of each row the bar's length and the whisker's ends, 0 to 1."""

    def share(value: float) -> float:
        return round(min(1.0, max(0.0, value / gauge.top)), 3)

    bars = [None if math.isnan(value) else share(value) for value in gauge.values]
    whiskers = [
        None if math.isnan(value) or math.isnan(error) else [share(value - error), share(value + error)]
        for value, error in zip(gauge.values, gauge.errors, strict=False)
    ]
    return {
        "head": gauge.head,
        "help": gauge.help,
        "order": gauge.order,
        "ordered": gauge.ordered,
        "cells": list(gauge.cells),
        "bars": bars,
        "whiskers": whiskers,
        "limit": None if gauge.limit is None else share(gauge.limit),
    }
