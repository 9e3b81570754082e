"""Jobs: the queued, running and finished ones; progress and figures of one job; submission of a recipe."""

from collections.abc import Mapping, Sequence
from datetime import datetime

import numpy as np
import streamlit as st

from crosscope import JobInfo, JobState, Plan, _tables
from crosscope.app import address, charts, follow, panels, session, starter, text, url
from crosscope.app.table_view import Column, table_view
from crosscope_proto.stages import in_order

REFRESH_S = 2
LIST_HEIGHT = 214
"""Height of the list of jobs in pixels: six rows."""
FIGURES = (("loss", "Loss"), ("fve", "Variance explained"), ("l0", "L0, latents a token"))
"""The charts: what the names of their figures begin with, and their titles."""
MAKES_CROSSCODERS = ("crosscoder", "published", "causal")
"""Kinds of jobs that end with a crosscoder to browse."""
AGAIN = (JobState.FAILED, JobState.CANCELLED)
"""States of jobs that can be queued again."""
RECIPE, KEPT_RECIPE = "recipe", "jobs-recipe"
"""Keys of the field of the recipe, and of its text, which outlives the page."""


def page() -> None:
    """Draws the page."""
    st.title("Jobs")
    with st.container(key="wrap-page"):
        left, right = st.columns([2, 3], gap="large")
    with left:
        submit()
    with right, session.shown_errors():
        active = any(not job.state.is_over for job in session.jobs())
        st.fragment(overview, run_every=REFRESH_S if active else None)(active)


def overview(was_active: bool) -> None:
    """Draws the chosen job and the list; repeatedly, while a job is active."""
    with session.shown_errors():
        jobs = session.jobs()
        if not jobs:
            st.markdown("No job yet. Submit a recipe, or make the demo with `crosscope demo`.")
            return
        shown = chosen_job(jobs)
        st.header("All jobs")
        listing(jobs, shown)
        st.space("small")
        detail(shown)
        if was_active and all(job.state.is_over for job in jobs):
            st.rerun()


def chosen_job(jobs: list[JobInfo]) -> JobInfo:
    """The job of the URL; else the one that runs, else the newest."""
    wanted = st.query_params.get("job")
    found = next((job for job in jobs if job.id == wanted), None)
    if found is None and wanted is not None:
        with session.shown_errors():
            found = session.client().jobs.get(wanted).info
    running = next((job for job in jobs if job.state is JobState.RUNNING), jobs[0])
    return found or running


def listing(jobs: list[JobInfo], shown: JobInfo) -> None:
    """Jobs, newest first; a row shows its job."""
    took = [_tables.duration(job.ended_at - job.started_at) if job.ended_at and job.started_at else "" for job in jobs]
    columns = [
        Column("name", [job.name for job in jobs], is_text=True),
        Column("kind", [job.kind for job in jobs], is_text=True),
        Column("state", [panels.job_state(job) for job in jobs], is_text=True),
        Column("done", [f"{panels.done(job):.0%}" for job in jobs], "Of the whole job."),
        Column("queued at", [f"{datetime.fromtimestamp(job.created_at):%d %b %H:%M}" for job in jobs]),
        Column("took", took, "Of its latest attempt."),
        Column("id", [job.id for job in jobs], is_text=True),
    ]
    links = [address.here({"job": job.id}) for job in jobs]
    chosen = next((row for row, job in enumerate(jobs) if job.id == shown.id), None)
    table_view("jobs", "Jobs", columns, links, chosen=chosen, max_height=LIST_HEIGHT)


def detail(job: JobInfo) -> None:
    """One job: state, stages, figures, recipe."""
    panels.job_progress(job)
    row = st.container(horizontal=True)
    with row:
        if not job.state.is_over and st.button("Cancel", key=f"cancel-{job.id}"):
            session.client().jobs.cancel(job.id)
            session.jobs.clear()
            st.rerun()
        if job.state in AGAIN and st.button("Retry from its checkpoints", key=f"retry-{job.id}"):
            session.client().jobs.retry(job.id)
            session.jobs.clear()
            st.rerun()
        st.button("Start from its recipe", key=f"reuse-{job.id}", on_click=reuse, args=(job.recipe_yaml,))
        if job.state is JobState.SUCCEEDED and job.kind in MAKES_CROSSCODERS:
            session.link("overview", f"Open {job.name}", crosscoder=job.name)
            session.link("atlas", "Atlas", crosscoder=job.name)
    if job.stage_seconds:
        panels.facts([(stage, _tables.duration(job.stage_seconds[stage])) for stage in in_order(job.stage_seconds)])
    if job.metrics:
        panels.facts([(name.replace("_", " "), text.number(value, 4)) for name, value in sorted(job.metrics.items())])
    figures(job)
    with st.expander("Recipe"):
        st.code(job.recipe_yaml, language="yaml")


