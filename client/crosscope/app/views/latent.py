"""Latent: one latent's evidence, its statistics, and the texts on which it fires."""

import math
from typing import Any

import numpy as np
import streamlit as st

from crosscope import CrosscoderInfo, Example, ExampleGroup, Latent, LatentScaling, TokenRole
from crosscope.app import address, charts, panels, prompts, session, tables, text, url, word_panel, words
from crosscope.app.columns import AXES, DIFFERENCE_EVIDENCE, EVIDENCE
from crosscope.app.palette import MODEL_COLOURS, NEUTRAL, ROLE_COLOURS, ROLE_NAMES
from crosscope.app.selection import Selection
from crosscope.app.table_view import Column, table_view
from crosscope.app.token_view import strip_of_latent, token_view
from crosscope.app.views.atlas import current, order_name

EXAMPLES_A_PAGE = 10
MAX_EXAMPLES = 200
PLACED = frozenset(
    {
        *(*EVIDENCE, *DIFFERENCE_EVIDENCE, "max", "mean", "frequency", "cosine", "repeat_share", "template_share"),
        *("base_uselessness", "base_uselessness_ls", "base_uselessness_single"),
    }
)
"""Columns that the page shows in a place of their own; template_share follows from the shares by role."""
CONTEXTS = (8, 16, 32, 64, 128, 0)
"""Tokens on each side of the peak; 0 is the whole text."""
GROUPS = {"all": None, "top": "top", "quantiles": "quantile"}


def page() -> None:
    """Draws the page."""
    chosen = session.chosen()
    if chosen is None:
        session.nothing_published("Latent")
        return
    columns = session.atlas(chosen.name, chosen.version_id)
    selection, among = current(chosen, columns)
    ids = selection.ids(columns, among)
    latent_id = wanted(ids, chosen.num_latents)
    header(latent_id, ids, chosen, selection)
    if latent_id is None:
        return
    url.fill_in(latent=str(latent_id))
    latent = session.latent(chosen.name, chosen.version_id, latent_id)
    panels.evidence(latent, session.uselessness_floor(chosen))
    word_panel.panel(latent, chosen)
    session.link("steer", "Steer with this latent", crosscoder=chosen.name, steer=f"{latent_id} add 1")
    with st.container(key="wrap-latent"):
        left, right = st.columns([2, 3], gap="large")
    with left:
        statistics(latent, chosen)
    with right:
        histogram(latent, chosen)
        examples(latent, chosen)


def wanted(ids: np.ndarray, num_latents: int) -> int | None:
    """The latent that the URL names, else the first of the order; None if the URL names one that does not exist."""
    text = st.query_params.get("latent")
    if text is None:
        return int(ids[0]) if len(ids) else 0
    return int(text) if text.isdecimal() and int(text) < num_latents else None


def header(latent_id: int | None, ids: np.ndarray, info: CrosscoderInfo, selection: Selection) -> None:
    """Title, previous and next in the chosen order, and a field to go to any latent."""
    if latent_id is None:
        st.title("No such latent")
        st.error(
            f"{text.plain(st.query_params['latent'])} is no latent of {info.name}, whose latents are numbered 0 to "
            f"{info.num_latents - 1}. Choose another below."
        )
    else:
        st.title(f"Latent {latent_id}")
    found = np.flatnonzero(ids == latent_id)
    at = int(found[0]) if len(found) else None
    row = st.container(horizontal=True, vertical_alignment="bottom", gap="small")
    before, after = neighbours_in(ids, at)
    row.button("Previous", shortcut="k", disabled=before is None, on_click=show, args=(before,))
    row.button("Next", shortcut="j", disabled=after is None, on_click=show, args=(after,))
    row.number_input(
        "Go to latent",
        0,
        info.num_latents - 1,
        latent_id or 0,
        key=f"goto-{latent_id}",
        width=130,
        on_change=lambda: show(st.session_state[f"goto-{latent_id}"]),
    )
    where = f"{at + 1:,} of {len(ids):,}" if at is not None else f"not among the {len(ids):,} chosen"
    st.caption(f"{where} · {order_name(selection.order)}")


