"""A new job: the form of a recipe beside its YAML, what is wrong with it, what it would take, and the way to submit it.

The YAML is kept in the session, so that it outlives the page.
"""

import streamlit as st

from crosscope import CrosscopeError
from crosscope.app import (
    errors,
    planned,
    recipe_form,
    session,
    starter,
    text,
    url,
)
from crosscope_proto.rates import DEVICES

RECIPE, KEPT_RECIPE = "recipe", "jobs-recipe"
"""Keys of the field of the recipe, and of its text, which outlives the page."""
SUBMITTED = "jobs-submitted"
"""Key of what was said when a job was submitted: its id and the warnings."""
SHOW = "show"
"""Parameter of the part of the page."""
LIST, NEW = "Jobs", "New job"
HEIGHT = 420


@st.cache_data(ttl=60, show_spinner=False)
def schema() -> dict[str, object]:
    """The JSON schema of recipes."""
    return session.client().jobs.schema()


def keep(recipe: str) -> None:
    """Puts a recipe into the form, at the next run."""
    st.session_state[KEPT_RECIPE] = recipe


def clone(recipe: str) -> None:
    """Opens the form with a recipe."""
    keep(recipe)
    url.keep(SHOW, NEW)


def draw() -> None:
    """Draws form, YAML, plan and buttons."""
    if KEPT_RECIPE not in st.session_state:
        keep(first_recipe())
    recipe = st.session_state[KEPT_RECIPE]
    plan, wrong, failed = None, (), None
    device = st.query_params.get("device")
    try:
        # A line break makes it YAML to the SDK, never the path of a file on the app's machine.
        plan, wrong = planned.plan_of(f"{recipe}\n", device)
    except CrosscopeError as error:
        failed = error
    with st.container(key="wrap-new"):
        form, side = st.columns([1, 1], gap="large")
    with form:
        st.header("Form")
        with errors.shown_errors(part="form"):
            recipe_form.draw(schema(), recipe, keep, wrong)
    with side:
        st.header("YAML")
        _text()
        _buttons()
        devices = [planned.WORKERS, *(each.name for each in DEVICES)]
        url.choice(st.container(), "Plan for", devices, planned.WORKERS, "device")
        if failed is not None:
            errors.show_error(failed, recipe, part="plan")
        elif wrong:
            lines = [f"- `{field or 'whole'}`: {text.plain(text.without_paths(said, recipe))}" for field, said in wrong]
            st.error("\n".join(["This cannot be used as it is:", "", *lines]))
        elif plan is not None:
            planned.draw(plan, recipe)


def _text() -> None:
    st.session_state[RECIPE] = st.session_state[KEPT_RECIPE]
    st.text_area("Recipe, YAML", key=RECIPE, height=HEIGHT, on_change=lambda: keep(st.session_state[RECIPE]))


def _buttons() -> None:
    row = st.container(horizontal=True)
    row.button(
        "Check",
        help="What is typed is checked at each change; this checks the files again too.",
        on_click=planned.plans.clear,
    )
    row.button("Submit", type="primary", on_click=_submit)
    if refused := st.session_state.pop("jobs-refused", None):
        errors.show_error(refused, st.session_state[KEPT_RECIPE], part="submit")


def _submit() -> None:
    """Submits the recipe and shows its job, or keeps the error for the next run."""
    try:
        job = session.client().jobs.submit(f"{st.session_state[KEPT_RECIPE]}\n")
    except CrosscopeError as error:
        st.session_state["jobs-refused"] = error
        return
    st.session_state[SUBMITTED] = job.id, job.warnings
    session.jobs.clear()
    url.write({SHOW: None, "job": job.id})


def said() -> None:
    """Draws once what the server said when a job was submitted."""
    if SUBMITTED in st.session_state:
        job_id, warnings = st.session_state.pop(SUBMITTED)
        st.success(f"Queued as {job_id}.", icon=None)
        planned.warn(warnings, st.session_state[KEPT_RECIPE])


def first_recipe() -> str:
    """The first content of the field: a recipe that ran on this server, else a form to fill in."""
    chosen = session.chosen()
    if chosen is None:
        return starter.FORM
    with errors.shown_errors():
        made = next((job.recipe_yaml for job in session.jobs() if job.version_id == chosen.version_id), "")
        return starter.of_published(made, session.manifest(chosen))
    return starter.of_published("", session.manifest(chosen))
