"""Jobs: what is queued, running and done; one job's progress and figures; submitting a recipe."""

from collections.abc import Mapping
from datetime import datetime

import numpy as np
import streamlit as st

from crosscope import JobInfo, JobState
from crosscope.app import charts, follow, panels, session, tables, text

REFRESH_S = 2
LIST_HEIGHT = 214
"""Height of the list of jobs in pixels: six rows."""
LIST_WIDTHS = {"state": 130, "done": 60, "took": 70}
"""Of columns whose texts grow while the list is shown, in pixels."""
FIGURES = (("loss", "Loss"), ("fve", "Variance explained"), ("l0", "L0, latents a token"))
"""What is drawn: names of figures begin with the first, the chart is called the second."""
MAKES_CROSSCODERS = ("crosscoder", "published")
"""Kinds of jobs that end with a crosscoder to browse."""
STAGES = ("load", "hash", "hash-data", "fill", "train", "analyse", "fidelity", "publish")
RECIPE = """\
kind: crosscoder
name: my-crosscoder
pair: {name: demo}
layer: 2
data:
  - name: documents
    source: jsonl
    path: documents.jsonl
    text_column: text
crosscoder:
  variant: batch_topk
  num_latents: 1024
  k: 12
"""


def page() -> None:
    """Draws the page."""
    st.title("Jobs")
    left, right = st.columns([2, 3], gap="large")
    with left:
        submit()
    with right, session.shown_errors():
        active = any(not job.state.is_over for job in session.jobs())
        st.fragment(overview, run_every=REFRESH_S if active else None)(active)


def overview(was_active: bool) -> None:
    """The chosen job and the list; drawn again and again while something runs."""
    with session.shown_errors():
        jobs = session.jobs()
        if not jobs:
            st.markdown("No job yet. Submit a recipe, or make the demo with `crosscope demo`.")
            return
        shown = chosen_job(jobs)
        st.subheader("All jobs")
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
    """Jobs, newest first; a click shows one."""
    rows = {
        "name": [job.name for job in jobs],
        "kind": [job.kind for job in jobs],
        "state": [panels.job_state(job) for job in jobs],
        "done": [100.0 if job.state is JobState.SUCCEEDED else 100 * job.fraction for job in jobs],
        "queued at": [f"{datetime.fromtimestamp(job.created_at):%d %b %H:%M}" for job in jobs],
        "took": [
            text.duration(job.ended_at - job.started_at) if job.ended_at and job.started_at else "" for job in jobs
        ],
        "id": [job.id for job in jobs],
    }
    row = tables.table("jobs", rows, {"done": tables.PERCENT}, max_height=LIST_HEIGHT, widths=LIST_WIDTHS)
    if row is not None and jobs[row].id != shown.id:
        st.query_params["job"] = jobs[row].id
        st.rerun()


def detail(job: JobInfo) -> None:
    """One job: state, stages, figures, recipe."""
    panels.job_progress(job)
    row = st.container(horizontal=True)
    with row:
        if not job.state.is_over and st.button("Cancel", key=f"cancel-{job.id}"):
            session.client().jobs.cancel(job.id)
            session.jobs.clear()
            st.rerun()
        if job.state is JobState.SUCCEEDED and job.kind in MAKES_CROSSCODERS:
            session.link("overview", f"Open {job.name}", crosscoder=job.name)
            session.link("atlas", "Atlas", crosscoder=job.name)
    if job.stage_seconds:
        panels.facts([(stage, text.duration(seconds)) for stage, seconds in in_order(job.stage_seconds)])
    if job.metrics:
        panels.facts([(name.replace("_", " "), text.number(value, 4)) for name, value in sorted(job.metrics.items())])
    figures(job)
    with st.expander("Recipe"):
        st.code(job.recipe_yaml, language="yaml")


def in_order(stage_seconds: Mapping[str, float]) -> list[tuple[str, float]]:
    """Stages in the order in which a job goes through them, others first."""
    return sorted(stage_seconds.items(), key=lambda pair: STAGES.index(pair[0]) if pair[0] in STAGES else -1)


def figures(job: JobInfo) -> None:
    """Curves of what was measured so far."""
    if job.state is JobState.QUEUED:
        return
    steps, series = follow.series(follow.follower(session.client(), job.id).events())
    for prefix, title in FIGURES:
        drawn = {name: values for name, values in series.items() if matches(name, prefix)}
        if drawn:
            figure = charts.curves(*measured(steps, drawn), title)
            panels.plot(figure, f"curve-{prefix}-{job.id}", f"{title} over training steps")


def matches(name: str, prefix: str) -> bool:
    """Whether a figure belongs in a chart: "loss" itself or "loss_…"."""
    return name == prefix or name.startswith(f"{prefix}_")


def measured(steps: list[int], series: Mapping[str, np.ndarray]) -> tuple[list[float], dict[str, list[float]]]:
    """Only the steps at which any of these figures was measured."""
    table = np.stack(list(series.values()))
    keep = np.flatnonzero(np.isfinite(table).any(axis=0) & (np.asarray(steps) > 0))
    return [steps[i] for i in keep], {name: values[keep].tolist() for name, values in series.items()}


def submit() -> None:
    """A field for a recipe, checked by the server at every submission."""
    st.subheader("Submit a recipe")
    recipe = st.text_area("Recipe, YAML", RECIPE, key="recipe", height=320)
    row = st.container(horizontal=True)
    check = row.button("Check")
    send = row.button("Submit", type="primary")
    if not (check or send):
        return
    with session.shown_errors():
        # A line break makes it YAML to the SDK, never the path of a file on the app's machine.
        job = session.client().jobs.submit(recipe if "\n" in recipe else f"{recipe}\n", validate_only=not send)
        if check and not send:
            st.success(f"The recipe is sound: a job {job.info.kind} named {job.info.name}.")
            return
        session.jobs.clear()
        st.query_params["job"] = job.id
        st.success(f"Queued as {job.id}.", icon=None)
