"""Latents as tables: cells as people read them, and the same as CSV for programs. Built from whole columns."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from crosscope import Annotation, _tables
from crosscope._annotation_files import safe
from crosscope.app.columns import AXES, CLASS_OF_NUMBER, SHOWN, is_difference
from crosscope.app.palette import CLASS_NAMES
from crosscope.app.table_view import Column
from crosscope.app.text import at_least


def figures(values: Sequence[float] | np.ndarray, text: str, floor: float = math.inf) -> list[str]:
    """Cells of figures in a printf format; "–" if undefined, "≥" in front if the value has reached `floor`."""
    cells = []
    for value in values:
        if value is None or math.isnan(value):
            cells.append(_tables.UNDEFINED)
        else:
            cells.append(at_least(text % value, value, floor))
    return cells


NAME_HELP = "Its label, else the strongest peak in its text. A star: somebody has starred it."


def class_help(columns: Mapping[str, np.ndarray]) -> str:
    """Help for the class of a latent in this dictionary."""
    by = "β ratio" if is_difference(columns) else "relative norm"
    return f"By {by} alone; the columns beside it say what the label rests on."


def of_latents(
    ids: np.ndarray,
    columns: Mapping[str, np.ndarray],
    names: Sequence[str],
    *,
    floor: float,
    names_of_latents: Sequence[str] = (),
    more: Sequence[Column] = (),
    order: Callable[[str], tuple[str, str]] | None = None,
) -> list[Column]:
    """The columns of a table with a row for each latent: id, name, class, `more`, and columns of the atlas.

    `order` gives the link of a column's head and the direction of the table's present order by it. `floor` is
    `session.uselessness_floor`.
    """
    classes = [CLASS_NAMES.get(CLASS_OF_NUMBER[int(number)], "") for number in columns["latent_class"][ids]]
    found = [Column("latent", [str(latent) for latent in ids])]
    if names_of_latents:
        found.append(Column("name", names_of_latents, NAME_HELP, is_text=True))
    found += [Column("class", classes, class_help(columns), is_text=True), *more]
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


def csv(ids: np.ndarray, columns: Mapping[str, np.ndarray], said: Iterable[Annotation] = ()) -> str:
    """Latents as CSV under the names of latents.parquet's columns, standard errors included; undefined is empty.

    `said` gives labels and stars; a label that a spreadsheet would run has an apostrophe in front.
    """
    import pandas as pd

    classes = np.array(CLASS_OF_NUMBER)[columns["latent_class"][ids].astype(int)]
    words = {each.latent: each for each in said}
    labels = [words[latent].text if latent in words else "" for latent in ids.tolist()]
    stars = [int(latent in words and words[latent].star is not None) for latent in ids.tolist()]
    named = {"label": [safe(label) for label in labels], "starred": stars} if words else {}
    frame = {"id": ids, "latent_class": classes, **named, **{name: columns[name][ids] for name in SHOWN}}
    return pd.DataFrame(frame).to_csv(index=False)