def reuse(recipe: str) -> None:
    """Puts a recipe into the field, at the next run."""
    st.session_state[KEPT_RECIPE] = recipe


def figures(job: JobInfo) -> None:
    """Draws curves of the figures that were measured so far."""
    if job.state is JobState.QUEUED:
        return
    steps, series = follow.series(follow.follower(session.client(), job.id, job.attempt).events())
    for prefix, title in FIGURES:
        drawn = {name: values for name, values in series.items() if matches(name, prefix)}
        if drawn:
            figure = charts.curves(*measured(steps, drawn), title)
            panels.plot(figure, f"curve-{prefix}-{job.id}", f"{title} over training steps")


def matches(name: str, prefix: str) -> bool:
    """Whether a figure belongs in a chart: "loss" itself or "loss_…"."""
    return name == prefix or name.startswith(f"{prefix}_")


def measured(steps: list[int], series: Mapping[str, np.ndarray]) -> tuple[list[float], dict[str, list[float]]]:
    """The figures at the steps at which any of them was measured."""
    table = np.stack(list(series.values()))
    keep = np.flatnonzero(np.isfinite(table).any(axis=0) & (np.asarray(steps) > 0))
    return [steps[i] for i in keep], {name: values[keep].tolist() for name, values in series.items()}


def submit() -> None:
    """Draws a field for a recipe, and what the server says when it is checked or submitted."""
    st.header("Submit a recipe")
    if KEPT_RECIPE not in st.session_state:
        st.session_state[KEPT_RECIPE] = first_recipe()
    st.session_state[RECIPE] = st.session_state[KEPT_RECIPE]
    recipe = st.text_area("Recipe, YAML", key=RECIPE, height=320, on_change=lambda: reuse(st.session_state[RECIPE]))
    row = st.container(horizontal=True)
    check = row.button("Check")
    send = row.button("Submit", type="primary")
    if not (check or send):
        return
    with session.shown_errors(recipe):
        # A line break makes it YAML to the SDK, never the path of a file on the app's machine.
        yaml = recipe if "\n" in recipe else f"{recipe}\n"
        if not send:
            checked(session.client().jobs.plan(yaml), recipe)
            return
        job = session.client().jobs.submit(yaml)
        warn(job.warnings, recipe)
        session.jobs.clear()
        url.keep("job", job.id)
        st.success(f"Queued as {job.id}.", icon=None)


def checked(plan: Plan, recipe: str) -> None:
    """Draws the warnings about a checked recipe, and what its job would take."""
    st.success(f"The recipe is sound: a job {text.plain(plan.job.kind)} named {text.plain(plan.job.name)}.")
    warn(plan.warnings, recipe)
    if not plan.entries:
        return
    columns = [
        Column("what", [entry.name for entry in plan.entries], is_text=True),
        Column("how much", [_tables.amount(entry.value, entry.unit) for entry in plan.entries]),
        Column("note", [text.without_paths(entry.note, recipe) for entry in plan.entries], is_text=True),
    ]
    table_view("plan", "What the job would take", columns)


def warn(warnings: Sequence[str], recipe: str) -> None:
    """Warnings about a recipe."""
    for warning in warnings:
        st.warning(text.plain(text.without_paths(warning, recipe)))


def first_recipe() -> str:
    """The first content of the field: a recipe that ran on this server, else a form to fill in."""
    chosen = session.chosen()
    if chosen is None:
        return starter.FORM
    with session.shown_errors():
        made = next((job.recipe_yaml for job in session.jobs() if job.version_id == chosen.version_id), "")
        return starter.of_published(made, session.manifest(chosen))
    return starter.of_published("", session.manifest(chosen))
