"""Look: where the models of a pair differ on a data set, and at which layer, before any dictionary is trained."""

from collections.abc import Sequence
from datetime import datetime

import streamlit as st

from crosscope import Continuation, CrosscoderInfo, Finding, Look, LookInfo, LookText, NextToken
from crosscope.app import (
    address,
    charts,
    composer,
    errors,
    panels,
    prompts,
    session,
    text,
    url,
)
from crosscope.app.next_tokens import side_by_side
from crosscope.app.table_view import Column, table_view
from crosscope.app.token_view import Strip, token_view

MEASURE = "KL(chat‖base), nats:"
COMMAND = "crosscope look PAIR DATA --watch"
CONVERSATIONS_A_PAGE = 5
BEFORE = 8
"""Tokens in front of a finding that its row shows."""


def page() -> None:
    """Draws the page."""
    st.title("Look")
    with errors.shown_errors():
        found = session.looks()
        for info in found:
            if info.broken:
                st.warning(f"The look {text.plain(info.name)} cannot be read: {text.sentence(info.broken)}")
        readable = [info for info in found if not info.broken]
        if not readable:
            st.markdown(
                "There is no look yet. It takes minutes, needs no dictionary, and says where the models of a pair "
                "differ and which layer carries it:"
            )
            st.code(COMMAND, language="bash")
            return
        info = chosen_look(readable)
        contents(session.look(info.name, info.created_at))


def chosen_look(found: Sequence[LookInfo]) -> LookInfo:
    """The look of the URL, else the newest."""
    names = [info.name for info in found]
    wanted = st.query_params.get("look")
    if wanted is not None and wanted not in names:
        st.warning(f"There is no look {text.plain(wanted)}. Showing {text.plain(names[0])}.")
    name = url.choice(st.container(), "Look", names, names[0], "look", width=260)
    url.fill_in(look=name)
    return found[names.index(name)]


def contents(look: Look) -> None:
    """Draws all that a look found."""
    facts(look)
    st.header("Which layer")
    st.markdown(text.sentence(look.reason))
    if look.recipe_line:
        st.code(look.recipe_line, language="yaml")
    if look.layers:
        swept = f"Measured on {look.info.sweep_tokens} findings of {look.info.sweep_texts} texts."
        st.caption(f"Share of the difference that goes when one model's stream takes the other's place. {swept}")
        alt = "Share of the difference that each layer's streams carry, in both directions"
        panels.plot(charts.layers(look.layers, look.recommended_layer), "look-layers", alt)
    findings(look)
    groups(look)
    conversations(look)
    continuations(look.continuations)
    first_positions(look)


def facts(look: Look) -> None:
    """What was compared, and what was left out."""
    info = look.info
    figures = info.figures
    panels.facts(
        [
            ("pair", info.pair, f"{info.num_layers} layers"),
            ("tokens", text.count(info.num_tokens), f"of {info.num_texts} texts: {', '.join(info.datasets)}"),
            ("mean KL(chat‖base)", text.with_error(info.mean_kl.value, info.mean_kl.se), "nats a token"),
            ("largest", text.number(figures.get("max_kl")), "nats"),
            ("concentrated", share(figures.get("share_top")), "in the largest hundredth of the tokens"),
            ("made at", f"{datetime.fromtimestamp(info.created_at):%d %b %Y %H:%M}"),
        ]
    )
    for line in look.remarks:
        st.caption(text.sentence(line))


def share(value: float | None) -> str:
    """A share as people read it."""
    return "–" if value is None or value != value else f"{value:.0%}"


def findings(look: Look) -> None:
    """The tokens that differ most; a row shows its text and both models' next tokens."""
    st.header("Tokens that differ most")
    if not look.findings:
        st.markdown("No token differs.")
        return
    rows = [
        Column("KL", [text.number(each.kl) for each in look.findings], "KL(chat‖base) of the next token, nats."),
        Column("token", [text.visible(each.piece) for each in look.findings], is_text=True),
        Column("base next", [best(each.base) for each in look.findings], "Most probable in base.", is_text=True),
        Column("chat next", [best(each.chat) for each in look.findings], "Most probable in chat.", is_text=True),
        Column("role", [each.role.replace("_", " ") for each in look.findings], is_text=True),
        Column("before it", [before(each) for each in look.findings], is_text=True),
        Column("data set", [each.text.dataset for each in look.findings], is_text=True),
    ]
    links = [address.here({"finding": index}) for index in range(len(look.findings))]
    wanted = int(prompts.decimal(st.query_params.get("finding"), -1))
    chosen = wanted if 0 <= wanted < len(look.findings) else None
    table_view("look-findings", "Tokens that differ most", rows, links, chosen=chosen, max_height=340)
    if look.num_findings > len(look.findings):
        st.caption(f"The first {len(look.findings)} of {look.num_findings}.")
    if chosen is None:
        st.caption("A row shows its whole text and both models' next tokens.")
        return
    finding = look.findings[chosen]
    strips_of([finding.text], "look-finding", look, at=finding.position)
    side_by_side("look-next", finding.base, finding.chat)


def best(found: Sequence[NextToken]) -> str:
    """The most probable next token, with its probability."""
    return f"{text.visible(found[0].piece)} {found[0].probability:.0%}" if found else "–"


