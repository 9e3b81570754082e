"""Plotly figures, as pure functions of numbers. Both themes share them: Streamlit restyles text and background."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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

TOKENS_A_SECOND = "Tokens a second"
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


@dataclass(frozen=True)
class Line:
    """One curve of a chart."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str
    dash: str = "solid"


def curves(lines: Sequence[Line], title: str) -> go.Figure:
    """Figures over training steps."""
    figure = go.Figure()
    for line in lines:
        figure.add_scatter(
            x=list(line.x),
            y=list(line.y),
            name=line.name,
            mode="lines+markers" if len(line.x) < 3 else "lines",
            connectgaps=True,
            line={"color": line.colour, "width": 2, "dash": line.dash},
            hovertemplate="step %{x}<br>%{y:.4g}<extra>" + line.name.replace("%", "") + "</extra>",
        )
    figure.update_layout(
        height=220 + 18 * max(0, len(lines) - 2),
        margin={**_MARGIN, "t": 30},
        title={"text": title, "font": {"size": 13}, "x": 0},
        showlegend=len(lines) > 1,
        legend={"orientation": "h", "y": -0.3, "x": 0},
    )
    figure.update_xaxes(title="step")
    figure.update_yaxes(rangemode="tozero" if title == TOKENS_A_SECOND else "normal")
    return figure


def norms(steps: Sequence[int], counts: np.ndarray) -> go.Figure:
    """The histogram of relative norms as it forms: `counts: [step, bin]` shaded by the share of the step's latents."""
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    edges = np.linspace(0, 1, counts.shape[1] + 1)
    figure = go.Figure()
    figure.add_heatmap(
        x=list(steps),
        y=(edges[:-1] + edges[1:]) / 2,
        z=np.sqrt(shares.T),
        customdata=counts.T,
        colorscale=[[0, "rgba(107,127,140,0)"], [1, ACTIVATION]],
        showscale=False,
        hovertemplate="step %{x}<br>relative norm %{y:.3f}<br>%{customdata} latents<extra></extra>",
    )
    figure.update_layout(height=240, margin={**_MARGIN, "t": 30})
    figure.update_layout(title={"text": "Relative norm as it forms", "font": {"size": 13}, "x": 0})
    figure.update_xaxes(title="step")
    figure.update_yaxes(title="relative norm", range=[0, 1])
    return figure


def histogram(counts: Sequence[int], step: int) -> go.Figure:
    """The histogram of relative norms at a step, in equal bins from 0 to 1."""
    edges = np.linspace(0, 1, len(counts) + 1)
    figure = go.Figure()
    figure.add_bar(
        x=(edges[:-1] + edges[1:]) / 2,
        y=list(counts),
        width=1 / len(counts),
        marker={"color": NEUTRAL, "line": {"width": 0.5, "color": OUTLINE}},
        hovertemplate="relative norm %{x:.3f}<br>%{y} latents<extra></extra>",
    )
    figure.update_layout(height=240, margin={**_MARGIN, "t": 30}, bargap=0)
    figure.update_layout(title={"text": f"Relative norm at step {step}", "font": {"size": 13}, "x": 0})
    figure.update_xaxes(title="0 base only, ½ shared, 1 chat only", range=[0, 1])
    figure.update_yaxes(title="latents", rangemode="tozero")
    return figure
