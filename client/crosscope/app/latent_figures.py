"""The figures of a latent's page: norms, tokens at its peaks, shares, latent scaling, and its neighbours.

Does not know its examples, nor the words about it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import streamlit as st

from crosscope import CrosscoderInfo, Latent, LatentScaling, TokenRole
from crosscope.app import address, bars_view, panels, session, tables, text, words
from crosscope.app.columns import AXES, DIFFERENCE_EVIDENCE, EVIDENCE
from crosscope.app.palette import MODEL_COLOURS, NEUTRAL, ROLE_COLOURS, ROLE_NAMES
from crosscope.app.table_view import Column, table_view

PLACED = frozenset(
    {
        *(*EVIDENCE, *DIFFERENCE_EVIDENCE, "max", "mean", "frequency", "cosine", "repeat_share", "template_share"),
        *("base_uselessness", "base_uselessness_ls", "base_uselessness_single"),
    }
)
"""Columns that the page shows in a place of their own; template_share follows from the shares by role."""
BESIDE_HELP = "Both latents on one page."


def statistics(latent: Latent, info: CrosscoderInfo) -> None:
    """The left column: norms, scaling, tokens, shares, neighbours."""
    figures = [
        ("max activation", text.number(latent.max)),
        ("mean", text.with_error(latent.mean.value, latent.mean.se), "where it fired"),
        ("frequency", text.with_error(latent.frequency.value, latent.frequency.se), "of all tokens"),
        ("cosine", text.number(latent.cosine), "of the decoder rows"),
        *measured(latent),
        *further(latent),
        *([("part", latent.part.replace("_", " "), "of the dictionary")] if latent.part else []),
    ]
    norms = [
        ("base", latent.norm_base, text.number(latent.norm_base), MODEL_COLOURS[0]),
        ("chat", latent.norm_chat, text.number(latent.norm_chat), MODEL_COLOURS[1]),
    ]
    shares = [share(*each) for each in zip(info.datasets, latent.dataset_shares, strict=False)]
    panels.together(
        panels.facts_html(figures),
        panels.head("Decoder norms"),
        panels.bars(norms),
        *tokens(latent, info),
        panels.head("Share of activation"),
        panels.caption("by role"),
        panels.bars(role_bars(latent, session.bos_left_out(info)), largest=1.0),
        panels.caption("by data set"),
        panels.bars(shares, largest=1.0),
    )
    st.header("Latent scaling")
    scaling_table("Along the chat decoder row (the published choice)", latent.chat_direction)
    if box := panels.folded("Along the base decoder row", "base-row"):
        with box:
            scaling_table("", latent.base_direction)
    uselessness(latent, session.uselessness_floor(info))
    relatives(latent, info)


def tokens(latent: Latent, info: CrosscoderInfo) -> Iterator[str]:
    """The tokens at its peaks, and those that it raises through each model's unembedding, as HTML."""
    yield panels.head("Tokens at its peaks")
    yield panels.chips_html(latent.top_tokens)
    for name, found in (("base", latent.logit_tokens_base), ("chat", latent.logit_tokens_chat)):
        yield panels.caption(f"Raised most through the {name} unembedding")
        reason = info.unavailable.get(f"logit_lens_{name}")
        if reason and not any(found):
            yield panels.caption(f"Not measured: {text.without_paths(reason).strip().rstrip('.')}.")
        else:
            yield panels.chips_html(found)


def measured(latent: Latent) -> list[tuple[str, str, str]]:
    """Its β ratio, and the share of its active tokens that repeat an earlier text, if they were measured."""
    ratio, share = latent.beta_ratio, latent.repeat_share
    facts = []
    if not math.isnan(ratio.value):
        facts.append(("β ratio", text.with_error(ratio.value, ratio.se), "of base over chat"))
    if share is not None and not math.isnan(share):
        facts.append(("repeats", f"{share:.0%}", "of active tokens"))
    return facts


def further(latent: Latent) -> list[tuple[str, str]]:
    """The columns of the app's tables that the page shows nowhere else, if they are defined."""
    row = latent.to_row()
    values: dict[str, Any] = {name: row[name] for name in AXES if name not in PLACED}
    return [(AXES[name].short, text.number(value)) for name, value in values.items() if not math.isnan(value)]


