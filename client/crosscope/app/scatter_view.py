"""A scatter plot of latents, drawn by the browser from whole columns.

The columns travel once: Streamlit does not send an equal message again. A filter sends one bit a latent; zooming,
hovering, boxes and lassos send nothing until one is finished, which is then a step of the address. Knows nothing about
the server.
"""

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from streamlit.components import v2

from crosscope.app.address import SCRIPT
from crosscope.app.columns import AXES, CLASS_OF_NUMBER, SPECIFIC_OF_NUMBER
from crosscope.app.palette import CIVIDIS, REL_NORM_SCALE, css_variables
from crosscope.app.selection import MAX_VERTICES, on_axis

_FOLDER = Path(__file__).parent
SIZES = "frequency"
"""The column of the points' sizes."""
ON_TOP = "on_top"
"""A column of its own: 1 for latents that are drawn above the others."""


@dataclass(frozen=True)
class Points:
    """What a scatter plot shows."""

    version: str
    """Name and version of the crosscoder; the columns are sent once for each."""
    keep: np.ndarray
    """[latent] bool: the points that are drawn, if they have a value on both axes."""
    x: str
    y: str
    colour: str
    area: Sequence[tuple[float, float]] = ()
    """Corners of a polygon on the axes, in log10 on logarithmic ones; points outside of it are pale."""
    floor: float = math.inf
    """The largest value of floored columns, which reads "≥"."""
    labels: Mapping[int, str] = field(default_factory=dict)
    """What people call a latent; it has a ring."""
    starred: Sequence[int] = ()
    """Latents that have a star."""

    def placed(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """[latent] bool: which latents have a value on both axes."""
        return np.isfinite(on_axis(self.x, columns[self.x])) & np.isfinite(on_axis(self.y, columns[self.y]))


@cache
def _component() -> Any:
    return v2.component(
        "crosscope_scatter",
        html='<div class="root"></div>',
        css=css_variables(".root") + (_FOLDER / "scatter_view.css").read_text("utf-8"),
        js=SCRIPT + "".join((_FOLDER / name).read_text("utf-8") for name in ("parts.js", "scatter_view.js")),
    )


@cache
def _columns() -> Any:
    source = (_FOLDER / "scatter_columns.js").read_text("utf-8")
    return v2.component("crosscope_scatter_columns", html="<span hidden></span>", js=source)


def scatter_view(
    key: str, label: str, columns: Mapping[str, np.ndarray], points: Points, *, href: str, area_href: str
) -> None:
    """Draws latents as points; `label` names the plot for screen readers.

    A click opens `href`, in which PLACE stands for the latent. A box or lasso opens `area_href`, in which AREA stands
    for its corners as `Selection.from_params` reads them.
    """
    names = list(dict.fromkeys((points.x, points.y, points.colour, SIZES)))
    _columns()(key=f"{key}-columns", data=packed(points.version, names, columns))
    content = {
        "label": label,
        "version": points.version,
        "keep": base64.b64encode(np.packbits(points.keep).tobytes()).decode(),
        "axes": {
            "x": _axis(points.x, points.floor),
            "y": _axis(points.y, points.floor),
            "colour": {**_axis(points.colour, points.floor), **_colours(points.colour)},
        },
        "area": [list(corner) for corner in points.area],
        "max_corners": MAX_VERTICES,
        "labels": {str(latent): text for latent, text in points.labels.items()},
        "starred": list(points.starred),
        "href": href,
        "area_href": area_href,
    }
    revision = hashlib.blake2b(json.dumps(content).encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
    _component()(key=key, data={**content, "revision": revision})


def packed(version: str, names: Sequence[str], columns: Mapping[str, np.ndarray]) -> bytes:
    """A line of JSON that names what follows, then the columns `names` and ON_TOP, [latent] float32 each."""
    values = [*(columns[name] for name in names), on_top(columns)]
    head = {"version": version, "columns": [*names, ON_TOP], "count": len(values[0])}
    return json.dumps(head).encode() + b"\n" + b"".join(each.astype("<f4").tobytes() for each in values)


def on_top(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """[latent] 1 for latents that chat alone has, by class or by what is measured, else 0."""
    chat_only = columns["latent_class"] == CLASS_OF_NUMBER.index("chat_only")
    return (chat_only | (columns["specific_to"] == SPECIFIC_OF_NUMBER.index("chat"))).astype(np.float32)


def axis_title(column: str) -> str:
    """Name of a column as it stands at an axis."""
    axis = AXES[column]
    return f"log₁₀ {axis.label}" if axis.is_log else axis.label


def _axis(name: str, floor: float) -> dict[str, Any]:
    axis = AXES[name]
    floored = floor if axis.is_floored and floor < math.inf else None
    return {"column": name, "label": axis.label, "title": axis_title(name), "log": axis.is_log, "floor": floored}


def _colours(name: str) -> dict[str, Any]:
    if name == "rel_norm":
        return {"ramp": [colour for _, colour in REL_NORM_SCALE], "ends": [0, 1]}
    return {"ramp": list(CIVIDIS), "ends": None}
