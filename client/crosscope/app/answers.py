"""Answers side by side: base and chat in the columns, plain and steered in the rows, token by token.

While answers come, their words alone are drawn; latents follow at the end.
"""

import json
from collections.abc import Sequence

import numpy as np
import streamlit as st

from crosscope import Answer, CrosscoderInfo, LeftOut, NewToken
from crosscope.app import (
    address,
    asking,
    composer,
    differences,
    errors,
    latent_list,
    prompts,
    session,
    steering,
    tables,
    text,
    unmoved,
    url,
)
from crosscope.app.answering import Answering
from crosscope.app.prompts import LabPrompt
from crosscope.app.table_view import Column
from crosscope.app.token_view import Strip, TokenEvent, token_view

MOST_LATENTS = 8
"""Latents of a token that travel to the browser, beside those that are steered."""
COLOURS = {"latents": "latents", "surprise": "surprise", "against_plain": "steered less plain"}
MEASURES = {"surprise": "−log p, nats:", "against_plain": "|log p steered − plain|, nats:"}
UNLISTED = json.dumps({"top_n": 0})
"""Further arguments of `Crosscoder.compare`: no next tokens."""
PLACES = tuple[int, int]
"""Index of an arm, and of a sample in it."""


def answers_view(answering: Answering, prompt: LabPrompt, info: CrosscoderInfo) -> None:
    """Draws the answers, and the token that is locked. Says so where the changes have no visible effect."""
    steered = steering.latents_in(answering.arms)
    places = [(arm, sample) for sample in range(answering.num_samples) for arm in range(len(answering.arms))]
    is_over = answering.is_over
    ended = {(answering.arms.index(answer.arm), answer.sample): answer for answer in answering.answers}
    colour = "latents"
    if is_over:
        no_effect(answering, prompt, info)
        named = list(COLOURS) if steered else list(COLOURS)[:2]
        colour = url.segments(st.container(), "Colour by", named, "latents", "shade", COLOURS.__getitem__)
    plain = against_plain(answering, places, info) if colour == "against_plain" else {}
    strips = [
        strip_of(
            answering.tokens(*place),
            title_of(answering, place),
            note_of(answering, place, ended),
            steered,
            whole=is_over,
            colour=colour,
            plain=plain.get(place),
        )
        for place in places
    ]
    by = prompts.decimal(st.query_params.get("by"), -1)
    event = token_view(
        strips,
        key="answers",
        colour_by=by if by >= 0 else None,
        locked=locked(),
        legend={latent: f"latent {latent}" for latent in steered} if is_over else {},
        measure=MEASURES.get(colour, ""),
        line_breaks=True,
        columns=2,
    )
    if event:
        react(event)
    if is_over:
        locked_token(answering, places, info)


def no_effect(answering: Answering, prompt: LabPrompt, info: CrosscoderInfo) -> None:
    """Says that the changes have no visible effect, and what to try instead; draws nothing where they have one."""
    if (found := unmoved.unmoved(answering.answers)) is None:
        return
    st.info(
        "\n".join([f"**No visible effect.** {found.said} To try instead:", "", *(f"- {line}" for line in found.tries)])
    )
    if answering.prompt is not None:
        asked, last = composer.link_params(prompt.to_answer()), len(answering.prompt) - 1
        why = {"token": last, differences.WHY: "true"}
        session.link("lab", "Which latents carry the difference here?", crosscoder=info.name, **asked, **why)


def title_of(answering: Answering, place: PLACES) -> str:
    """The name of an answer."""
    arm, sample = place
    return f"{answering.arms[arm].name}, sample {sample + 1}" if answering.num_samples > 1 else answering.arms[arm].name


def note_of(answering: Answering, place: PLACES, ended: dict[PLACES, Answer]) -> str:
    """How an answer ended, what was changed in it and how probable its tokens are; how far it is, while it comes."""
    answer = ended.get(place)
    if answer is None:
        tokens = len(answering.tokens(*place))
        return f"{tokens} tokens …" if tokens or not answering.is_over else "no answer"
    note = answer.remarks[0]
    if answer.arm.steer:
        note += f" Changed at {answer.num_changed} tokens of prompt and answer."
    if answer.num_left_out:
        note += f" Left alone at {answer.num_left_out} that training left out."
    if len(answer.log_probabilities):
        note += f" Mean log p {text.number(float(np.mean(answer.log_probabilities)))}."
    plain = next((other for other in ended.values() if unmoved.is_plain_of(other, answer)), None)
    return f"{note} The same as plain." if plain and plain.text == answer.text else note


