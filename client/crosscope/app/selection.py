"""A set of latents in an order, as a URL has it. The atlas chooses it; previous and next walk through it.

Works on whole columns; knows nothing about Streamlit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from crosscope.app.columns import (
    AXES,
    CLASS_OF_NUMBER,
    SPECIFIC_OF_NUMBER,
    VERDICT_OF_NUMBER,
    is_defined,
    is_difference,
)
from crosscope_proto.artefacts import LatentPart
from crosscope_proto.labels import SCORES

ORDERS_BY_DEFAULT = ("-base_uselessness_single", "-rel_norm", "-max")
"""The default order is the first of these that some latent has a value of; `default_order` has the exceptions."""
VERDICT = "verdict"
"""An order besides AXES: best verdict first, then the most telling."""
DEFAULT_X = "frequency"


@dataclass(frozen=True)
class Range:
    """A filter by a column: its values between two bounds. A bound that lies at an end of the range filters nothing."""

    column: str
    low: float
    high: float
    step: float


RANGES: Mapping[str, Range] = {
    "freq": Range("frequency", -7.0, 0.0, 0.1),
    "rel": Range("rel_norm", 0.0, 1.0, 0.02),
    "nu_err": Range("nu_err", 0.0, 2.0, 0.05),
    "nu_rec": Range("nu_rec", 0.0, 2.0, 0.05),
    "useless": Range("base_uselessness_single", 0.0, 12.0, 0.1),
    "template": Range("template_share", 0.0, 1.0, 0.05),
}
"""By the URL's parameter. A column with a logarithmic axis counts in log10."""
MAX_VERTICES = 48
PARAMS = (
    *("classes", "verdict", "specific", "part", "peak", *RANGES),
    *("x", "y", "colour", "area", "order"),
    *("label", "said", "list", "ids"),
)
MAX_IDS = 200
"""Latents that a URL may name one by one."""
MAX_TOKEN_CHARACTERS = 200
MAX_LIST_CHARACTERS = 100
SAID = ("labelled", "starred", "noted")
"""Columns of what people say about a latent, 1 or 0."""
OF_LIST = "list"
"""The order of a list that somebody keeps."""
ORDERS = (VERDICT, *(f"{sign}{name}" for name in AXES for sign in ("-", "")))
"""Orders by what was measured of latents."""
BY_FIT = tuple(f"{sign}{name}" for name in SCORES for sign in ("-", ""))
"""Orders by how well automatic labels fit; `Selection.ids` then needs SCORES among its columns."""


