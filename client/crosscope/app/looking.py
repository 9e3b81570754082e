"""Generate, then look: a model's answer becomes a turn of the prompt, so that the lab shows what fires in it."""

import json
from functools import partial

import streamlit as st

from crosscope import Arm, CrosscoderInfo
from crosscope.app import (
    composer,
    errors,
    session,
    text,
    url,
)
from crosscope.app.answering import Answering
from crosscope.app.prompts import LabPrompt

NOTE = "lab-answer-note"
"""Key of the session state with the prompt that ends with a generated answer, and how the answer ended."""
REFRESH_S = 0.3


def generate_then_look(prompt: LabPrompt, info: CrosscoderInfo) -> None:
    """Draws the button, and the answer while it comes."""
    row = st.container(horizontal=True, vertical_alignment="bottom")
    model = url.segments(row, "Answer with", ("base", "chat"), "chat", "model")
    most = url.whole_number(row, "Most tokens", (1, 8192), 64, "max_new_tokens", 125)
    wants = row.button("Generate, then look")
    said = json.dumps(prompt.params())
    if (note := st.session_state.get(NOTE)) and note[0] == said:
        st.caption(text.plain(note[1]))
    if wants:
        with errors.shown_errors(said, "answer"):
            generate(prompt, model, most, info)


def generate(prompt: LabPrompt, model: str, most: int, info: CrosscoderInfo) -> None:
    """Streams an answer into the page, then makes it a turn of the prompt. Another click on the page cancels it."""
    handle = session.crosscoder(info.name, info.version_id)
    arms = (Arm(model="base" if model == "base" else "chat"),)
    asked = prompt.to_answer().arguments()
    answering = Answering(partial(handle.generate, **asked, arms=arms, max_new_tokens=most), arms, 1)
    st.button("Stop and look", on_click=finish, args=(prompt, answering, model))
    place = st.empty()
    try:
        while not answering.wait(REFRESH_S):
            so_far = "".join(token.piece for token in answering.tokens(0, 0))
            place.markdown(f"**{model}:** {text.plain(so_far)} …")
    finally:
        answering.stop()
    if answering.error:
        raise answering.error
    finish(prompt, answering, model)
    st.rerun()


def finish(prompt: LabPrompt, answering: Answering, model: str) -> None:
    """Makes what has come of an answer a turn of the prompt."""
    answering.stop()
    answering.wait(5.0)
    if not answering.answers:
        return
    answer = answering.answers[0]
    grown = prompt.answered(answer.text) if answer.text.strip() else prompt
    note = f"The {model} model's answer: {' '.join(answer.remarks)}"
    st.session_state[NOTE] = (json.dumps(grown.params()), note if answer.text.strip() else f"{note} It says nothing.")
    composer.store(grown)
