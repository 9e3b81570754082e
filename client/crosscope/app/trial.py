"""The test box of a latent's page: what a text of the viewer's own does to one latent, or to two side by side.

The text stands in the URL. Does not know the rest of the page.
"""

import json
from collections.abc import Sequence

import numpy as np
import streamlit as st

from crosscope import CrosscoderInfo, Encoding, Latent
from crosscope._tables import percent
from crosscope.app import (
    asking,
    errors,
    session,
    text,
    url,
)
from crosscope.app.prompts import LabPrompt, Turn
from crosscope.app.token_view import Strip, token_view

TEXT, AS_MESSAGE = "try", "message"
"""Names of parameters of the URL: the text, and whether it is a message of the user."""
MAX_CHARACTERS = 2000
MESSAGE_HELP = "Puts the text into the chat template, as a user's turn before the assistant's answer."


@st.fragment
def box(latents: Sequence[Latent], info: CrosscoderInfo) -> None:
    """Draws the field, and below it the tokens of its text. Errors are shown here; the rest of the page stays."""
    with errors.shown_errors(part="trial"):
        row = st.container(horizontal=True, vertical_alignment="bottom")
        hint = "Type a text; Enter shows where it fires"
        said = url.text(row, "Try a text", TEXT, placeholder=hint, max_chars=MAX_CHARACTERS, width=420)
        as_message = url.toggle(row, "As a user's message", AS_MESSAGE, help=MESSAGE_HELP)
        if said:
            draw(prompt_of(said, as_message=as_message), latents, info)


def prompt_of(said: str, *, as_message: bool) -> LabPrompt:
    """A text as it is, or as a message that the assistant is about to answer."""
    return LabPrompt(turns=(Turn("user", said),), add_generation_prompt=True) if as_message else LabPrompt(text=said)


def draw(prompt: LabPrompt, latents: Sequence[Latent], info: CrosscoderInfo) -> None:
    """Runs the prompt, and draws its tokens in the colours of one latent or of two."""
    encoding = asking.encode(info.name, info.version_id, json.dumps(prompt.arguments()))
    for latent in latents:
        st.markdown(text.plain(summary(encoding, latent)))
    two = {latent.id: latent.max for latent in latents} if len(latents) > 1 else None
    colour_by, scale = (None, None) if two else (latents[0].id, latents[0].max or None)
    token_view([strip_of(encoding, latents)], key="trial", colour_by=colour_by, scale_max=scale, split=two)
    session.link("lab", "All latents of this text", crosscoder=info.name, by=latents[0].id, **prompt.params())


def summary(encoding: Encoding, latent: Latent) -> str:
    """Where a latent fires on the tokens of a text, in a sentence."""
    values = encoding.latent_values(latent.id)
    num = int(np.count_nonzero(values))
    if not num:
        return f"Latent {latent.id} is silent on all {len(encoding)} tokens."
    peak = int(values.argmax())
    of_own = f", {percent(values[peak] / latent.max)} of its largest" if latent.max > 0 else ""
    return (
        f"Latent {latent.id} fires on {num} of {len(encoding)} tokens, most on "
        f"“{text.visible(encoding.tokens.pieces[peak])}”: {text.number(float(values[peak]))}{of_own}."
    )


def strip_of(encoding: Encoding, latents: Sequence[Latent]) -> Strip:
    """The tokens of a text with the activations of some latents, strongest first on each token."""
    shown = np.isin(encoding.latents, [latent.id for latent in latents])
    tokens = encoding.token_index()[shown]
    return Strip(
        encoding.tokens.pieces,
        encoding.tokens.roles,
        np.searchsorted(tokens, np.arange(len(encoding) + 1)).tolist(),
        encoding.latents[shown].tolist(),
        encoding.activations[shown].tolist(),
        title=f"{len(encoding)} tokens",
        left_out=encoding.tokens.left_out,
    )
