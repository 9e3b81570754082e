"""Prompt lab: a prompt, the latents that fire on each of its tokens, and those that fire on the whole, ranked."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import streamlit as st

from crosscope import (
    Comparison,
    CrosscoderInfo,
    CrosscopeError,
    Encoding,
    InvalidInput,
    LeftOut,
    TopLatents,
    _tables,
)
from crosscope.app import (
    address,
    asking,
    composer,
    counting,
    differences,
    errors,
    panels,
    prompts,
    session,
    tables,
    text,
    two_prompts,
    url,
)
from crosscope.app.differences import SHADE
from crosscope.app.latent_list import latent_list
from crosscope.app.looking import generate_then_look
from crosscope.app.prompts import LabPrompt
from crosscope.app.ranking import ATTRIBUTION, chosen_range, ranking_controls, ranking_of
from crosscope.app.table_view import Column
from crosscope.app.token_view import Strip, TokenEvent, token_view

HEAT_LATENTS = 12
"""Latents of the heat map."""
LEGEND_LATENTS = 12
OWN_HELP = (
    "Largest activation as a share of the largest in the analysis. Above 100 %, the token is like none there. "
    "Undefined for a latent that never fired there."
)


USELESS_HELP = "Largest activation times base uselessness: strong here, and of no use to base."


def page() -> None:
    """Draws the page."""
    chosen = session.chosen()
    if chosen is None:
        session.nothing_published("Prompt lab")
        return
    st.title("Prompt lab")
    prompt = composer.fields(composer.current())
    attributes = differences.is_asked_why() or st.query_params.get("rank") == ATTRIBUTION
    has_specific = bool((session.atlas(chosen.name, chosen.version_id)["specific_to"] == 1).any())
    shade = differences.SHADES.get(colour := differences.shade_name(has_specific))
    compares = bool(shade or "token" in st.query_params or attributes)
    ask_ahead(prompt, chosen, compares=compares)
    counting.counter(prompt, chosen)
    composer.paste()
    if prompt.is_empty:
        st.markdown("Write a turn or a text; every token's latents appear as soon as you leave the field.")
        session.link("latent", "Or take an example of a latent: each has a button for it", crosscoder=chosen.name)
        return
    generate_then_look(prompt, chosen)
    said = json.dumps(prompt.params())
    try:
        arguments = json.dumps(prompt.arguments())
        encoding = asking.encode(chosen.name, chosen.version_id, arguments)
    except CrosscopeError as error:
        errors.show_error(error, said, lambda sentence: prompts.as_on_page(sentence, prompt.spoken))
        return
    with st.container(key="wrap-lab"):
        left, right = st.columns(2, gap="medium")
    with right:
        ranking_controls(tokens := chosen_range(len(encoding)))
        ranking = ranking_of(tokens)
        top = asking.top_latents(chosen.name, chosen.version_id, arguments, json.dumps(ranking))
    token = prompts.decimal(st.query_params.get("token"), -1)
    locked = token if 0 <= token < len(encoding) else None
    comparison = None
    with left:
        not_printed(encoding, prompt)
        differences.shade_choice(has_specific)
        if compares:
            with errors.shown_errors(said, "compare"):
                comparison = asking.compare(chosen.name, chosen.version_id, arguments)
        strip(encoding, top, locked, comparison, colour, chosen)
        differences.why_switch(locked)
        if comparison and locked is not None:
            differences.next_tokens(comparison, locked)
        locked_token(encoding, locked, chosen)
    with right:
        ranked(top, chosen)
        chosen_latent(prompt, chosen)
    if comparison and attributes:
        with errors.shown_errors(said, "why"):
            differences.why(prompt, arguments, comparison, locked, chosen)
    two_prompts.section(prompt, encoding, ranking, chosen)
    copies(prompt, chosen, ranking)
    st.download_button(
        "Save as HTML",
        encoding.html,
        f"{chosen.name}-prompt.html",
        "text/html",
        key="save-prompt",
        on_click="ignore",
        help="One file with the tokens and the latents that fire on each. It opens without a server and loads nothing.",
    )


def ask_ahead(prompt: LabPrompt, info: CrosscoderInfo, *, compares: bool) -> None:
    """Begins all calls of the page at once: the server runs an equal prompt once. What is wrong is said where it is
    drawn. A range of tokens must fit the prompt, so its ranking waits for the prompt's tokens.
    """
    if prompt.is_empty:
        return
    with suppress(InvalidInput):
        asked = (info.name, info.version_id, json.dumps(prompt.arguments()))
        asking.ask_ahead("encode", *asked)
        if compares:
            asking.ask_ahead("compare", *asked, asking.COMPARED)
        if "range" not in st.query_params:
            asking.ask_ahead("top_latents", *asked, json.dumps(ranking_of(None)))


def copies(prompt: LabPrompt, info: CrosscoderInfo, ranking: dict[str, Any]) -> None:
    """The question of the page for other programs."""
    request = prompts.request_json(prompt, info.name, ranking)
    where = session.client().address
    if box := panels.folded("Copy as Python, grpcurl or JSON", "copies"):
        box.code(prompts.python_code(prompt, where, info.name, ranking), language="python")
        box.code(prompts.grpcurl(request, where), language="bash", wrap_lines=True)
        box.code(request, language="json")


def not_printed(encoding: Encoding, prompt: LabPrompt) -> None:
    """Says which turns' reasoning the chat template does not print."""
    turns = [str(prompt.spoken[place] + 1) for place in encoding.tokens.dropped_reasoning if place < len(prompt.spoken)]
    if turns:
        st.caption(f"The chat template does not print all of the reasoning of turn {', '.join(turns)}.")


