"""Jobs: the queued, running and finished ones; progress, figures and log of one; a new one from a recipe."""

from datetime import datetime

import streamlit as st

from crosscope import JobInfo, JobState, _cards, _tables
from crosscope.app import (
    address,
    errors,
    new_job,
    panels,
    runs,
    session,
    text,
    url,
)
from crosscope.app.table_view import Column, table_view
from crosscope_proto.stages import in_order

REFRESH_S = 2
LIST_HEIGHT = 214
"""Height of the list of jobs in pixels: six rows."""
LOG_LINES = 100
OFFERED = 12
"""Jobs that are offered to stand beside one, the newest; the URL may name older ones."""
MAKES_CROSSCODERS = ("crosscoder", "published", "causal")
"""Kinds of jobs that end with a crosscoder to browse."""
AGAIN = (JobState.FAILED, JobState.CANCELLED)
"""States of jobs that can be queued again."""


def page() -> None:
    """Draws the page."""
    st.title("Jobs")
    part = url.segments(st.container(), "Part of the page", (new_job.LIST, new_job.NEW), new_job.LIST, new_job.SHOW)
    if part == new_job.NEW:
        new_job.draw()
        return
    new_job.said()
    with errors.shown_errors():
        active = any(not job.state.is_over for job in session.jobs())
        st.fragment(overview, run_every=REFRESH_S if active else None)(active)


def overview(was_active: bool) -> None:
    """Draws the list and the chosen job; repeatedly, while a job is active."""
    with errors.shown_errors():
        jobs = session.jobs()
        if not jobs:
            st.markdown("No job yet. Make a new one here, or make the demo with `crosscope demo`.")
            return
        shown = chosen_job(jobs)
        st.header("All jobs")
        listing(jobs, shown)
        st.space("small")
        detail(shown, jobs)
        if was_active and all(job.state.is_over for job in jobs):
            st.rerun()


def chosen_job(jobs: list[JobInfo]) -> JobInfo:
    """The job of the URL; else the one that runs, else the newest."""
    wanted = st.query_params.get("job")
    found = next((job for job in jobs if job.id == wanted), None)
    if found is None and wanted is not None:
        with errors.shown_errors():
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


def detail(job: JobInfo, jobs: list[JobInfo]) -> None:
    """One job: state, stages, figures, log, recipe; other jobs beside it."""
    panels.job_progress(job)
    actions(job)
    if job.stage_seconds:
        panels.facts([(stage, _tables.duration(job.stage_seconds[stage])) for stage in in_order(job.stage_seconds)])
    if job.metrics:
        panels.facts([(name.replace("_", " "), text.number(value, 4)) for name, value in sorted(job.metrics.items())])
    beside = chosen_beside(job, jobs)
    runs.draw(job, beside)
    if beside:
        st.subheader("What differs in their recipes")
        runs.draw_differences([job, *beside])
    log(job)
    if box := panels.folded("Recipe", f"recipe-of-{job.id}"):
        box.code(job.recipe_yaml, language="yaml")


def chosen_beside(job: JobInfo, jobs: list[JobInfo]) -> list[JobInfo]:
    """The jobs whose curves are drawn beside a job's own: the URL's `beside`."""
    others = {each.id: each for each in jobs if each.id != job.id and each.metrics}
    if not job.metrics or not others:
        return []
    given = st.query_params.get_all("beside")
    offered = [each for i, each in enumerate(others) if i < OFFERED or each in given]
    chosen = url.several("Beside it", offered, "beside", lambda job_id: runs.short_name(others[job_id]))
    notes = [f"{len(others) - len(offered)} older jobs are not offered"] if len(offered) < len(others) else []
    if len(chosen) > runs.MOST_BESIDE:
        notes.append(f"at most {runs.MOST_BESIDE} stand beside one, the first of those chosen")
    if notes:
        st.caption("; ".join(notes).capitalize() + ".")
    return [others[job_id] for job_id in chosen][: runs.MOST_BESIDE]


def actions(job: JobInfo) -> None:
    """What can be done with a job."""
    with st.container(horizontal=True):
        if not job.state.is_over and st.button("Cancel", key=f"cancel-{job.id}"):
            session.client().jobs.cancel(job.id)
            session.jobs.clear()
            st.rerun()
        if job.state in AGAIN and st.button("Retry from its checkpoints", key=f"retry-{job.id}"):
            session.client().jobs.retry(job.id)
            session.jobs.clear()
            st.rerun()
        if st.button("Clone", key=f"clone-{job.id}", help="Opens the form with this job's recipe."):
            new_job.clone(job.recipe_yaml)
            st.rerun()
        if job.state is JobState.SUCCEEDED and job.kind in MAKES_CROSSCODERS:
            session.link("overview", f"Open {job.name}", crosscoder=job.name)
            session.link("atlas", "Atlas", crosscoder=job.name)


def log(job: JobInfo) -> None:
    """The end of a job's log, if the person asks for it."""
    if not url.toggle(st.container(), "Log", "log"):
        return
    with errors.shown_errors(part="log"):
        lines = list(_cards.log_lines(session.client().jobs.log(job.id, LOG_LINES)))
        shown = [text.without_paths(line, job.recipe_yaml) for line in lines]
        st.code("\n".join(shown) or "Nothing yet: no attempt has begun.", language=None, wrap_lines=True)
