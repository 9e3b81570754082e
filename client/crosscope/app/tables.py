"""Latents as tables: cells as people read them, and the same as CSV for programs. Built from whole columns."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from crosscope import _tables
from crosscope.app.columns import (
    AXES,
    CLASS_OF_NUMBER,
    SHOWN,
    SPECIFIC_OF_NUMBER,
    VERDICT_OF_NUMBER,
    is_difference,
    texts,
)
from crosscope.app.table_view import Column
from crosscope.app.text import at_least, judged


def figures(values: Sequence[float] | np.ndarray, text: str, floor: float = math.inf) -> list[str]:
    """Cells of figures in a printf format; "–" if undefined, "≥" in front if the value has reached `floor`."""
    cells = []
    for value in values:
        if value is None or math.isnan(value):
            cells.append(_tables.UNDEFINED)
        else:
            cells.append(at_least(text % value, value, floor))
    return cells


def class_help(columns: Mapping[str, np.ndarray]) -> str:
    """Help for the class of a latent in this dictionary, and for the verdict beside it."""
    by = "β ratio" if is_difference(columns) else "relative norm"
    return f"The class is by {by} alone; the verdict says what the measurements make of it. Ordered by verdict."


def kinds(ids: np.ndarray, columns: Mapping[str, np.ndarray]) -> dict[str, list[str]]:
    """The class, the verdict and the model that it is specific to, of each latent, "" where undefined."""
    named = {"latent_class": CLASS_OF_NUMBER, "verdict": VERDICT_OF_NUMBER, "specific_to": SPECIFIC_OF_NUMBER}
    return {name: texts(columns, name, names, ids) for name, names in named.items()}


def of_latents(
    ids: np.ndarray,
    columns: Mapping[str, np.ndarray],
    names: Sequence[str],
    *,
    floor: float,
    more: Sequence[Column] = (),
    order: Callable[[str], tuple[str, str]] | None = None,
) -> list[Column]:
    """The columns of a table with a row for each latent: id, class, `more`, and columns of the atlas.

    `order` gives the link of a column's head and the direction of the table's present order by it. `floor` is
    `session.uselessness_floor`.
    """
    classes = [judged(*each) for each in zip(*kinds(ids, columns).values(), strict=True)]
    link, direction = order("verdict") if order else ("", "")
    found = [Column("latent", [str(latent) for latent in ids])]
    by_verdict = Column("class", classes, class_help(columns), is_text=True, order=link, ordered=direction)
    found += [by_verdict, *more]
    for name in names:
        column = SHOWN[name]
        limit = floor if column.is_floored else math.inf
        cells = figures(columns[name][ids], column.format, limit)
        link, direction = order(name) if order and name in AXES else ("", "")
        meaning = column.meaning
        if limit < math.inf:
            meaning += f" {at_least(f'{limit:.2f}', limit, limit)} is the largest value that the analysis can give."
        found.append(Column(column.short, cells, meaning, order=link, ordered=direction))
    return found


def csv(ids: np.ndarray, columns: Mapping[str, np.ndarray]) -> str:
    """Latents as CSV under the names of latents.parquet's columns, standard errors included; undefined is empty."""
    import pandas as pd

    frame = {"id": ids, **kinds(ids, columns), **{name: columns[name][ids] for name in SHOWN}}
    return pd.DataFrame(frame).to_csv(index=False)