def strip(
    encoding: Encoding,
    top: TopLatents,
    locked: int | None,
    comparison: Comparison | None,
    colour: str,
    info: CrosscoderInfo,
) -> None:
    """Draws the tokens, coloured by a figure of each, by the chosen latent, or each by its strongest latent."""
    by = st.query_params.get("by")
    cached = "from the cache" if encoding.cached else f"{encoding.compute_ms:.0f} ms"
    legend = {entry.latent: str(entry.latent) for entry in top.entries[:LEGEND_LATENTS]}
    chosen = int(by) if by is not None and by.isdecimal() else None
    if chosen is not None:
        legend.setdefault(chosen, str(chosen))
    shade, shades, measure = differences.SHADES.get(colour), None, ""
    if shade and comparison:
        shades, measure = differences.colours(shade, comparison), shade.measure
    elif colour == differences.SPECIFIC:
        shades = differences.specificity(encoding, session.atlas(info.name, info.version_id)["specific_to"])
        measure = differences.SPECIFIC_MEASURE
    largest = scale_of(encoding, chosen) if shades is None else differences.top_of(shades, encoding.tokens.left_out)
    event = token_view(
        [
            Strip(
                encoding.tokens.pieces,
                encoding.tokens.roles,
                encoding.row_starts.tolist(),
                encoding.latents.tolist(),
                encoding.activations.tolist(),
                title=f"{len(encoding)} tokens",
                note=f"{len(np.unique(encoding.latents))} latents fire · {cached}",
                left_out=encoding.tokens.left_out,
                shades=() if shades is None else shades.tolist(),
                notes=differences.notes(comparison) if comparison else (),
            )
        ],
        key="lab-strip",
        scale_max=largest,
        colour_by=chosen,
        locked=None if locked is None else (0, locked),
        legend=legend,
        line_breaks=True,
        measure=measure if shades is not None else "",
        ranges=True,
        chosen=chosen_range(len(encoding)),
        heat=[entry.latent for entry in top.entries[:HEAT_LATENTS]],
    )
    if event:
        react(event)


def scale_of(encoding: Encoding, chosen: int | None) -> float | None:
    """Top of the colour scale: the largest activation outside template tokens, which are often outliers.

    If only template tokens fire, it is the largest of theirs. Tokens that training left out never count.
    """
    values = encoding.strongest() if chosen is None else encoding.latent_values(chosen)
    if encoding.tokens.left_out:
        values[np.asarray(encoding.tokens.left_out) != LeftOut.KEPT] = 0
    content = values[~np.asarray(encoding.tokens.is_template)]
    return float(content.max(initial=0)) or float(values.max(initial=0)) or None


def react(event: TokenEvent) -> None:
    """Writes a click on the strip into the URL."""
    if event.kind in ("lock", "unlock"):
        url.keep("token", str(event.position) if event.kind == "lock" else None)
    elif event.kind == "latent":
        chosen = event.position >= 0
        url.write({"by": str(event.position) if chosen else None, SHADE: None if chosen else differences.LATENTS})
    elif event.kind == "range":
        url.keep("range", f"{event.position}-{event.end - 1}" if event.position >= 0 else None)
    st.rerun()


