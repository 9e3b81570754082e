"""Histograms with a logarithmic height, drawn by the browser as SVG, so that no page needs a plotting library for one.

The pages of a first visit show only these. Knows nothing about the server.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from streamlit.components import v2

from crosscope.app.address import SCRIPT
from crosscope.app.columns import CLASS_OF_NUMBER
from crosscope.app.palette import ACTIVATION, CLASS_COLOURS, CLASS_NAMES, css_variables

_FOLDER = Path(__file__).parent
NUM_BINS = 50


@dataclass(frozen=True)
class Series:
    """Bars of one colour."""

    name: str
    """Stands in the legend; empty: it has none."""
    colour: str
    bars: Sequence[tuple[float, float, int, str]]
    """Both ends of a bin, how many are in it, and what stands for PLACE in the link."""


@dataclass(frozen=True)
class Bars:
    """A histogram."""

    series: Sequence[Series]
    title: str
    """What lies across."""
    counts: str
    """What is counted, in the plural."""
    ends: tuple[float, float]
    ticks: Sequence[tuple[float, str]]
    height: int
    latent: int = -1
    """The latent whose activations these are: a token that is pointed at marks its own. -1: none."""


@cache
def _component() -> Any:
    return v2.component(
        "crosscope_bars",
        html='<div class="root"></div>',
        css=css_variables(".root") + (_FOLDER / "bars_view.css").read_text("utf-8"),
        js=SCRIPT + "".join((_FOLDER / name).read_text("utf-8") for name in ("parts.js", "bars_view.js")),
    )


def bars_view(key: str, label: str, bars: Bars, *, href: str | None = None) -> None:
    """Draws a histogram; `label` names it for screen readers. A bar opens `href`, if there is one."""
    content = {"label": label, "href": href, **asdict(bars)}
    revision = hashlib.blake2b(json.dumps(content).encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
    _component()(key=key, data={**content, "revision": revision})


def relative_norms(rel_norm: np.ndarray, classes: np.ndarray) -> Bars:
    """Relative norms in the colours of the classes, without dead latents; PLACE is a bar's range in the URL."""
    edges = np.linspace(0, 1, NUM_BINS + 1)
    series = []
    for number, name in enumerate(CLASS_OF_NUMBER[1:-1], start=1):
        counts, _ = np.histogram(rel_norm[classes == number], bins=edges)
        found = [
            (float(low), float(high), int(count), f"{low:.2f}~{high:.2f}")
            for (low, high), count in zip(pairwise(edges), counts, strict=True)
            if count
        ]
        if found:
            series.append(Series(CLASS_NAMES[name], CLASS_COLOURS[name], found))
    ticks = [(0, "0 base"), (0.25, "¼"), (0.5, "½ shared"), (0.75, "¾"), (1, "1 chat")]
    return Bars(series, "relative norm", "latents", (-0.02, 1.02), ticks, 260)


def activations(latent: int, counts: Sequence[int], edges: Sequence[float]) -> Bars:
    """A latent's scaled activations over the analysis. A token that is pointed at marks its activation there."""
    bins = zip(pairwise(edges), counts, strict=True)
    found = [(float(low), float(high), int(count), "") for (low, high), count in bins if count]
    step = max(1, len(edges) // 6)
    ticks = [(float(edge), f"{edge:.3g}") for edge in edges[::step]]
    series = [Series("", ACTIVATION, found)]
    return Bars(series, "scaled activation", "tokens", (float(edges[0]), float(edges[-1])), ticks, 180, latent)
