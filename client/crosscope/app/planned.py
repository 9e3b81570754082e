"""A plan on a page: whether a job fits on each device and how long it runs there, amounts, disk, downloads."""

from collections.abc import Sequence
from html import escape

import streamlit as st

from crosscope import DevicePlan, DiskPlan, InvalidInput, Plan, _plans
from crosscope.app import login, session, text

WORKERS = "the job workers"
"""The choice that plans for the devices of the job workers that listen now."""


def plan_of(recipe: str, device: str | None) -> tuple[Plan | None, tuple[tuple[str, str], ...]]:
    """The plan of a recipe's YAML, or what is wrong with it: fields with sentences. Raises the SDK's other errors."""
    return plans(login.token(), recipe, device)


@st.cache_data(ttl=5, max_entries=64, show_spinner=False)
def plans(token: str | None, recipe: str, device: str | None) -> tuple[Plan | None, tuple[tuple[str, str], ...]]:
    """What `plan_of` answers with a token."""
    try:
        return session.clients(token).jobs.plan(recipe, device=device), ()
    except InvalidInput as error:
        if not error.violations:
            raise
        return None, tuple((field, said) for field, said in error.violations)


def draw(plan: Plan, recipe: str) -> None:
    """Draws a plan and its warnings; paths that stand in `recipe` stay whole."""
    st.success(f"The recipe is sound: a job {text.plain(plan.job.kind)} named {text.plain(plan.job.name)}.")
    for device in plan.devices:
        _device(device, recipe)
    _table("What the job would take", _plans.rows(plan.entries), recipe)
    _disk(plan.disk, recipe)
    for download in plan.downloads:
        st.markdown(f"Download: {text.plain(_plans.download_line(download))}")
    warn(plan.warnings, recipe)


def warn(warnings: Sequence[str], recipe: str) -> None:
    """Warnings about a recipe."""
    for warning in warnings:
        st.warning(text.plain(text.without_paths(warning, recipe)))


def _device(device: DevicePlan, recipe: str) -> None:
    line = text.plain(_plans.device_line(device))
    if device.fits is False:
        st.error("\n".join([line, "", *(f"- {text.plain(way)}" for way in device.ways_out)]))
    else:
        st.markdown(f"**{line}**")
    _table(f"{device.name}: times and memory", _plans.device_rows(device), recipe)
    if device.rates:
        st.caption(f"Rates: {text.plain(device.rates)}.")


def _disk(disk: DiskPlan, recipe: str) -> None:
    if not disk.entries:
        return
    line = text.plain(_plans.disk_line(disk))
    if disk.fits is False:
        st.error(line)
    else:
        st.markdown(f"**{line}**")
    _table("What the job would write", _plans.rows(disk.entries), recipe)


def _table(label: str, rows: Sequence[tuple[str, str, str]], recipe: str) -> None:
    """A table whose notes run over several lines."""
    lines = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td class="num">{escape(much)}</td>'
        f"<td>{escape(text.without_paths(note, recipe))}</td></tr>"
        for name, much, note in rows
    )
    if rows:
        st.html(f'<table class="xs-plan" aria-label="{escape(label)}">{lines}</table>')