def neighbours_in(ids: np.ndarray, at: int | None) -> tuple[int | None, int | None]:
    """The latents before and after a position; from outside the set (None), next is its first."""
    if at is None:
        return None, int(ids[0]) if len(ids) else None
    return (int(ids[at - 1]) if at > 0 else None), (int(ids[at + 1]) if at + 1 < len(ids) else None)


def show(latent_id: int | None) -> None:
    """Goes to another latent and starts its examples from the top."""
    url.write({"latent": str(latent_id), "n": None, "token": None})


def context_name(tokens: int) -> str:
    """The name of a context width as people read it."""
    return f"± {tokens} tokens" if tokens else "whole text"


def locked_token() -> tuple[int, int] | None:
    """The locked token of the URL: the index of its example, and its own in the example; None if none is locked."""
    example, _, token = st.query_params.get("token", "").partition(".")
    return (int(example), int(token)) if example.isdecimal() and token.isdecimal() else None


def statistics(latent: Latent, info: CrosscoderInfo) -> None:
    """The left column: norms, scaling, tokens, shares, neighbours."""
    panels.facts(
        [
            ("max activation", text.number(latent.max)),
            ("mean", text.with_error(latent.mean.value, latent.mean.se), "where it fired"),
            ("frequency", text.with_error(latent.frequency.value, latent.frequency.se), "of all tokens"),
            ("cosine", text.number(latent.cosine), "of the decoder rows"),
            *measured(latent),
            *further(latent),
            *([("part", latent.part.replace("_", " "), "of the dictionary")] if latent.part else []),
        ]
    )
    st.subheader("Decoder norms")
    panels.bars(
        [
            ("base", latent.norm_base, text.number(latent.norm_base), MODEL_COLOURS[0]),
            ("chat", latent.norm_chat, text.number(latent.norm_chat), MODEL_COLOURS[1]),
        ]
    )
    st.subheader("Tokens at its peaks")
    panels.chips(latent.top_tokens)
    for name, found in (("base", latent.logit_tokens_base), ("chat", latent.logit_tokens_chat)):
        st.caption(f"Raised most through the {name} unembedding")
        reason = info.unavailable.get(f"logit_lens_{name}")
        if reason and not any(found):
            st.caption(f"Not measured: {text.sentence(reason)}")
        else:
            panels.chips(found)
    st.subheader("Share of activation")
    st.caption("by role")
    panels.bars(role_bars(latent, session.bos_left_out(info)), largest=1.0)
    st.caption("by data set")
    panels.bars([share(*each) for each in zip(info.datasets, latent.dataset_shares, strict=False)], largest=1.0)
    st.subheader("Latent scaling")
    scaling_table("Along the chat decoder row (the published choice)", latent.chat_direction)
    with st.expander("Along the base decoder row"):
        scaling_table("", latent.base_direction)
    uselessness(latent, session.uselessness_floor(info))
    neighbours(latent, info)
    coactive(latent, info)


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


def example_note(example: Example) -> str:
    """An example's rank in its group, its strength and length, and the number of texts that it stands for."""
    group = "top" if example.group is ExampleGroup.TOP else f"band {example.quantile}"
    note = f"{group} {example.rank + 1} · max {text.number(example.max)} · {example.num_tokens} tokens"
    if not example.repeats:
        return note
    return f"{note} · stands for {example.repeats:,} more {'text' if example.repeats == 1 else 'texts'}"


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
    st.subheader("Base uselessness")
    panels.facts(
        [
            ("published recipe", text.number(latent.base_uselessness)),
            ("least squares", text.number(latent.base_uselessness_ls, floor=floor)),
            ("alone", text.number(latent.base_uselessness_single, floor=floor)),
        ]
    )
    st.caption(AXES["base_uselessness_single"].meaning)


