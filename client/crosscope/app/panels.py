"""Small pieces of pages: a class with its evidence, bars, figures in a row, progress of a job.

Text that comes from data is escaped here before it becomes HTML.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import streamlit as st

from crosscope import JobInfo, JobState, Latent
from crosscope.app.columns import AXES, FLOORED
from crosscope.app.palette import CLASS_COLOURS, CLASS_NAMES, DARK, LIGHT, css_variables
from crosscope.app.text import count, duration, number, plain, visible, with_error, without_paths


@cache
def style() -> str:
    """The app's style sheet as an element of a page."""
    sheet = Path(__file__).with_name("app.css").read_text("utf-8")
    return f"<style>{css_variables('.stApp')}{sheet}</style>"


def class_chip(latent_class: str) -> str:
    """The class as HTML: a swatch and its name."""
    colour = CLASS_COLOURS.get(latent_class, CLASS_COLOURS["other"])
    name = escape(CLASS_NAMES.get(latent_class, latent_class))
    return f'<span class="xs-class"><i style="background:{colour}"></i>{name}</span>'


def evidence(latent: Latent, floor: float) -> None:
    """The class of a latent beside what it rests on; `floor` is `session.uselessness_floor`."""
    scaling = latent.chat_direction
    name = "base_uselessness" if latent.base_uselessness is not None else "base_uselessness_single"
    uselessness = number(getattr(latent, name), floor=floor if name in FLOORED else math.inf)
    pairs = (
        ("rel_norm", number(latent.rel_norm)),
        ("nu_err", with_error(scaling.nu_err.value, scaling.nu_err.se)),
        ("nu_rec", with_error(scaling.nu_rec.value, scaling.nu_rec.se)),
        (name, uselessness),
        ("num_active", count(latent.num_active)),
    )
    items = "".join(
        f'<span title="{escape(AXES[column].help)}"><span class="k">{escape(AXES[column].name)}</span> '
        f"{escape(value)}</span>"
        for column, value in pairs
    )
    st.html(f'<div class="xs-evidence">{class_chip(latent.latent_class)}{items}</div>')


def facts(items: Iterable[tuple[str, str] | tuple[str, str, str]]) -> None:
    """Named figures in a row that wraps: name, value, a remark below."""
    cells = "".join(
        f'<div><span class="k">{escape(item[0])}</span><span class="v">{escape(item[1])}</span>'
        + (f'<span class="k s">{escape(item[2])}</span>' if len(item) > 2 and item[2] else "")
        + "</div>"
        for item in items
    )
    st.html(f'<div class="xs-facts">{cells}</div>')


def bars(rows: Sequence[tuple[str, float, str, str]], largest: float | None = None) -> None:
    """Horizontal bars: name, size, text beside it, colour."""
    top = largest or max((size for _, size, _, _ in rows if not math.isnan(size)), default=0.0) or 1.0
    cells = "".join(
        f'<span class="k">{escape(name)}</span><span class="track"><div class="fill" style="width:'
        f'{0 if math.isnan(size) else 100 * max(0.0, min(1.0, size / top)):.1f}%;background:{colour}"></div></span>'
        f"<span>{escape(text)}</span>"
        for name, size, text, colour in rows
    )
    st.html(f'<div class="xs-bars">{cells}</div>')


def chips(texts: Sequence[str]) -> None:
    """Short texts, for instance tokens, with white space made visible."""
    shown = "".join(f"<span>{escape(visible(text))}</span>" for text in texts if text)
    st.html(f'<div class="xs-chips">{shown}</div>' if shown else '<span class="xs-note">none recorded</span>')


_STATES = {
    JobState.QUEUED: "queued",
    JobState.RUNNING: "running",
    JobState.SUCCEEDED: "done",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
}


def job_state(job: JobInfo) -> str:
    """Where a job stands, in words."""
    if job.state is JobState.QUEUED:
        before = f", {job.queue_position} before it" if job.queue_position else ""
        return f"queued{before}"
    attempt = f" (attempt {job.attempt})" if job.attempt > 1 else ""
    return f"{_STATES[job.state]}{attempt}"


STAGES: Mapping[str, float] = {"load": 0.05, "cache": 0.15, "train": 0.5, "analyse": 0.25, "publish": 0.05}
"""Stages of a job that makes a crosscoder, with their usual shares of its time."""
PAIR_STAGES: Mapping[str, float] = {"world": 0.05, "base": 0.65, "chat": 0.3}
"""The same of a job that makes the demo's pair."""


def total_fraction(job: JobInfo) -> float:
    """How much of a whole job is done, 0 to 1; never less than before, whichever stage it is in.

    What the server says, where it says it; else by usual shares of the stages.
    """
    if job.state is JobState.SUCCEEDED:
        return 1.0
    said = getattr(job, "total_fraction", None)
    if said:
        return min(1.0, max(0.0, said))
    shares = next((shares for shares in (STAGES, PAIR_STAGES) if job.stage in shares), {job.stage: 1.0})
    names = list(shares)
    before = sum(shares[name] for name in names[: names.index(job.stage)])
    return min(1.0, max(0.0, before + shares[job.stage] * job.fraction))


def job_title(job: JobInfo) -> str:
    """A job on a line, as Markdown."""
    return f"**{plain(job.name)}** · {plain(job.kind)} · {job_state(job)}"


def job_line(job: JobInfo) -> None:
    """A job in a list of several: a failed one is a line like the others, its reason is on its own page."""
    if job.state is JobState.RUNNING:
        st.progress(total_fraction(job), text=_running(job))
    else:
        st.markdown(job_title(job))


def job_progress(job: JobInfo) -> None:
    """One job as what the page is about, with a bar while it runs and with its message."""
    job_line(job)
    message = plain(without_paths(job.message, job.recipe_yaml))
    if message and job.state is JobState.FAILED:
        st.error(message)
    elif message and not job.state.is_over:
        st.caption(message)


def _running(job: JobInfo) -> str:
    """A running job on a line: its whole and its stage, and how long it may take where the server says so."""
    eta_s = getattr(job, "eta_s", None)
    left = f" · about {duration(eta_s)} left" if eta_s else ""
    return f"{job_title(job)} · {total_fraction(job):.0%}{left} · {plain(job.stage)}"


def plot(figure: go.Figure, key: str, alt: str, *, zooms: bool = False, **options: Any) -> Any:
    """Draws a figure with axes that can be read on the viewer's theme; gives Streamlit's selection.

    Where it does not zoom, a finger that moves on it scrolls the page.
    """
    muted = (DARK if st.context.theme.type == "dark" else LIGHT).muted
    for update in (figure.update_xaxes, figure.update_yaxes):
        update(tickfont={"color": muted}, title_font={"color": muted}, fixedrange=not zooms)
    return st.plotly_chart(
        figure, key=key, alt=alt, **{"config": {"displaylogo": False, "displayModeBar": False}, **options}
    )
