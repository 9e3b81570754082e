"""Steer: one prompt, answered by both models as they are and with latents changed, side by side as the words come."""

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import streamlit as st

from crosscope import CrosscoderInfo, InvalidInput, Steer
from crosscope.app import (
    address,
    answers,
    composer,
    errors,
    panels,
    prompts,
    session,
    steering,
    text,
    url,
)
from crosscope.app.answering import Answering
from crosscope.app.latent_list import latent_list
from crosscope.app.prompts import LabPrompt
from crosscope.app.steering import Sampling

ANSWERING = "steer-answering"
"""Key of the session state with the latest generation, and what was asked."""
PROBLEM = "steer-problem"
"""Key of the session state with what was wrong with the last edit."""
REFRESH_S = 0.4
"""How often answers are drawn while they come."""
LATENTS_HEIGHT = 230
"""Height of the table of a change's latents, which scrolls."""
STRENGTH_HELP = (
    "In units of the latent's maximum in the analysis. Add moves the stream by so much whether or not the latent "
    "fires; set makes the latent so strong. Scale is a factor: 0 takes the latent away, 1 changes nothing."
)
ROW_HELP = "The decoder row that is written: of the model that is changed, of the other one, or their difference."
LEFT_OUT_HELP = "Tokens that training left out, for instance BOS, where a latent's activation means nothing."


def page() -> None:
    """Draws the page."""
    chosen = session.chosen()
    if chosen is None:
        session.nothing_published("Steer")
        return
    st.title("Steer")
    with st.container(key="wrap-steer"):
        left, right = st.columns(2, gap="large")
    with left:
        st.header("Prompt")
        prompt = composer.fields(composer.current(), answered=True)
        sampling = sampling_fields()
    with right:
        changes = changes_fields(chosen)
    with errors.shown_errors():
        generation(prompt, changes, sampling, chosen)


def sampling_fields() -> Sampling:
    """How answers are drawn."""
    st.header("Answers")
    row = st.container(horizontal=True, vertical_alignment="bottom")
    default = Sampling()
    return Sampling(
        url.number(
            row,
            "Temperature",
            (0.0, 100.0),
            0.1,
            default.temperature,
            "temperature",
            width=125,
            help="0 takes the most probable token.",
        ),
        url.number(
            row,
            "Top p",
            (0.01, 1.0),
            0.05,
            default.top_p,
            "top_p",
            width=115,
            help="Draws from the most probable tokens that reach this sum.",
        ),
        url.whole_number(row, "Seed", (0, 999_999_999), default.seed, "seed", 120),
        url.whole_number(row, "Most tokens", (1, 8192), default.max_new_tokens, "max_new_tokens", 125),
        url.whole_number(row, "Samples", (1, 16), default.num_samples, "samples", 110),
    )


def changes_fields(info: CrosscoderInfo) -> list[Steer]:
    """Draws the changes of the URL and a field to add one; returns those that can be asked for."""
    st.header("Changes")
    changes, problems = steering.read(st.query_params.get_all(steering.PARAM))
    if problem := st.session_state.pop(PROBLEM, None):
        problems.append(problem)
    for problem in problems:
        st.warning(text.plain(problem))
    if not changes:
        st.markdown("No change yet: both models answer as they are. Add a latent, and they also answer steered.")
    for index, change in enumerate(changes):
        with st.container(border=True, key=f"change-{index}"):
            change_fields(changes, index, change)
            evidence(index, change, info)
    row = st.container(horizontal=True, vertical_alignment="bottom")
    row.number_input("Latent", 0, info.num_latents - 1, 0, key="steer-new", width=130)
    full = len(changes) >= steering.MAX_CHANGES
    row.button(
        "Add latent", on_click=lambda: write(steering.added(changes, st.session_state["steer-new"])), disabled=full
    )
    row.button(
        "Add the whole stream",
        on_click=lambda: write([*changes, Steer(swap_stream=True)]),
        disabled=full,
        help="Exchanges the whole stream for the other model's: the most that latents of this layer can do.",
    )
    if changes:
        left_out_switch(changes)
    return changes


def left_out_switch(changes: Sequence[Steer]) -> None:
    """A switch for changes at tokens that training left out, of all changes at once."""
    key = "steer-left-out"
    st.session_state[key] = all(change.include_left_out for change in changes)
    st.toggle(
        "Also at left-out tokens",
        key=key,
        help=LEFT_OUT_HELP,
        on_change=lambda: write(
            [steering.altered(change, include_left_out=st.session_state[key]) for change in changes]
        ),
    )


def write(changes: Sequence[Steer]) -> None:
    """Makes these the changes of the URL."""
    url.write({steering.PARAM: [str(change) for change in changes], "token": None})


def edit(changes: Sequence[Steer], index: int, field: str, key: str) -> None:
    """Gives one change what its widget says; what cannot be is said at the next run and changes nothing."""
    value = st.session_state[key]
    try:
        fields = {field: steering.latents_of(value) if field == "latents" else value}
        write([*changes[:index], steering.altered(changes[index], **fields), *changes[index + 1 :]])
    except InvalidInput as error:
        st.session_state[PROBLEM] = str(error)


