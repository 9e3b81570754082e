"""Curves of jobs, alone or side by side, the histogram of relative norms, and what differs in two recipes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import streamlit as st

from crosscope import JobEvent, JobInfo, JobState
from crosscope.app import charts, follow, panels, recipe_text, session
from crosscope.app.palette import MODEL_COLOURS, NEUTRAL, RUN_COLOURS
from crosscope.app.recipe_schema import dotted
from crosscope.app.table_view import Column, table_view
from crosscope_proto.recipe import RecipeError, parse_recipe, recipe_dict

FIGURES = (
    ("loss", "Loss"),
    ("fve", "Variance explained"),
    ("l0", "L0, latents a token"),
    ("dead_share", "Dead latents, share"),
    ("tokens_per_second", charts.TOKENS_A_SECOND),
)
"""The charts: what the names of their figures begin with, and their titles."""
MOST_BESIDE = len(RUN_COLOURS) - 1
"""Jobs that can stand beside one."""
HEAD_CHARACTERS = 40


def draw(job: JobInfo, beside: Sequence[JobInfo]) -> None:
    """Draws the curves of a job, with those of other jobs in the same charts, and its histogram."""
    runs = [each for each in (job, *beside) if each.state is not JobState.QUEUED]
    events = {run.id: follow.follower(session.client(), run.id, run.attempt).events() for run in runs}
    drawn = [(prefix, title, _lines(runs, events, prefix)) for prefix, title in FIGURES]
    drawn = [(prefix, title, lines) for prefix, title, lines in drawn if lines]
    with st.container(key="wrap-curves"):
        for row in range(0, len(drawn), 2):
            for column, (prefix, title, lines) in zip(st.columns(2), drawn[row : row + 2], strict=False):
                with column:
                    panels.plot(charts.curves(lines, title), f"curve-{prefix}-{job.id}", f"{title} over training steps")
        _norms(job, events.get(job.id, []))


def _lines(runs: Sequence[JobInfo], events: Mapping[str, list[JobEvent]], prefix: str) -> list[charts.Line]:
    lines: list[charts.Line] = []
    for place, run in enumerate(runs):
        steps, series = follow.series(events[run.id])
        for name, values in series.items():
            if name == prefix or name.startswith(f"{prefix}_"):
                keep = np.flatnonzero(np.isfinite(values) & (np.asarray(steps) > 0))
                if len(keep):
                    x, y = [steps[i] for i in keep], values[keep].tolist()
                    lines.append(_line(run, name, x, y, place if len(runs) > 1 else None))
    return lines


def _line(run: JobInfo, name: str, x: Sequence[float], y: Sequence[float], place: int | None) -> charts.Line:
    """A run's curve: alone by the model's colour, side by side by the run's; base is dotted in both."""
    dash = "dot" if name.endswith("base") else "solid"
    part = name.rpartition("_")[2]
    if place is None:
        of_model = {"base": MODEL_COLOURS[0], "chat": MODEL_COLOURS[1]}
        return charts.Line(part, x, y, of_model.get(part, NEUTRAL), dash)
    label = f"{short_name(run)} {part}" if part in ("base", "chat", "difference") else short_name(run)
    return charts.Line(label, x, y, RUN_COLOURS[place], dash)


def short_name(job: JobInfo) -> str:
    """A job's name and the end of its id, which tells it from others of the name."""
    return f"{job.name} {job.id[-4:]}"


def _norms(job: JobInfo, events: list[JobEvent]) -> None:
    measured = [event for event in events if event.rel_norms]
    if not measured:
        return
    steps, counts = [event.step for event in measured], np.array([event.rel_norms for event in measured])
    left, right = st.columns(2)
    with left:
        panels.plot(charts.histogram(counts[-1].tolist(), steps[-1]), f"norms-{job.id}", _norms_in_words(counts[-1]))
    if len(steps) > 1:
        with right:
            alt = f"Relative norms over {len(steps)} points of the training, as shares of latents"
            panels.plot(charts.norms(steps, counts), f"norms-over-{job.id}", alt)


def _norms_in_words(counts: np.ndarray) -> str:
    third = len(counts) // 3
    low, high, all_of = int(counts[:third].sum()), int(counts[-third:].sum()), int(counts.sum())
    return f"Relative norms of {all_of} latents: {low} below a third, {all_of - low - high} between, {high} above"


def differences(jobs: Sequence[JobInfo]) -> list[tuple[str, list[str]]]:
    """The fields in which the recipes of jobs differ, with the value in each; defaults count as they are."""
    flat = [dict(_flat(_document(job.recipe_yaml))) for job in jobs]
    names = dict.fromkeys(name for each in flat for name in each)
    rows = [(name, [each.get(name, "–") for each in flat]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def draw_differences(jobs: Sequence[JobInfo]) -> None:
    """Draws a table of what differs in the recipes of jobs."""
    found = differences(jobs)
    if not found:
        st.markdown("Their recipes say the same.")
        return
    columns = [Column("field", [name for name, _ in found], is_text=True)]
    for place, job in enumerate(jobs):
        columns.append(Column(short_name(job)[:HEAD_CHARACTERS], [values[place] for _, values in found], is_text=True))
    table_view("differences", "What differs in their recipes", columns)


def _document(recipe: str) -> Mapping[str, Any]:
    """A recipe with its defaults; as it is written where this version cannot read it."""
    try:
        return recipe_dict(parse_recipe(recipe))
    except RecipeError:
        return recipe_text.read(recipe) or {}


def _flat(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [pair for name, inner in value.items() for pair in _flat(inner, (*path, str(name)))]
    if isinstance(value, list | tuple) and any(isinstance(each, Mapping) for each in value):
        return [pair for i, inner in enumerate(value) for pair in _flat(inner, (*path, i))]
    return [(dotted(path), recipe_text.shown(list(value) if isinstance(value, tuple) else value))]
