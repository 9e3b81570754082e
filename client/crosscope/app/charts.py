"""Plotly figures, as pure functions of numbers. Both themes share them: Streamlit restyles text and background."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise

import numpy as np
import plotly.graph_objects as go

from crosscope import LookLayer
from crosscope.app.columns import AXES, CLASS_OF_NUMBER
from crosscope.app.palette import (
    ACTIVATION,
    CLASS_COLOURS,
    CLASS_NAMES,
    MODEL_COLOURS,
    NEUTRAL,
    OUTLINE,
    REL_NORM_SCALE,
)
from crosscope.app.selection import on_axis

NUM_BINS = 50
WEBGL_FROM = 3000
"""Points from which the scatter plot is drawn by WebGL."""
_MARGIN = {"l": 8, "r": 8, "t": 8, "b": 8}


def relative_norms(rel_norm: np.ndarray, classes: np.ndarray) -> go.Figure:
    """Histogram of the relative norm, bars in class colours; dead latents are left out.

    `customdata` holds each bar's range as `Selection.from_params` reads it.
    """
    edges = np.linspace(0, 1, NUM_BINS + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    figure = go.Figure()
    for number, name in enumerate(CLASS_OF_NUMBER[1:-1], start=1):
        counts, _ = np.histogram(rel_norm[classes == number], bins=edges)
        if counts.any():
            figure.add_bar(
                x=centres,
                y=counts,
                width=edges[1],
                customdata=[f"{low:.2f}~{high:.2f}" for low, high in pairwise(edges)],
                name=CLASS_NAMES[name],
                marker={"color": CLASS_COLOURS[name], "line": {"width": 0}},
                hovertemplate="relative norm %{x:.2f}<br>%{y:,} latents<extra>" + CLASS_NAMES[name] + "</extra>",
            )
    figure.update_layout(
        barmode="overlay", bargap=0.08, height=260, margin=_MARGIN, legend={"orientation": "h", "y": 1.12, "x": 0}
    )
    ticks = {"tickvals": [0, 0.25, 0.5, 0.75, 1], "ticktext": ["0 base", "¼", "½ shared", "¾", "1 chat"]}
    figure.update_xaxes(title="relative norm", range=[-0.02, 1.02], **ticks)
    figure.update_yaxes(title="latents (log)", type="log", dtick=1, range=log_range(figure))
    return figure


def log_range(figure: go.Figure) -> list[float]:
    """Range of a logarithmic axis on which a bar of one still shows."""
    largest = max((max(bar.y, default=1) for bar in figure.data), default=1)  # pyright: ignore[reportAttributeAccessIssue]
    return [-0.2, np.log10(max(2, largest)) + 0.1]


def scatter(
    columns: Mapping[str, np.ndarray],
    keep: np.ndarray,
    x: str,
    y: str,
    colour: str,
    area: Sequence[tuple[float, float]] = (),
    floor: float = math.inf,
    *,
    labels: Mapping[int, str] | None = None,
    starred: Sequence[int] = (),
) -> go.Figure:
    """Every kept latent as a point; `customdata` holds its id. `area` is outlined; values at `floor` show "≥".

    Latents with `labels` have a ring and show their label, `starred` ones are stars.
    """
    xs, ys = on_axis(x, columns[x]), on_axis(y, columns[y])
    ids = np.flatnonzero(keep & np.isfinite(xs) & np.isfinite(ys))
    shades = on_axis(colour, columns[colour])[ids]
    is_norm = colour == "rel_norm"
    marker = {
        "size": 4 if len(ids) > WEBGL_FROM else 6,
        "opacity": 0.75,
        "color": shades,
        "colorscale": [list(stop) for stop in REL_NORM_SCALE] if is_norm else "Cividis",
        "colorbar": {"title": {"text": axis_title(colour), "side": "right"}, "thickness": 10, "len": 0.9},
        **({"cmin": 0, "cmax": 1} if is_norm else {}),
    }
    if labels:
        rings = np.isin(ids, list(labels))
        marker["line"] = {"width": np.where(rings, 1.5, 0), "color": OUTLINE}
    if starred:
        marker["symbol"] = np.where(np.isin(ids, starred), "star", "circle")
    notes = _notes(columns, ids, (x, y, colour), floor, labels or {})
    kind = go.Scattergl if len(ids) > WEBGL_FROM else go.Scatter
    figure = go.Figure(
        kind(
            x=xs[ids],
            y=ys[ids],
            mode="markers",
            marker=marker,
            customdata=ids,
            text=notes,
            selected={"marker": {"opacity": 1}},
            unselected={"marker": {"opacity": 0.25}},
            hovertemplate=(
                f"latent %{{customdata}}<br>{axis_title(x)} %{{x:.3g}}<br>{axis_title(y)} %{{y:.3g}}"
                f"<br>{axis_title(colour)} %{{marker.color:.3g}}{'%{text}' if notes else ''}<extra></extra>"
            ),
        )
    )
    if area:
        path = "M" + "L".join(f"{px},{py}" for px, py in area) + "Z"
        figure.add_shape(type="path", path=path, line={"width": 1.5, "dash": "dot", "color": OUTLINE})
    figure.update_layout(height=520, margin=_MARGIN, dragmode="select", showlegend=False)
    figure.update_xaxes(title=axis_title(x), zeroline=False)
    figure.update_yaxes(title=axis_title(y), zeroline=False)
    return figure


def _notes(
    columns: Mapping[str, np.ndarray], ids: np.ndarray, names: Sequence[str], floor: float, labels: Mapping[int, str]
) -> list[str] | None:
    """For each latent, what its point adds when hovered: values that have reached `floor`, and its label. None if none
    has any.
    """
    reached = [(name, columns[name][ids] >= floor - 1e-3) for name in dict.fromkeys(names) if AXES[name].is_floored]
    labelled = [place for place, latent in enumerate(ids.tolist()) if latent in labels]
    if not labelled and not any(where.any() for _, where in reached):
        return None
    notes = np.full(len(ids), "", dtype=object)
    for name, where in reached:
        notes[where] += f"<br>{AXES[name].label} ≥ {floor:.2f}"
    for place in labelled:
        notes[place] += f"<br><b>{escape(labels[int(ids[place])])}</b>"
    return notes.tolist()


def layers(swept: Sequence[LookLayer], recommended: int | None) -> go.Figure:
    """Shares of the KL that each layer's streams carry, both directions, with standard errors over texts."""
    figure = go.Figure()
    into = (
        ("base's stream put into chat", "solid", "circle", [each.share_chat for each in swept], MODEL_COLOURS[0]),
        ("chat's stream put into base", "dot", "square", [each.share_base for each in swept], MODEL_COLOURS[1]),
    )
    for name, dash, symbol, shares, colour in into:
        figure.add_scatter(
            x=[each.layer for each in swept],
            y=[share.value for share in shares],
            error_y={"array": [share.se for share in shares], "thickness": 1, "width": 3, "color": colour},
            name=name,
            mode="lines+markers",
            line={"color": colour, "width": 2, "dash": dash},
            marker={"symbol": symbol, "size": 8},
            hovertemplate="layer %{x}<br>%{y:.0%} of the difference<extra>" + name + "</extra>",
        )
    if recommended is not None:
        line = {"color": OUTLINE, "dash": "dash", "width": 1}
        figure.add_vline(x=recommended, line=line, annotation_text="recommended", annotation_position="bottom left")
    figure.update_layout(height=280, margin={**_MARGIN, "t": 30}, legend={"orientation": "h", "y": 1.2, "x": 0})
    ends = [swept[0].layer - 0.3, swept[-1].layer + 0.3]
    figure.update_xaxes(title="layer", range=ends, dtick=1 if len(swept) <= 16 else None)
    figure.update_yaxes(title="share of the difference", tickformat=".0%", rangemode="tozero")
    return figure


