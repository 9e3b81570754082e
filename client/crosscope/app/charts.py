"""Plotly figures, as pure functions of numbers. Both themes share them: Streamlit restyles text and background."""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from crosscope import LookLayer
from crosscope._tables import count
from crosscope.app.palette import (
    ACTIVATION,
    MODEL_COLOURS,
    NEUTRAL,
    OUTLINE,
)

_MARGIN = {"l": 8, "r": 8, "t": 8, "b": 8}


def shares(values: Mapping[str, np.ndarray], title: str, limit: float, top: float = 1.5) -> go.Figure:
    """Histograms of some [latent] arrays, by name, as shares of the defined values; those above `top` count there.

    `limit` is a dotted line.
    """
    edges = np.linspace(0, top, 31)
    figure = go.Figure()
    for (name, each), colour, dash in zip(values.items(), (NEUTRAL, ACTIVATION), ("solid", "dot"), strict=True):
        defined = np.clip(each[np.isfinite(each)], 0, top)
        counts, _ = np.histogram(defined, bins=edges)
        figure.add_scatter(
            x=edges,
            y=np.append(counts, counts[-1]) / max(1, len(defined)),
            mode="lines",
            line={"shape": "hv", "color": colour, "width": 2.5, "dash": dash},
            name=name,
            hovertemplate=f"{title} %{{x:.2f}}<br>%{{y:.1%}} of {count(len(defined))} latents<extra>{name}</extra>",
        )
    figure.add_vline(x=limit, line={"width": 1.5, "dash": "dot", "color": OUTLINE})
    figure.update_layout(height=240, margin=_MARGIN, legend={"orientation": "h", "y": 1.15, "x": 0})
    figure.update_xaxes(title=title, range=[0, top])
    figure.update_yaxes(title="share of latents", tickformat=".0%", rangemode="tozero")
    return figure


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