def change_fields(changes: Sequence[Steer], index: int, change: Steer) -> None:
    """What is changed, how, how much, where; and a button to take it out."""
    row = st.container(horizontal=True, vertical_alignment="bottom", gap="small")

    def widget(field: str, value: Any) -> dict[str, Any]:
        key = f"change-{index}-{field}"
        st.session_state[key] = value
        return {"key": key, "on_change": edit, "args": (changes, index, field, key)}

    if change.latents:
        shown = ", ".join(map(str, change.latents))
        width = 110 if len(change.latents) == 1 else 240
        row.text_input("Latent", **widget("latents", shown), width=width, help="One, or several with commas.")
    actions = [name for name in steering.ACTIONS if (name == "swap_stream") == (not change.latents)]
    row.selectbox(
        "Action", actions, **widget("action", change.action), format_func=steering.ACTIONS.__getitem__, width=165
    )
    if change.action not in steering.WITHOUT_ROW:
        row.selectbox(
            "Row",
            list(steering.ROWS),
            **widget("row", change.row),
            format_func=steering.ROWS.__getitem__,
            width=155,
            help=ROW_HELP,
        )
    reaches = list(steering.REACHES)
    row.selectbox(
        "Where", reaches, **widget("reach", change.reach), format_func=steering.REACHES.__getitem__, width=155
    )
    row.button("Remove", key=f"remove-{index}", on_click=lambda: write([*changes[:index], *changes[index + 1 :]]))
    if change.amount is not None:
        low, high, _ = steering.STRENGTHS[change.action]
        unit = "a factor" if change.action == "scale" else "× its maximum"
        st.slider(
            f"Strength, {unit}",
            min(low, change.amount),
            max(high, change.amount),
            step=0.05,
            format="%.2f",
            **widget("amount", change.amount),
            help=STRENGTH_HELP,
        )
    if further := where(change):
        st.caption(text.plain(further))


def where(change: Steer) -> str:
    """Further limits of a change, which the URL sets and no field shows."""
    limits = []
    if change.roles:
        limits.append("only at " + ", ".join(role.name.lower() for role in change.roles) + " tokens")  # pyright: ignore[reportAttributeAccessIssue]
    if change.positions:
        limits.append("only at tokens " + ", ".join(map(str, change.positions)))
    return "; ".join(limits)


def evidence(index: int, change: Steer, info: CrosscoderInfo) -> None:
    """What a change's latents are: class, evidence, tokens at their peaks, a link; of several a table."""
    if unknown := steering.unknown([change], info.num_latents):
        st.warning(
            f"Latent {unknown[0]} does not exist; those of {text.plain(info.name)} are 0 to {info.num_latents - 1}."
        )
    elif len(change.latents) > 1:
        links = [address.href("latent", {"crosscoder": info.name, "latent": latent}) for latent in change.latents]
        label, ids = f"Latents of change {index + 1}", np.array(change.latents)
        latent_list(f"latents-of-{index}", label, ids, info, links, max_height=LATENTS_HEIGHT)
    elif change.latents:
        latent = session.latent(info.name, info.version_id, change.latents[0])
        panels.evidence(latent, session.uselessness_floor(info))
        with st.container(horizontal=True, vertical_alignment="center"):
            panels.chips(latent.top_tokens)
            session.link("latent", f"Open latent {latent.id}", crosscoder=info.name, latent=latent.id)


def generation(prompt: LabPrompt, changes: list[Steer], sampling: Sampling, info: CrosscoderInfo) -> None:
    """The buttons, and the answers of the latest generation."""
    arguments = {} if prompt.is_empty else prompt.to_answer().arguments()
    asked = json.dumps([info.name, info.version_id, arguments, [str(change) for change in changes], vars(sampling)])
    latest: tuple[str, Answering, LabPrompt] | None = st.session_state.get(ANSWERING)
    running = latest is not None and not latest[1].is_over
    row = st.container(horizontal=True, vertical_alignment="center")
    start = partial(generate, asked, prompt, arguments, changes, sampling, info)
    impossible = prompt.is_empty or bool(steering.unknown(changes, info.num_latents))
    row.button("Generate", type="primary", on_click=start, disabled=running or impossible)
    if running and latest:
        row.button("Stop", on_click=latest[1].stop)
    if prompt.is_empty:
        row.caption("Write a turn or a text, then generate.")
    if latest is None:
        return
    if latest[0] != asked:
        row.caption("The answers below were made with other settings. Generate again to answer these.")
    st.fragment(draw, run_every=REFRESH_S if running else None)(latest[1], latest[2], info, running)


def generate(
    asked: str,
    prompt: LabPrompt,
    arguments: dict[str, Any],
    changes: list[Steer],
    sampling: Sampling,
    info: CrosscoderInfo,
) -> None:
    """Starts a generation."""
    handle, arms = session.crosscoder(info.name, info.version_id), steering.arms(changes)
    ask = partial(handle.generate, **arguments, arms=arms, **sampling.arguments(), with_code=True)
    url.keep("token", None)
    st.session_state[ANSWERING] = (asked, Answering(ask, arms, sampling.num_samples), prompt)


def draw(answering: Answering, prompt: LabPrompt, info: CrosscoderInfo, was_running: bool) -> None:
    """Draws the answers as far as they have come; repeatedly, while more come."""
    if was_running and answering.is_over:
        st.rerun()
    if answering.error:
        said = json.dumps(prompt.params())
        errors.show_error(
            answering.error, said, lambda sentence: prompts.as_on_page(sentence, prompt.spoken), "answers"
        )
    with errors.shown_errors(part="latents"):
        answers.answers_view(answering, prompt, info)
