"""How the prompt lab ranks latents: what its URL says, and the widgets that change it. Asks no server."""

from typing import Any

import streamlit as st

from crosscope.app import prompts, url
from crosscope.app.palette import CLASS_NAMES
from crosscope_proto.verdict import Verdict

RANKS = {
    "max": "largest",
    "sum": "sum",
    "count": "tokens",
    "share_of_max": "share of own largest",
    "uselessness": "largest × uselessness",
    "attribution": "what carries the difference",
}
ATTRIBUTION = "attribution"
"""Of RANKS, the one that the server does not rank by: another table has it."""
CLASSES, VERDICTS = ("", *CLASS_NAMES), ("", *Verdict)
LIMITS, DEFAULT_LIMIT = (1, 500), 20
"""Latents that are ranked, at least and at most."""
FREQUENCIES = (1.0, 0.1, 0.03, 0.01, 0.003, 0.001)
TEMPLATE_HELP = (
    "BOS, role headers and turn ends. The last token of an assistant's header, where the model decides, is always "
    "ranked."
)
LEFT_OUT_HELP = "Tokens like those that training left out, for instance BOS: latents fire there as nowhere else."


def chosen_range(num_tokens: int) -> tuple[int, int] | None:
    """The tokens that the URL chooses, the first and one past the last; None for all. The URL names first and last."""
    first, _, last = st.query_params.get("range", "").partition("-")
    start, end = prompts.decimal(first, -1), prompts.decimal(last, -1) + 1
    return (start, min(end, num_tokens)) if 0 <= start < min(end, num_tokens) else None


def ranking_of(tokens: tuple[int, int] | None) -> dict[str, Any]:
    """How the URL ranks latents, as arguments of `Crosscoder.top_latents`; `tokens` as `chosen_range` gives them."""
    rank, frequency = url.option_of(list(RANKS), "max", "rank"), url.option_of(FREQUENCIES, 1.0, "frequency")
    given = {"latent_class": url.option_of(CLASSES, "", "class"), "verdict": url.option_of(VERDICTS, "", "verdict")}
    where = [f"{column} = {value}" for column, value in given.items() if value]
    ranking: dict[str, Any] = {
        "rank": "max" if rank == ATTRIBUTION else rank,
        "limit": url.whole_of(LIMITS, DEFAULT_LIMIT, "limit"),
        "skip_template_tokens": not url.is_on("with_template"),
    }
    ranking |= {"include_left_out": True} if url.is_on("with_left_out") else {}
    ranking |= {"where": where} if where else {}
    ranking |= {"tokens": list(tokens)} if tokens else {}
    return ranking if frequency == 1 else {**ranking, "max_frequency": frequency}


def ranking_controls(tokens: tuple[int, int] | None) -> None:
    """Draws how latents are ranked, which the URL holds, and of which tokens."""
    st.header(f"Latents of tokens {tokens[0]} to {tokens[1] - 1}" if tokens else "Latents of the prompt")
    if tokens:
        st.button("Rank the whole prompt", on_click=url.keep, args=("range", None))
    row = st.container(horizontal=True, vertical_alignment="bottom")
    rank = url.choice(row, "Rank by", list(RANKS), "max", "rank", RANKS.__getitem__, width=150)
    url.choice(row, "Frequency", FREQUENCIES, 1.0, "frequency", frequency_name, width=150)
    url.whole_number(row, "At most", LIMITS, DEFAULT_LIMIT, "limit", 110)
    switches = st.container(horizontal=True)
    url.toggle(switches, "Template tokens", "with_template", help=TEMPLATE_HELP)
    url.toggle(switches, "Left-out tokens", "with_left_out", help=LEFT_OUT_HELP)
    limits = st.container(horizontal=True, vertical_alignment="bottom")
    url.choice(limits, "Class", CLASSES, "", "class", lambda o: CLASS_NAMES.get(o, "any"), width=150)
    url.choice(limits, "Verdict", VERDICTS, "", "verdict", lambda o: o.replace("_", " ") or "any", width=150)
    if rank == ATTRIBUTION:
        st.caption("What carries the difference is listed below; here latents come by their largest activation.")


def frequency_name(limit: float) -> str:
    """A limit on the firing frequency, for people. It acts before the number of latents is cut."""
    return "any" if limit == 1 else f"at most {limit:.1%}"
