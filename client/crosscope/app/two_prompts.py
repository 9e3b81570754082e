"""The prompt lab's second prompt: its tokens, and the latents that tell it from the first, by how much."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import streamlit as st

from crosscope import CrosscoderInfo, Encoding, TopLatents
from crosscope.app import (
    address,
    asking,
    errors,
    panels,
    prompts,
    tables,
    text,
    url,
)
from crosscope.app.latent_list import latent_list
from crosscope.app.prompts import LabPrompt
from crosscope.app.table_view import Column, Gauge
from crosscope.app.token_view import Strip, token_view

PARAM = "b"
"""The URL's parameter with the second prompt, as it was typed."""
MOST_LATENTS = 10_000
"""Latents of each prompt that are asked for; the server gives no more."""
HELP = "A text, a turn of the user, or a conversation to paste, as under “Paste a conversation”."


@dataclass(frozen=True)
class Difference:
    """What latents do on two prompts, the largest difference first. Arrays are [latent]."""

    ids: np.ndarray
    first: np.ndarray
    second: np.ndarray


def difference(first: TopLatents, second: TopLatents, figure: str) -> Difference:
    """How much more latents do on the first prompt, by their `figure`, "max" or "sum"; 0 where one is silent."""
    one, other = ({entry.latent: getattr(entry, figure) for entry in each} for each in (first, second))
    ids = np.array(sorted(one.keys() | other.keys()), dtype=np.int64)
    a, b = (np.array([values.get(latent, 0.0) for latent in ids.tolist()]) for values in (one, other))
    order = np.argsort(-np.abs(a - b), kind="stable")
    return Difference(ids[order], a[order], b[order])


def section(prompt: LabPrompt, encoding: Encoding, ranking: dict[str, Any], info: CrosscoderInfo) -> None:
    """Draws the field of the second prompt, and the difference once there is one."""
    said = st.query_params.get(PARAM, "")
    box = panels.folded("Compare with a second prompt", "second", opened=bool(said))
    if not box:
        return
    with box:
        st.session_state[key := "second-prompt"] = said
        write = lambda: url.keep(PARAM, st.session_state[key] or None)  # noqa: E731
        st.text_area("Second prompt", key=key, height=80, help=HELP, on_change=write)
        if said:
            with errors.shown_errors(said, "second"):
                compared(prompt, prompts.second(said, prompt), encoding, ranking, info)


def compared(
    prompt: LabPrompt, other: LabPrompt, encoding: Encoding, ranking: dict[str, Any], info: CrosscoderInfo
) -> None:
    """Draws both strips and the latents that differ most; `ranking` says which tokens and latents count, and how."""
    whole = {name: value for name, value in ranking.items() if name != "tokens"} | {"limit": MOST_LATENTS}
    asked, question = [json.dumps(each.arguments()) for each in (prompt, other)], json.dumps(whole)
    asking.ask_ahead("encode", info.name, info.version_id, asked[1])
    tops = [asking.top_latents(info.name, info.version_id, each, question) for each in asked]
    second = asking.encode(info.name, info.version_id, asked[1])
    by = prompts.decimal(st.query_params.get("by"), -1)
    strips = [strip(each, f"{name}: {len(each)} tokens") for name, each in (("first", encoding), ("second", second))]
    token_view(strips, key="lab-two", colour_by=by if by >= 0 else None, line_breaks=True, columns=2)
    figure = "sum" if ranking["rank"] == "sum" else "max"
    found = difference(tops[0], tops[1], figure)
    shown = slice(ranking["limit"])
    ids, first, last = found.ids[shown], found.first[shown], found.second[shown]
    top = float(max(first.max(initial=0), last.max(initial=0))) or 1.0
    both = [
        Gauge(head, tables.figures(values), values.tolist(), top=top, help=f"The {figure} on the whole {head} prompt.")
        for head, values in (("first", first), ("second", last))
    ]
    less = Column("difference", tables.figures(first - last), "First less second, over whole prompts.")
    more = [tables.gauged("on the prompts", both), less]
    links = [address.here({"by": latent, "shade": None}) for latent in ids.tolist()]
    latent_list("two-latents", "Latents that tell the prompts apart", ids, info, links, more=more, chosen=by)
    cut = [top.num_latents for top in tops if top.num_latents > len(top)]
    lost = f" Of {text.count(max(cut))} latents of a prompt, the first {text.count(MOST_LATENTS)} count." if cut else ""
    listed = f"{len(ids)} of {text.count(len(found.ids))} latents"
    st.caption(f"{listed}, by the size of the difference of their {figure}.{lost}")


def strip(encoding: Encoding, title: str) -> Strip:
    """The tokens of one prompt."""
    return Strip(
        encoding.tokens.pieces,
        encoding.tokens.roles,
        encoding.row_starts.tolist(),
        encoding.latents.tolist(),
        encoding.activations.tolist(),
        title=title,
        left_out=encoding.tokens.left_out,
    )