def before(finding: Finding) -> str:
    """The tokens in front of a finding."""
    start = max(0, finding.position - BEFORE)
    return text.visible("".join(finding.text.tokens.pieces[start : finding.position])) if finding.position else ""


def groups(look: Look) -> None:
    """The difference by data set and by role."""
    if not look.groups:
        return
    st.header("By data set and role")
    rows = [
        Column("", [each.kind for each in look.groups], is_text=True),
        Column("name", [each.name.replace("_", " ") for each in look.groups], is_text=True),
        Column("tokens", [text.count(each.num_tokens) for each in look.groups]),
        Column("texts", [text.count(each.num_texts) for each in look.groups]),
        Column("mean KL", [text.with_error(e.mean.value, e.mean.se) for e in look.groups], "Nats a token."),
        Column("share", [share(each.share) for each in look.groups], "Of the sum of the KL over all tokens."),
    ]
    table_view("look-groups", "By data set and role", rows)


def conversations(look: Look) -> None:
    """The texts that differ most, coloured by KL."""
    if not look.conversations:
        return
    st.header("Texts that differ most")
    shown = int(prompts.decimal(st.query_params.get("n"), CONVERSATIONS_A_PAGE))
    strips_of(look.conversations[:shown], "look-conversations", look)
    if shown < len(look.conversations):
        st.button("More texts", on_click=url.keep, args=("n", str(shown + CONVERSATIONS_A_PAGE)))


def strips_of(texts: Sequence[LookText], key: str, look: Look, at: int | None = None) -> None:
    """Draws texts coloured by KL. A button opens one in the prompt lab, if the chosen crosscoder is of the pair."""
    crosscoder = session.chosen()
    has_lab = crosscoder is not None and crosscoder.pair == look.info.pair
    strips = [
        Strip(
            each.tokens.pieces,
            each.tokens.roles,
            [0] * (len(each.tokens.pieces) + 1),
            (),
            (),
            title=each.dataset,
            note=note_of(each),
            peak=at,
            left_out=each.tokens.left_out,
            shades=each.kl,
            actions={"open": "Prompt lab"} if has_lab else {},
        )
        for each in texts
    ]
    event = token_view(
        strips,
        key=key,
        measure=MEASURE,
        locked=None if at is None else (0, at),
        line_breaks=True,
    )
    if event and event.kind == "open" and crosscoder is not None:
        open_in_lab(texts[event.strip], crosscoder)


def note_of(found: LookText) -> str:
    """How much the models differ on a text, and where it comes from."""
    compared = f"{found.num_tokens} tokens compared"
    return f"mean KL {text.number(found.mean)} nats · {compared} · {text.without_paths(found.place)}"


def open_in_lab(found: LookText, info: CrosscoderInfo) -> None:
    """Goes to the prompt lab with a text, coloured by KL."""
    prompt = prompts.of_tokens(found.tokens)
    if not prompt.fits_url():
        composer.store(prompt)
    address.go("lab", crosscoder=info.name, shade="kl", **composer.link_params(prompt))


def continuations(found: Sequence[Continuation]) -> None:
    """What both models say after prompts that differ most, greedily."""
    if not found:
        return
    st.header("What they say")
    st.caption("Greedy answers to prompts at whose answers the models differ most.")
    for index, each in enumerate(found):
        with st.container(border=True):
            st.caption(f"{text.plain(each.dataset)} · KL {text.number(each.kl)} nats over the first tokens")
            prompt = prompts.of_tokens(each.prompt)
            turns = [f"**{turn.role}:** {text.plain(turn.content)}" for turn in prompt.turns] or [
                text.plain(prompt.text)
            ]
            st.markdown("  \n".join(turns))
            with st.container(key=f"wrap-controls-continuation-{index}"):
                columns = st.columns(2)
            pairs = (("base", each.base, each.base_ended), ("chat", each.chat, each.chat_ended))
            for column, (name, said, ended) in zip(columns, pairs, strict=True):
                column.markdown(f"**{name}:** {text.plain(said)}{'' if ended else ' …'}")


def first_positions(look: Look) -> None:
    """The mean activation difference at the first positions, read through both models' heads."""
    if not look.first:
        return
    st.header("First positions")
    st.caption(
        "The mean of chat's stream less base's at the first positions of the texts, and the tokens it raises most."
    )
    rows = [
        Column("data set", [each.dataset for each in look.first], is_text=True),
        Column("layer", [str(each.layer) for each in look.first]),
        Column("position", [str(each.position) for each in look.first]),
        Column("texts", [text.count(each.num_texts) for each in look.first]),
        Column("norm", [text.number(each.norm) for each in look.first], "Of the mean difference."),
        Column("norm of base", [text.number(each.norm_base) for each in look.first], "Of base's mean there."),
        Column("base's head", [tokens_of(each.tokens_base) for each in look.first], is_text=True),
        Column("chat's head", [tokens_of(each.tokens_chat) for each in look.first], is_text=True),
    ]
    table_view("look-first", "First positions", rows, max_height=340)


def tokens_of(found: Sequence[str]) -> str:
    """Tokens on one line."""
    return "  ".join(map(text.visible, found)) or "–"
