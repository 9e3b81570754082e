"""The part of the overview that says what tuning added: sentences, and a card for each group of latents.

A card asks both models again without its latents when its button is pressed; the answers come in the background.
"""

import json
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import streamlit as st

from crosscope import CrosscoderInfo, LatentGroup, LatentGroupList
from crosscope.app import (
    errors,
    panels,
    prompts,
    session,
    story,
    text,
)
from crosscope.app.answering import Answering
from crosscope.app.prompts import LabPrompt
from crosscope_proto.roles import TEMPLATE_ROLES

ASKED = "cards-asked"
"""Key of the session state with what the pressed button asked."""
REFRESH_S = 0.4
MAX_NEW_TOKENS = 48
ASK_HELP = (
    "Lets chat answer the example's request with and without these latents, and base with and without them put in. "
    "Takes a few seconds. The next click asks with the next example."
)


class Asked(NamedTuple):
    """The question of one card."""

    card: str
    answering: Answering
    prompt: LabPrompt
    example: int
    """Index of the example that the request is from."""


def story_of(info: CrosscoderInfo) -> None:
    """Draws what the latents say about the tuning, and the cards."""
    with errors.shown_errors(part="story"):
        groups = session.groups(info.name, info.version_id)
        st.html(story.style())
        first, *rest = map(text.plain, story.sentences(groups, info.metrics))
        st.markdown("\n".join([f"**{first}**", "", *(f"- {sentence}" for sentence in rest)]))
        if box := panels.folded("How this is counted", "story-counted"):
            box.markdown(story.COUNTED)
        with st.container(horizontal=True, gap="medium", key="story-cards"):
            for group in groups:
                card(group, groups, info)
        for remark in groups.remarks:
            st.caption(text.plain(remark))
        if groups:
            says = f"All {text.count(groups.num_specific)} latents that are specific to chat, in the atlas"
            session.link("atlas", says, **story.parameters(info))
    others = [other for other in session.crosscoders() if session.comparable(info, other)]
    if others:
        says = f"Compare with {others[0].name}" if len(others) == 1 else "Compare with another crosscoder of this pair"
        session.link("versus", says, crosscoder=info.name, other=others[0].name)


def card(group: LatentGroup, groups: LatentGroupList, info: CrosscoderInfo) -> None:
    """Draws one group, its button, and the answers that the button asked for."""
    key = f"card-{group.latents[0].id}"
    mine = f"{info.name} {info.version_id} {key}"
    with st.container(border=True, key=key):
        st.html(story.card(group, info, groups.gap))
        latest: Asked | None = st.session_state.get(ASKED)
        asked = latest if latest is not None and latest.card == mine else None
        running = asked is not None and not asked.answering.is_over
        if group.examples:
            example = (asked.example + 1) % len(group.examples) if asked else 0
            again = "Ask with another example" if asked and len(group.examples) > 1 else "Take them away and ask again"
            ask = partial(start, mine, group, example, info)
            st.button(again, key=f"ask-{key}", on_click=ask, disabled=running, help=ASK_HELP)
        if asked:
            st.fragment(draw, run_every=REFRESH_S if running else None)(asked, key, running)


def start(mine: str, group: LatentGroup, example: int, info: CrosscoderInfo) -> None:
    """Asks both models with and without a group; what another card asked is stopped."""
    before: Asked | None = st.session_state.get(ASKED)
    if before is not None:
        before.answering.stop()
    prompt = story.request(group.examples[example])
    arms = story.arms(group, info, str(session.manifest(info).get("reads", "")))
    handle = session.crosscoder(info.name, info.version_id)
    ask = partial(handle.generate, **prompt.arguments(), arms=arms, max_new_tokens=MAX_NEW_TOKENS)
    st.session_state[ASKED] = Asked(mine, Answering(ask, arms, 1), prompt, example)


def draw(asked: Asked, key: str, was_running: bool) -> None:
    """Draws the request and the answers as far as they have come; repeatedly, while more come."""
    answering, prompt = asked.answering, asked.prompt
    if was_running and answering.is_over:
        st.rerun()
    if answering.error:
        spoken = prompt.spoken
        said = json.dumps(prompt.params())
        errors.show_error(answering.error, said, lambda sentence: prompts.as_on_page(sentence, spoken), key)
        return
    st.html(story.answers(said_by(asked), request_of(prompt), is_over=answering.is_over))


def said_by(asked: Asked) -> Mapping[str, str]:
    """The answers by the names of their arms, as far as they have come."""
    answering = asked.answering
    return {
        str(arm.name): "".join(
            token.piece for token in answering.tokens(index, 0) if token.role not in TEMPLATE_ROLES
        ).strip()
        for index, arm in enumerate(answering.arms)
    }


def request_of(prompt: LabPrompt) -> str:
    """The last words of a request."""
    return prompt.turns[-1].content if prompt.turns else prompt.text