def neighbours(latent: Latent, info: CrosscoderInfo) -> None:
    """The nearest latents by decoder cosine."""
    found = [(other.latent, other.cosine) for other in latent.neighbours]
    others("Nearest latents", "cosine", "Of both models' decoder rows side by side.", found, info)


def coactive(latent: Latent, info: CrosscoderInfo) -> None:
    """The latents that fire on the same tokens."""
    found = [(other.latent, other.index) for other in latent.coactive]
    help_ = "Tokens on which both fire, as a share of those on which either does."
    others("Fires with", "Jaccard index", help_, found, info)


def others(title: str, measure: str, help_: str, found: list[tuple[int, float]], info: CrosscoderInfo) -> None:
    """Other latents and a measure of how near they are; a row opens one."""
    if not found:
        return
    st.subheader(title)
    columns = [
        Column("latent", [str(latent) for latent, _ in found]),
        Column("name", words.cells(info, [latent for latent, _ in found]), tables.NAME_HELP, is_text=True),
        Column(measure, tables.figures([value for _, value in found], "%.3f"), help_),
    ]
    links = [address.href("latent", {"crosscoder": info.name, "latent": latent}) for latent, _ in found]
    table_view(measure, title, columns, links)


def histogram(latent: Latent, info: CrosscoderInfo) -> None:
    """Density of its activations."""
    if not any(latent.histogram):
        st.info("It never fired in the analysis, so there are no activations and no examples to show.")
        return
    alt = "Histogram of its scaled activations, tokens on a logarithmic axis"
    panels.plot(charts.activations(latent.histogram, info.histogram_edges), "histogram", alt)


@st.fragment
def examples(latent: Latent, info: CrosscoderInfo) -> None:
    """Draws the texts on which it fires. Errors are shown here, because this part may be drawn again alone."""
    with session.shown_errors():
        list_examples(latent, info)


def list_examples(latent: Latent, info: CrosscoderInfo) -> None:
    """Texts on which it fires, with a choice of group, data set and context width."""
    st.subheader("Examples")
    row = st.container(horizontal=True, vertical_alignment="bottom")
    group = url.segments(row, "Group", list(GROUPS), "all", "group")
    dataset = url.choice(row, "Data set", ["all", *info.datasets], "all", "dataset", width=160)
    context = url.choice(row, "Context", CONTEXTS, 32, "context", context_name, width=140)
    limit = min(MAX_EXAMPLES, int(prompts.decimal(st.query_params.get("n"), EXAMPLES_A_PAGE)))
    found = session.examples(
        info.name,
        info.version_id,
        latent.id,
        limit + 1,
        GROUPS[group],
        None if dataset == "all" else dataset,
        context or None,
    )
    if not found:
        st.markdown("No example in this choice. Try another group or data set.")
        return
    shown = found[:limit]
    strips = [
        strip_of_latent(
            example.tokens.pieces,
            example.tokens.roles,
            latent.id,
            example.positions,
            example.activations,
            title=example.dataset,
            note=example_note(example),
            token_start=example.token_start,
            num_tokens=example.num_tokens,
            peak=example.peak,
        )
        for example in shown
    ]
    if any(example.repeats for example in shown):
        st.caption("An example that stands for more texts is one of several with the same words around the peak.")
    event = token_view(
        strips,
        key="examples",
        scale_max=latent.max or None,
        colour_by=latent.id,
        locked=locked_token(),
        action="Prompt lab",
    )
    if event and event.kind in ("lock", "unlock"):
        url.keep("token", f"{event.strip}.{event.position}" if event.kind == "lock" else None)
    if event and event.kind == "open":
        whole = session.examples(
            info.name, info.version_id, latent.id, limit + 1, GROUPS[group], None if dataset == "all" else dataset, None
        )[event.strip]
        address.go("lab", crosscoder=info.name, by=latent.id, **prompts.of_tokens(whole.tokens).params())
    if len(found) > limit and limit < MAX_EXAMPLES:
        st.button("More examples", on_click=url.keep, args=("n", str(limit + EXAMPLES_A_PAGE)))