def against_plain(answering: Answering, places: Sequence[PLACES], info: CrosscoderInfo) -> dict[PLACES, np.ndarray]:
    """[token] of every steered answer: the log-probability that the same model, unchanged, gives each of its tokens."""
    if answering.prompt is None:
        return {}
    asked: dict[PLACES, str] = {}
    for place in places:
        tokens = answering.tokens(*place)
        if answering.arms[place[0]].steer and tokens:
            asked[place] = json.dumps({"token_ids": [*answering.prompt.ids, *(token.id for token in tokens)]})
    for prompt in asked.values():
        asking.ask_ahead("compare", info.name, info.version_id, prompt, UNLISTED)
    found: dict[PLACES, np.ndarray] = {}
    with errors.shown_errors(part="plain"):
        for place, prompt in asked.items():
            comparison = asking.compare(info.name, info.version_id, prompt, UNLISTED)
            model = comparison.base if answering.arms[place[0]].model == "base" else comparison.chat
            found[place] = model.log_probabilities[len(answering.prompt) - 1 : -1]
    return found


def strip_of(
    tokens: Sequence[NewToken],
    title: str,
    note: str,
    steered: Sequence[int],
    *,
    whole: bool,
    colour: str,
    plain: np.ndarray | None,
) -> Strip:
    """The tokens of one answer; with their latents and log-probabilities, if it is whole.

    `plain: [token]` are the log-probabilities in the unchanged model, where they are known.
    """
    own = np.array([token.log_probability for token in tokens])
    shades, notes = -own, [f"log-probability {text.number(value)}" for value in own.tolist()]
    if colour == "against_plain":
        shades = np.full(len(tokens), np.nan) if plain is None else np.abs(own - plain)
    if plain is not None:
        pairs = zip(notes, plain.tolist(), (own - plain).tolist(), strict=True)
        notes = [f"{line}, in the plain model {text.number(value)}: {less:+.2f}" for line, value, less in pairs]
        note += f" Mean log p less plain: {np.mean(own - plain):+.2f}."
    starts, latents, values = [0], [], []
    for token in tokens if whole else ():
        kept = [
            (latent, value)
            for rank, (latent, value) in enumerate(zip(token.latents, token.activations, strict=True))
            if rank < MOST_LATENTS or latent in steered
        ]
        latents += [latent for latent, _ in kept]
        values += [value for _, value in kept]
        starts.append(len(latents))
    return Strip(
        [token.piece for token in tokens],
        [token.role for token in tokens],
        starts if whole else [0] * (len(tokens) + 1),
        latents,
        values,
        title=title,
        note=note,
        left_out=[token.left_out or LeftOut.KEPT for token in tokens] if whole else (),
        shades=shades.tolist() if whole else (),
        notes=notes if whole else (),
    )


def locked() -> tuple[int, int] | None:
    """The locked token of the URL: the index of its strip, and its own in the strip; None if none is locked."""
    strip, _, token = st.query_params.get("token", "").partition(".")
    return (int(strip), int(token)) if strip.isdecimal() and token.isdecimal() else None


def react(event: TokenEvent) -> None:
    """Writes a click on a strip into the URL."""
    if event.kind in ("lock", "unlock"):
        url.keep("token", f"{event.strip}.{event.position}" if event.kind == "lock" else None)
    elif event.kind == "latent":
        url.write({"by": str(event.position) if event.position >= 0 else None, "shade": None})
    st.rerun()


def locked_token(answering: Answering, places: Sequence[PLACES], info: CrosscoderInfo) -> None:
    """The latents of the locked token; a row adds its latent to the changes."""
    where = locked()
    tokens = answering.tokens(*places[where[0]]) if where and where[0] < len(places) else ()
    if not where or where[1] >= len(tokens):
        if any(answering.tokens(*place) for place in places):
            st.caption("Click a token, or press Enter on it, to list its latents here.")
        return
    token = tokens[where[1]]
    st.header(f"{title_of(answering, places[where[0]])}, token {where[1]}: {text.plain(text.visible(token.piece))}")
    st.caption(
        f"Log-probability {text.number(token.log_probability)}, probability {np.exp(token.log_probability):.1%}."
    )
    if not token.latents:
        read = "No latent fires on it." if where[1] + 1 < len(tokens) else "No model has read an answer's last token."
        st.markdown(read)
        return
    ids = np.array(token.latents)
    steer = st.query_params.get_all("steer")
    links = [address.here({"steer": [*steer, f"{latent} add 1"], "token": None}) for latent in token.latents]
    activation = Column("activation", tables.figures(token.activations))
    latent_list.latent_list("answer-token", "Latents of the token", ids, info, links, more=[activation])
    st.caption("A row adds its latent to the changes.")
