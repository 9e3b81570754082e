"""Latents as tables: cells as people read them, and the same as CSV for programs. Built from whole columns."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from crosscope import Annotation
from crosscope._annotation_files import safe
from crosscope.app.columns import (
    AXES,
    CLASS_OF_NUMBER,
    SHOWN,
    SPECIFIC_OF_NUMBER,
    VERDICT_OF_NUMBER,
    evidence,
    is_difference,
    texts,
)
from crosscope.app.table_view import Column, Gauge
from crosscope.app.text import judged, number
from crosscope_proto.limits import DIFFERENCE_RATIO, MAX_NU_ERR, MAX_NU_REC


@dataclass(frozen=True)
class Bar:
    """How a column is drawn among the evidence."""

    top: float
    """The value at which the bar is full."""
    limit: float | None = None
    """Where a label stops being believed."""


MIN_TELLING = 4.0
"""Base uselessness above which latents of the original work were highly interpretable."""
BARS: Mapping[str, Bar] = {
    "rel_norm": Bar(1.0),
    "beta_ratio": Bar(1.0, DIFFERENCE_RATIO),
    "nu_err": Bar(1.0, MAX_NU_ERR),
    "nu_rec": Bar(1.0, MAX_NU_REC),
    "base_uselessness": Bar(12.0, MIN_TELLING),
    "base_uselessness_single": Bar(12.0, MIN_TELLING),
}
"""Columns that share one cell of a table."""


def figures(values: Sequence[float] | np.ndarray, *, floor: float = math.inf) -> list[str]:
    """Cells of figures (`text.number`); "≥" in front if the value has reached `floor`."""
    return [number(value, floor=floor) for value in values]


def beside(order: str, columns: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """Columns for a table in an order: the evidence, and what orders it or else how often a latent fires."""
    shown = evidence(columns)
    return (*shown, order if order in AXES and order not in shown else "frequency")


NAME_HELP = "Its label, else the strongest peak in its text. A star: somebody has starred it."


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
    names_of_latents: Sequence[str] = (),
    more: Sequence[Column] = (),
    order: Callable[[str], tuple[str, str]] | None = None,
) -> list[Column]:
    """The columns of a table with a row for each latent: id, name, class, `more`, and columns of the atlas.

    Those of BARS are drawn in one cell, with their errors; the others have a column each.

    `order` gives the link of a column's head and the direction of the table's present order by it. `floor` is
    `session.uselessness_floor`.
    """
    classes = [judged(*each) for each in zip(*kinds(ids, columns).values(), strict=True)]
    link, direction = order("verdict") if order else ("", "")
    found = [Column("latent", [str(latent) for latent in ids])]
    if names_of_latents:
        found.append(Column("name", names_of_latents, NAME_HELP, is_text=True, is_narrow=True))
    by_verdict = Column(
        "class", classes, class_help(columns), is_text=True, is_brief=True, order=link, ordered=direction
    )
    found += [by_verdict, *more]
    bars = [name for name in names if name in BARS]
    if bars:
        found.append(gauged("evidence", [_gauge(name, ids, columns, floor, order) for name in bars]))
    for name in names:
        if name in BARS or SHOWN[name].error_of in BARS:
            continue
        link, direction = order(name) if order and name in AXES else ("", "")
        cells = figures(columns[name][ids], floor=_limit(name, floor))
        found.append(Column(SHOWN[name].short, cells, _help(name, floor), order=link, ordered=direction))
    return found


def _gauge(
    name: str,
    ids: np.ndarray,
    columns: Mapping[str, np.ndarray],
    floor: float,
    order: Callable[[str], tuple[str, str]] | None,
) -> Gauge:
    error, bar = f"{name}_se", BARS[name]
    link, direction = order(name) if order else ("", "")
    return Gauge(
        SHOWN[name].short,
        figures(columns[name][ids], floor=_limit(name, floor)),
        columns[name][ids].tolist(),
        columns[error][ids].tolist() if error in SHOWN else (),
        bar.top,
        bar.limit,
        _help(name, floor) + (f" The line stands at {number(bar.limit)}." if bar.limit is not None else ""),
        link,
        direction,
    )


def gauged(head: str, gauges: Sequence[Gauge]) -> Column:
    """Figures that share a cell, and the same in words: "ν err 0.12 ± 0.03"."""

    def said(gauge: Gauge, row: int) -> str:
        error = gauge.errors[row] if gauge.errors else math.nan
        spread = "" if math.isnan(error) or math.isnan(gauge.values[row]) else f" ± {number(error, 2)}"
        return f"{gauge.head} {gauge.cells[row]}{spread}"

    rows = range(len(gauges[0].cells))
    return Column(head, [", ".join(said(gauge, row) for gauge in gauges) for row in rows], gauges=gauges)


def _limit(name: str, floor: float) -> float:
    return floor if SHOWN[name].is_floored else math.inf


def _help(name: str, floor: float) -> str:
    """The meaning of a column, with the largest value that it can have."""
    limit, meaning = _limit(name, floor), SHOWN[name].meaning
    if limit == math.inf:
        return meaning
    return f"{meaning} {number(limit, floor=limit)} is the largest value that the analysis can give."


def csv(ids: np.ndarray, columns: Mapping[str, np.ndarray], said: Iterable[Annotation] = ()) -> str:
    """Latents as CSV under the names of latents.parquet's columns, standard errors included; undefined is empty.

    `said` gives labels and stars; a label that a spreadsheet would run has an apostrophe in front.
    """
    import pandas as pd

    words = {each.latent: each for each in said}
    labels = [words[latent].text if latent in words else "" for latent in ids.tolist()]
    stars = [int(latent in words and words[latent].star is not None) for latent in ids.tolist()]
    named = {"label": [safe(label) for label in labels], "starred": stars} if words else {}
    frame = {"id": ids, **kinds(ids, columns), **named, **{name: columns[name][ids] for name in SHOWN}}
    return pd.DataFrame(frame).to_csv(index=False)