def locked_token(encoding: Encoding, token: int | None, info: CrosscoderInfo) -> None:
    """The latents of the locked token."""
    if token is None:
        st.caption("Click a token, or press Enter on it, to list its latents and both models' next tokens here.")
        return
    found = encoding.top(token)
    piece = text.visible(encoding.tokens.pieces[token])
    st.header(f"Token {token}: {text.plain(piece)}")
    if not found:
        st.markdown("No latent fires on it.")
        return
    ids = np.array([entry.latent for entry in found])
    activation = Column("activation", tables.figures([entry.activation for entry in found]))
    listed(f"token-{token}", f"Latents of token {token}", ids, [activation], info)


def ranked(top: TopLatents, info: CrosscoderInfo) -> None:
    """Draws the ranked latents with what ranks them; a row colours the tokens by its latent."""
    for index, line in enumerate(top.remarks):
        hint = " The switch above includes them." if top.num_left_out and not index else ""
        st.caption(text.plain(line) + hint)
    if not top.entries:
        st.markdown("No latent fires in this choice. Let more tokens in, raise the frequency or take filters out.")
        return
    ids = np.array([entry.latent for entry in top.entries])
    largest = np.array([entry.max for entry in top.entries])
    largest_at = [
        f"{text.number(entry.max)} at {entry.peak_token} {text.isolated(text.visible(piece))}"
        for entry, piece in ((entry, top.tokens.pieces[entry.peak_token]) for entry in top.entries)
    ]
    rows = [Column("largest", largest_at, "Largest activation in the prompt, and its token.", is_text=True)]
    if top.rank != "max":
        head, cells, help_ = figures_of(top, ids, largest, session.atlas(info.name, info.version_id))
        rows.append(Column(head, cells, help_, ordered="descending"))
    listed("ranked", "Latents of the prompt", ids, rows, info)
    st.caption(f"{len(ids)} of {top.num_latents} latents that fire. A row colours the tokens by its latent.")


def figures_of(
    top: TopLatents, ids: np.ndarray, largest: np.ndarray, columns: Mapping[str, np.ndarray]
) -> tuple[str, list[str], str]:
    """The figure that ranks the latents, other than the largest activation: head, cells and help."""
    own = columns["max"][ids]
    share = largest / np.where(own > 0, own, np.nan)
    useless = columns["base_uselessness_single"][ids] * largest
    return {
        "sum": ("sum", tables.figures([entry.sum for entry in top.entries]), "Sum over tokens."),
        "count": ("tokens", [text.count(entry.count) for entry in top.entries], "Tokens on which it fires."),
        "share_of_max": ("of own", [_tables.percent(each) for each in share], OWN_HELP),
        "uselessness": ("× useless", tables.figures(useless), USELESS_HELP),
    }[top.rank]


def listed(key: str, label: str, ids: np.ndarray, more: Sequence[Column], info: CrosscoderInfo) -> None:
    """Draws a table of latents with their evidence and further columns; a row colours the tokens by its latent."""
    links = [address.here({"by": latent, SHADE: None}) for latent in ids.tolist()]
    by = prompts.decimal(st.query_params.get("by"), -1)
    latent_list(key, label, ids, info, links, more=more, chosen=by)


def chosen_latent(prompt: LabPrompt, info: CrosscoderInfo) -> None:
    """The latent that colours the tokens, with its evidence."""
    by = prompts.decimal(st.query_params.get("by"), -1)
    if not 0 <= by < info.num_latents:
        return
    st.header(f"Latent {by}")
    latent = session.latent(info.name, info.version_id, by)
    panels.evidence(latent, session.uselessness_floor(info))
    panels.chips(latent.top_tokens)
    row = st.container(horizontal=True)
    with row:
        session.link("latent", f"Open latent {by}", crosscoder=info.name, latent=by)
        question = composer.link_params(prompt.question())
        session.link("steer", f"Steer with latent {by}", crosscoder=info.name, steer=f"{by} add 1", **question)
        st.button("Colour by the strongest", on_click=url.keep, args=("by", None))