def role_bars(latent: Latent, bos_left_out: bool) -> list[tuple[str, float, str, str]]:
    """A bar for each role that the analysis told apart; padding only if something fires on it.

    If BOS was left out of the analysis, its bar says so.
    """
    told_apart = [role for role in TokenRole if role < len(latent.role_shares)]
    roles = [role for role in told_apart if role is not TokenRole.PAD or latent.role_share(role) > 0]
    bars = [share(ROLE_NAMES[role], latent.role_share(role), ROLE_COLOURS[role]) for role in roles]
    if bos_left_out and TokenRole.BOS in roles:
        left_out = (ROLE_NAMES[TokenRole.BOS], 0.0, "left out by the token policy", NEUTRAL)
        bars[roles.index(TokenRole.BOS)] = left_out
    return bars


def share(name: str, value: float, colour: str = NEUTRAL) -> tuple[str, float, str, str]:
    """A bar of a share."""
    return (name, value, "–" if math.isnan(value) else f"{value:.0%}", colour)


def scaling_table(caption: str, scaling: LatentScaling) -> None:
    """Coefficients with their standard errors."""
    if caption:
        st.caption(caption)
    rows = (
        ("activation", scaling.activation),
        ("activation without bias", scaling.activation_no_bias),
        ("reconstruction", scaling.reconstruction),
        ("error", scaling.error),
    )
    lines = ["| β of | base | chat |", "|:--|--:|--:|"]
    for name, both in rows:
        base, chat = (text.with_error(estimate.value, estimate.se) for estimate in (both.base, both.chat))
        lines.append(f"| {name} | {base} | {chat} |")
    st.markdown("\n".join(lines))
    if math.isnan(scaling.nu_err.value) and math.isnan(scaling.nu_rec.value):
        return
    nu_err, nu_rec = (text.with_error(nu.value, nu.se) for nu in (scaling.nu_err, scaling.nu_rec))
    st.markdown(f"ν error {nu_err} · ν reconstruction {nu_rec}")


def uselessness(latent: Latent, floor: float) -> None:
    """Draws base uselessness by its three definitions; nothing if none is defined, as in a difference dictionary."""
    scores = (latent.base_uselessness, latent.base_uselessness_ls, latent.base_uselessness_single)
    if all(value is None for value in scores):
        return
    st.header("Base uselessness")
    panels.facts(
        [
            ("published recipe", text.number(latent.base_uselessness)),
            ("least squares", text.number(latent.base_uselessness_ls, floor=floor)),
            ("alone", text.number(latent.base_uselessness_single, floor=floor)),
        ]
    )
    st.caption(AXES["base_uselessness_single"].meaning)


def relatives(latent: Latent, info: CrosscoderInfo) -> None:
    """Draws the nearest latents by decoder cosine, and those that fire on the same tokens."""
    near = [(other.latent, other.cosine) for other in latent.neighbours]
    coactive = [(other.latent, other.index) for other in latent.coactive]
    ids = list(dict.fromkeys(other for other, _ in near + coactive))
    called = dict(zip(ids, words.cells(info, ids), strict=True))  # one call to the server for both tables
    others("Nearest latents", "cosine", "Of both models' decoder rows side by side.", near, called, info)
    help_ = "Tokens on which both fire, as a share of those on which either does."
    others("Fires with", "Jaccard index", help_, coactive, called, info)


def others(
    title: str,
    measure: str,
    help_: str,
    found: Sequence[tuple[int, float]],
    called: Mapping[int, str],
    info: CrosscoderInfo,
) -> None:
    """Other latents and a measure of how near they are; a row opens one. `called` has the name of each."""
    if not found:
        return
    st.header(title)
    beside = [address.here({"beside": latent}) for latent, _ in found]
    columns = [
        Column("latent", [str(latent) for latent, _ in found]),
        Column("name", [called[latent] for latent, _ in found], tables.NAME_HELP, is_text=True, is_narrow=True),
        Column(measure, tables.figures([value for _, value in found]), help_),
        Column("beside", ["compare"] * len(found), BESIDE_HELP, is_text=True, links=beside),
    ]
    links = [address.href("latent", {"crosscoder": info.name, "latent": latent}) for latent, _ in found]
    table_view(measure, title, columns, links)


def histogram(latent: Latent, info: CrosscoderInfo, place: str = "page") -> None:
    """Density of its activations; a page may have one at each of several places."""
    if not any(latent.histogram):
        st.info("It never fired in the analysis, so there are no activations and no examples to show.")
        return
    alt = "Histogram of its scaled activations, tokens on a logarithmic axis"
    bars = bars_view.activations(latent.id, latent.histogram, info.histogram_edges)
    bars_view.bars_view(f"histogram-{place}", alt, bars)
