"""Small parts of pages: a class with its evidence, bars, figures in a row, progress of a job.

Text that comes from data is escaped here before it becomes HTML.
"""

import math
from collections.abc import Iterable, Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from crosscope import JobInfo, JobState, Judgement, Latent, _cards
from crosscope.app.columns import AXES
from crosscope.app.palette import CLASS_COLOURS, CLASS_NAMES, DARK, LIGHT, SPECIFIC_NAMES, css_variables
from crosscope.app.text import count, number, plain, visible, with_error, without_paths

_VERDICT_HELP = "What the measurements say of the class, and to which model the latent is specific (math §6)."

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from streamlit.delta_generator import DeltaGenerator


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
    """Draws the class of a latent beside the figures that it rests on; `floor` is `session.uselessness_floor`.

    If the relative norm is undefined, as in a difference dictionary, the β ratio takes its place and that of ν.
    """
    scaling, ratio = latent.chat_direction, latent.beta_ratio
    name = "base_uselessness" if latent.base_uselessness is not None else "base_uselessness_single"
    uselessness = number(getattr(latent, name), floor=floor if AXES[name].is_floored else math.inf)
    if math.isnan(latent.rel_norm) and not math.isnan(ratio.value):
        figures = [("beta_ratio", with_error(ratio.value, ratio.se))]
    else:
        figures = [
            ("rel_norm", number(latent.rel_norm)),
            ("nu_err", with_error(scaling.nu_err.value, scaling.nu_err.se)),
            ("nu_rec", with_error(scaling.nu_rec.value, scaling.nu_rec.se)),
            (name, uselessness),
        ]
    figures.append(("num_active", count(latent.num_active)))
    items = "".join(
        f'<span title="{escape(AXES[column].meaning)}"><span class="k">{escape(AXES[column].label)}</span> '
        f"{escape(value)}</span>"
        for column, value in figures
    )
    judged = f'<span class="xs-judged">{class_chip(latent.latent_class)} {verdict(latent.verdict)}</span>'
    st.html(f'<div class="xs-evidence">{judged}{items}</div>')


def verdict(judgement: Judgement) -> str:
    """A verdict with its reasons as HTML, and the model that the latent is specific to."""
    specific_to = f"; {SPECIFIC_NAMES[judgement.specific_to]}" if judgement.specific_to else ""
    return f'<span class="xs-verdict" title="{escape(_VERDICT_HELP)}">{escape(f"{judgement}{specific_to}")}</span>'


def folded(label: str, key: str, *, opened: bool = False) -> "DeltaGenerator | None":
    """Draws an expander; returns its inside while it is open. What it holds is drawn only then."""
    box = st.expander(label, opened, key=key, on_change="rerun")
    return box if box.open else None


def together(*parts: str) -> None:
    """Draws parts of a page as one element: the browser takes as long for a small element as for a large one."""
    st.html("".join(parts))


def head(title: str) -> str:
    """A heading as HTML, as large as Streamlit's own."""
    return f"<h2>{escape(title)}</h2>"


def caption(said: str) -> str:
    """A remark as HTML; `said` is plain text."""
    return f'<p class="xs-caption">{escape(said)}</p>'


def facts(items: Iterable[tuple[str, str] | tuple[str, str, str]]) -> None:
    """Draws named figures in a row that wraps: name, value, a remark below."""
    st.html(facts_html(items))


def facts_html(items: Iterable[tuple[str, str] | tuple[str, str, str]]) -> str:
    """What `facts` draws, as HTML."""
    cells = "".join(
        f'<div><span class="k">{escape(item[0])}</span><span class="v">{escape(item[1])}</span>'
        + (f'<span class="k s">{escape(item[2])}</span>' if len(item) > 2 and item[2] else "")
        + "</div>"
        for item in items
    )
    return f'<div class="xs-facts">{cells}</div>'


def bars(rows: Sequence[tuple[str, float, str, str]], largest: float | None = None) -> str:
    """Horizontal bars as HTML: name, size, text beside it, colour."""
    top = largest or max((size for _, size, _, _ in rows if not math.isnan(size)), default=0.0) or 1.0
    cells = "".join(
        f'<span class="k">{escape(name)}</span><span class="track"><div class="fill" style="width:'
        f'{0 if math.isnan(size) else 100 * max(0.0, min(1.0, size / top)):.1f}%;background:{colour}"></div></span>'
        f"<span>{escape(text)}</span>"
        for name, size, text, colour in rows
    )
    return f'<div class="xs-bars">{cells}</div>'


def chips(texts: Sequence[str]) -> None:
    """Draws short texts, for instance tokens, with white space made visible."""
    st.html(chips_html(texts))


def chips_html(texts: Sequence[str]) -> str:
    """What `chips` draws, as HTML."""
    shown = "".join(f"<span>{escape(visible(text))}</span>" for text in texts if text)
    return f'<div class="xs-chips">{shown}</div>' if shown else '<span class="xs-note">none recorded</span>'


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


def done(job: JobInfo) -> float:
    """Share of a whole job that is done, 0 to 1."""
    return 1.0 if job.state is JobState.SUCCEEDED else job.total_fraction


def job_title(job: JobInfo) -> str:
    """A job on a line, as Markdown."""
    return f"**{plain(job.name)}** · {plain(job.kind)} · {job_state(job)}"


def job_line(job: JobInfo) -> None:
    """Draws a job as a line of a list. Why a job failed is said on its own page."""
    if job.state is JobState.RUNNING:
        st.progress(done(job), text=_running(job))
    else:
        st.markdown(job_title(job))


def job_progress(job: JobInfo) -> None:
    """Draws the job that the page is about: a bar while it runs, and its message."""
    job_line(job)
    message = plain(without_paths(job.message, job.recipe_yaml))
    if message and job.state is JobState.FAILED:
        st.error(message)
    elif message and not job.state.is_over:
        st.caption(message)


def _running(job: JobInfo) -> str:
    """A running job on a line: how far it is, how long it may still take if that is known, and its stage."""
    return " · ".join(filter(None, (job_title(job), _cards.job_progress(job), plain(job.stage))))


def plot(figure: "go.Figure", key: str, alt: str) -> None:
    """Draws a figure with axes in a colour of the viewer's theme. A finger that moves on it scrolls the page."""
    muted = (DARK if st.context.theme.type == "dark" else LIGHT).muted
    for update in (figure.update_xaxes, figure.update_yaxes):
        update(tickfont={"color": muted}, title_font={"color": muted}, fixedrange=True)
    st.plotly_chart(figure, key=key, alt=alt, config={"displaylogo": False, "displayModeBar": False})
