"""A set of latents in an order, as a URL has it. The atlas chooses it; previous and next walk through it.

Works on whole columns; knows nothing about Streamlit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from crosscope.app.columns import AXES, CLASS_OF_NUMBER, is_defined, is_difference
from crosscope_proto.artefacts import LatentPart

ORDERS_BY_DEFAULT = ("-base_uselessness_single", "-rel_norm", "-max")
"""The default order is the first of these that some latent has a value of; `default_order` has the exceptions."""
DEFAULT_X = "frequency"
FREQUENCY_RANGE = (-7.0, 0.0)
"""log10 of the firing frequency, the ends of its slider."""
NU_LIMIT = 2.0
"""The end of the sliders of nu; a slider at its end filters nothing."""
MAX_VERTICES = 48
PARAMS = (
    *("classes", "part", "peak", "freq", "nu_err", "nu_rec", "template"),
    *("x", "y", "colour", "area", "rel", "order"),
    *("label", "said", "list"),
)
MAX_TOKEN_CHARACTERS = 200
MAX_LIST_CHARACTERS = 100
SAID = ("labelled", "starred", "noted")
"""Columns of what people say about a latent, 1 or 0."""
OF_LIST = "list"
"""The order of a list that somebody keeps."""


@dataclass(frozen=True)
class Selection:
    """Conditions that all must hold, and an order."""

    classes: tuple[str, ...] = ()
    part: str = ""
    """Part of the dictionary; empty: all."""
    peak: str = ""
    """A token at the peaks of its strongest examples; empty: any."""
    frequency: tuple[float, float] = FREQUENCY_RANGE
    """log10 of the firing frequency, lowest and highest."""
    nu_err: float = NU_LIMIT
    nu_rec: float = NU_LIMIT
    template: float = 1.0
    rel_norm: tuple[float, float] = (0.0, 1.0)
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

    @classmethod
    def from_params(cls, params: Mapping[str, Sequence[str]], default_order: str = ORDERS_BY_DEFAULT[0]) -> "Selection":
        """The selection of a URL; a parameter that cannot be read counts as absent. `default_order` also sets y."""
        one = {name: values[-1] for name, values in params.items() if values}
        order, in_list = one.get("order", default_order), one.get("list", "")[:MAX_LIST_CHARACTERS]
        is_order = order.removeprefix("-") in AXES or order == "id" or (order == OF_LIST and in_list)
        return cls(
            classes=tuple(c for c in params.get("classes", ()) if c in CLASS_OF_NUMBER[1:]),
            part=one["part"] if one.get("part") in tuple(LatentPart) else "",
            peak=one.get("peak", "")[:MAX_TOKEN_CHARACTERS],
            frequency=_range(params.get("freq", ()), FREQUENCY_RANGE),
            nu_err=_number(one.get("nu_err"), NU_LIMIT),
            nu_rec=_number(one.get("nu_rec"), NU_LIMIT),
            template=_number(one.get("template"), 1.0),
            rel_norm=_range(params.get("rel", ()), (0.0, 1.0)),
            x=one["x"] if one.get("x") in AXES else DEFAULT_X,
            y=one["y"] if one.get("y") in AXES else default_order.removeprefix("-"),
            area=_polygon(one.get("area", "")),
            order=order if is_order else default_order,
            label=one.get("label", "")[:MAX_TOKEN_CHARACTERS],
            said=one["said"] if one.get("said") in SAID else "",
            in_list=in_list,
        )

    def mask(self, columns: Mapping[str, np.ndarray], among: np.ndarray | None = None) -> np.ndarray:
        """[latent] bool: which latents meet every condition but the area.

        `among` holds the ids that the server found for the conditions that only it can answer; None: all latents.
        """
        keep = np.ones(len(columns["rel_norm"]), dtype=bool)
        if among is not None:
            keep[:] = False
            keep[among] = True
        if self.classes:
            keep &= np.isin(columns["latent_class"], [CLASS_OF_NUMBER.index(c) for c in self.classes])
        if self.frequency != FREQUENCY_RANGE:
            low, high = self.frequency
            frequency = on_axis("frequency", columns["frequency"])
            keep &= (frequency >= low if low > FREQUENCY_RANGE[0] else True) & (frequency <= high)
        if self.rel_norm != (0.0, 1.0):
            keep &= (columns["rel_norm"] >= self.rel_norm[0]) & (columns["rel_norm"] <= self.rel_norm[1])
        for column, limit in self._limits().items():
            keep &= columns[column] <= limit
        return keep

    def words(self) -> tuple[tuple[str, str, float | str], ...]:
        """The conditions on what people say, for the server."""
        conditions = (("label", "contains", self.label), ("list", "=", self.in_list), (self.said, "=", 1))
        return tuple(each for each in conditions if each[0] and each[2])

    def _limits(self) -> dict[str, float]:
        """The largest value that passes, by column; columns without a limit are left out."""
        limits = (
            ("nu_err", self.nu_err, NU_LIMIT),
            ("nu_rec", self.nu_rec, NU_LIMIT),
            ("template_share", self.template, 1.0),
        )
        return {column: limit for column, limit, end in limits if limit < end}

    def limited(self) -> list[str]:
        """Columns in which a latent must have a value."""
        return [*self._limits(), *(["rel_norm"] if self.rel_norm != (0.0, 1.0) else [])]

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
        return ids[np.argsort(-values if self.order.startswith("-") else values, kind="stable")]


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


def polygon_text(corners: Sequence[tuple[float, float]]) -> str:
    """A polygon for a URL, thinned to MAX_VERTICES corners."""
    step = -(-len(corners) // MAX_VERTICES)
    return "~".join(f"{x:.4g},{y:.4g}" for x, y in corners[::step])


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


def _range(texts: Sequence[str], default: tuple[float, float]) -> tuple[float, float]:
    """A range, written as two values of the parameter or as one, "low~high"."""
    texts = [part for text in texts for part in text.split("~")]
    if len(texts) != 2:
        return default
    low, high = sorted((_number(texts[0], default[0]), _number(texts[1], default[1])))
    return (low, high)