def axis_title(column: str) -> str:
    """Name of a column as it stands at an axis."""
    axis = AXES[column]
    return f"log₁₀ {axis.label}" if axis.is_log else axis.label


def activations(counts: Sequence[int], edges: Sequence[float]) -> go.Figure:
    """Histogram of a latent's scaled activations over the analysis, counts on a logarithmic axis."""
    low, high = np.asarray(edges[:-1]), np.asarray(edges[1:])
    figure = go.Figure(
        go.Bar(
            x=(low + high) / 2,
            y=list(counts),
            width=high - low,
            marker={"color": ACTIVATION, "line": {"width": 0}},
            customdata=np.stack([low, high], axis=1),
            hovertemplate="%{customdata[0]:.2f} to %{customdata[1]:.2f}<br>%{y:,} tokens<extra></extra>",
        )
    )
    figure.update_layout(height=170, margin=_MARGIN, showlegend=False, bargap=0.02)
    figure.update_xaxes(title="scaled activation")
    figure.update_yaxes(title="tokens (log)", type="log", dtick=1, range=log_range(figure))
    return figure


def curves(steps: Sequence[float], series: Mapping[str, Sequence[float]], title: str) -> go.Figure:
    """Figures over training steps; base and chat keep their colours and differ in dash."""
    figure = go.Figure()
    for name, values in series.items():
        colour = MODEL_COLOURS[1] if name.endswith("chat") else MODEL_COLOURS[0] if name.endswith("base") else NEUTRAL
        figure.add_scatter(
            x=list(steps),
            y=list(values),
            name=name.rpartition("_")[2],
            mode="lines+markers" if len(steps) < 3 else "lines",
            connectgaps=True,
            line={"color": colour, "width": 2, "dash": "dot" if name.endswith("base") else "solid"},
            hovertemplate="step %{x}<br>%{y:.4g}<extra>" + name + "</extra>",
        )
    figure.update_layout(
        height=220,
        margin={**_MARGIN, "t": 30},
        title={"text": title, "font": {"size": 13}, "x": 0},
        showlegend=len(series) > 1,
        legend={"orientation": "h", "y": 1.2, "x": 1, "xanchor": "right"},
    )
    figure.update_xaxes(title="step")
    return figure