@dataclass(frozen=True)
class Selection:
    """Conditions that all must hold, and an order."""

    classes: tuple[str, ...] = ()
    verdicts: tuple[str, ...] = ()
    specific: tuple[str, ...] = ()
    """Models that it is specific to, of SpecificTo; any of them is enough, as of classes and verdicts."""
    part: str = ""
    """Part of the dictionary; empty: all."""
    peak: str = ""
    """A token at the peaks of its strongest examples; empty: any."""
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Lowest and highest value of each of RANGES that filters anything."""
    x: str = DEFAULT_X
    y: str = ORDERS_BY_DEFAULT[0].removeprefix("-")
    area: tuple[tuple[float, float], ...] = ()
    """Corners of a polygon in the plane of x and y; an axis with a logarithmic scale counts in log10."""
    order: str = ORDERS_BY_DEFAULT[0]
    label: str = ""
    """A part of the label; empty: any."""
    said: str = ""
    """One of SAID that must hold; empty: none."""
    in_list: str = ""
    """Name of a list that it is in; empty: any."""
    only: tuple[int, ...] = ()
    """Ids of which it is one; empty: any."""

    @classmethod
    def from_params(cls, params: Mapping[str, Sequence[str]], default_order: str = ORDERS_BY_DEFAULT[0]) -> "Selection":
        """The selection of a URL; a parameter that cannot be read counts as absent. `default_order` also sets y."""
        one = {name: values[-1] for name, values in params.items() if values}
        order, in_list = one.get("order", default_order), one.get("list", "")[:MAX_LIST_CHARACTERS]
        is_order = order in (*ORDERS, f"-{VERDICT}", *BY_FIT, "id") or (order == OF_LIST and in_list)
        return cls(
            classes=tuple(c for c in params.get("classes", ()) if c in CLASS_OF_NUMBER[1:]),
            verdicts=tuple(v for v in params.get("verdict", ()) if v in VERDICT_OF_NUMBER[1:]),
            specific=tuple(s for s in params.get("specific", ()) if s in SPECIFIC_OF_NUMBER[1:]),
            part=one["part"] if one.get("part") in tuple(LatentPart) else "",
            peak=one.get("peak", "")[:MAX_TOKEN_CHARACTERS],
            bounds={
                name: bounds
                for name, whole in RANGES.items()
                if (bounds := _bounds(params.get(name, ()), whole)) != (whole.low, whole.high)
            },
            x=one["x"] if one.get("x") in AXES else DEFAULT_X,
            y=one["y"] if one.get("y") in AXES else default_order.removeprefix("-"),
            area=_polygon(one.get("area", "")),
            order=order if is_order else default_order,
            label=one.get("label", "")[:MAX_TOKEN_CHARACTERS],
            said=one["said"] if one.get("said") in SAID else "",
            in_list=in_list,
            only=_ids(one.get("ids", "")),
        )

    def mask(self, columns: Mapping[str, np.ndarray], among: np.ndarray | None = None) -> np.ndarray:
        """[latent] bool: which latents meet every condition but the area.

        `among` holds the ids that the server found for the conditions that only it can answer; None: all latents.
        """
        keep = np.ones(len(columns["rel_norm"]), dtype=bool)
        if among is not None:
            keep[:] = False
            keep[among] = True
        if self.only:
            keep &= np.isin(np.arange(len(keep)), self.only)
        for column, names, wanted in (
            ("latent_class", CLASS_OF_NUMBER, self.classes),
            ("verdict", VERDICT_OF_NUMBER, self.verdicts),
            ("specific_to", SPECIFIC_OF_NUMBER, self.specific),
        ):
            if wanted:
                keep &= np.isin(columns[column], [names.index(each) for each in wanted])
        for name, (low, high) in self.bounds.items():
            whole = RANGES[name]
            values = on_axis(whole.column, columns[whole.column])
            keep &= (values >= low if low > whole.low else True) & (values <= high if high < whole.high else True)
        return keep

    def words(self) -> tuple[tuple[str, str, float | str], ...]:
        """The conditions on what people say, for the server."""
        conditions = (("label", "contains", self.label), ("list", "=", self.in_list), (self.said, "=", 1))
        return tuple(each for each in conditions if each[0] and each[2])

    def bound(self, name: str) -> tuple[float, float]:
        """Lowest and highest value of one of RANGES."""
        return self.bounds.get(name, (RANGES[name].low, RANGES[name].high))

    def limited(self) -> list[str]:
        """Columns in which a latent must have a value."""
        named = {"verdict": self.verdicts, "specific_to": self.specific}
        return [
            *(RANGES[name].column for name in self.bounds),
            *(column for column, is_limited in named.items() if is_limited),
        ]

    def ids(self, columns: Mapping[str, np.ndarray], among: np.ndarray | None = None) -> np.ndarray:
        """The ids of the chosen latents in the chosen order, undefined values last. `among` is that of `mask`; for the
        order of a list it is in that order.
        """
        keep = self.mask(columns, among)
        if self.area:
            keep &= inside(on_axis(self.x, columns[self.x]), on_axis(self.y, columns[self.y]), self.area)
        if self.order == OF_LIST and among is not None:
            return among[keep[among]]
        ids = np.flatnonzero(keep)
        column = self.order.removeprefix("-")
        if column == "id":
            return ids
        values = columns[column][ids]
        values = -values if self.order.startswith("-") else values
        if column == VERDICT:
            return ids[np.lexsort((telling(columns)[ids], values))]
        return ids[np.argsort(values, kind="stable")]


def telling(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """[latent] what decides between latents of one verdict, smallest first: base uselessness, or how small β is."""
    return np.abs(columns["beta_ratio"]) if is_difference(columns) else -columns["base_uselessness_single"]


def default_order(columns: Mapping[str, np.ndarray]) -> str:
    """The order of latents if the URL names none: by a column that some latent has a value of."""
    if is_difference(columns):
        return "beta_ratio"
    return next(order for order in ORDERS_BY_DEFAULT if order == "-max" or is_defined(columns, order[1:]))


def on_axis(column: str, values: np.ndarray) -> np.ndarray:
    """Values as they lie on an axis: on a logarithmic one their log10, NaN for 0."""
    if not AXES[column].is_log:
        return values
    with np.errstate(divide="ignore"):
        return np.where(values > 0, np.log10(values), np.nan)


def inside(x: np.ndarray, y: np.ndarray, polygon: Sequence[tuple[float, float]]) -> np.ndarray:
    """Whether each point lies in a polygon (even-odd rule); NaN lies nowhere."""
    result = np.zeros(len(x), dtype=bool)
    for (x0, y0), (x1, y1) in zip(polygon, [*polygon[1:], polygon[0]], strict=True):
        if y0 == y1:
            continue
        result ^= ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return result


def _ids(text: str) -> tuple[int, ...]:
    """The ids in a text, between commas or blanks, without what is no id; at most MAX_IDS."""
    parts = text.replace(",", " ").split()
    return tuple(int(part) for part in parts if part.isascii() and part.isdecimal() and len(part) < 10)[:MAX_IDS]


def _polygon(text: str) -> tuple[tuple[float, float], ...]:
    try:
        corners = [tuple(float(v) for v in corner.split(",")) for corner in text.split("~") if corner]
    except ValueError:
        return ()
    points = tuple((corner[0], corner[1]) for corner in corners if len(corner) == 2 and np.isfinite(corner).all())
    return points if 3 <= len(points) == len(corners) <= 2 * MAX_VERTICES else ()


def _number(text: str | None, default: float) -> float:
    try:
        value = float(text) if text is not None else default
    except ValueError:
        return default
    return value if np.isfinite(value) else default


def _bounds(texts: Sequence[str], whole: Range) -> tuple[float, float]:
    """Two bounds, written as two values of the parameter or as one, "low~high". A single value is the upper bound."""
    texts = [part for text in texts for part in text.split("~")]
    if len(texts) == 1:
        return (whole.low, _number(texts[0], whole.high))
    if len(texts) != 2:
        return (whole.low, whole.high)
    low, high = sorted((_number(texts[0], whole.low), _number(texts[1], whole.high)))
    return (low, high)
