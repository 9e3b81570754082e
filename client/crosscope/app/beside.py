"""Two latents of one crosscoder beside each other: their figures row by row, then tokens, activations and examples.

The URL names the second latent.
"""

from collections.abc import Sequence
from dataclasses import replace

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from crosscope import CrosscoderInfo, ExampleGroup, Latent
from crosscope._sections import Folded, folded
from crosscope.app import latent_examples, latent_figures, panels, session, text, url
from crosscope.app.columns import AXES
from crosscope.app.palette import CLASS_NAMES, SPECIFIC_NAMES
from crosscope.app.table_view import Column, table_view
from crosscope.app.token_view import token_view

BESIDE = "beside"
"""Name of the URL's parameter."""
NUM_EXAMPLES = 5
CONTEXT = 16
"""Tokens on each side of an example's peak."""


def wanted(num_latents: int) -> int | None:
    """The second latent that the URL names; None if it names none that exists."""
    found = st.query_params.get(BESIDE, "")
    return int(found) if found.isdecimal() and len(found) < 10 and int(found) < num_latents else None


def choice(row: DeltaGenerator, latent: int, info: CrosscoderInfo) -> None:
    """Draws a field for the second latent, and a button that takes it away."""
    other = wanted(info.num_latents)
    key = f"beside-{latent}-{other}"
    row.number_input(
        "Compare with latent",
        0,
        info.num_latents - 1,
        other,
        key=key,
        width=150,
        placeholder="none",
        on_change=lambda: url.keep(BESIDE, None if (n := st.session_state[key]) is None else str(n)),
    )
    if other is not None:
        row.button("Close the comparison", on_click=url.keep, args=(BESIDE, None))


def draw(one: Latent, other: Latent, info: CrosscoderInfo) -> None:
    """Draws both latents."""
    both = (one, other)
    st.header(f"Latents {one.id} and {other.id}")
    st.caption(text.plain(together(one, other)))
    table_view(
        "beside-figures", "Figures of both latents", figures(both, session.uselessness_floor(info)), max_height=700
    )
    with st.container(key="wrap-beside"):
        columns = st.columns(2, gap="large")
    for column, latent, place in zip(columns, both, ("left", "right"), strict=True):
        with column:
            side(latent, info, place)


def together(one: Latent, other: Latent) -> str:
    """How near two latents are, as far as the lists of either say."""
    cosine = _listed(one, other, "neighbours", "cosine")
    index = _listed(one, other, "coactive", "index")
    near = "not among each other's nearest" if cosine is None else f"cosine of the decoder rows {text.number(cosine)}"
    fires = (
        "not among those that fire together most"
        if index is None
        else f"both fire on {text.number(index)} of the tokens on which either does"
    )
    return f"{near}; {fires}.".capitalize()


def _listed(one: Latent, other: Latent, lists: str, measure: str) -> float | None:
    """A measure of two latents, from the list of either that names the other."""
    for first, second in ((one, other), (other, one)):
        for each in getattr(first, lists):
            if each.latent == second.id:
                return getattr(each, measure)
    return None


def figures(both: Sequence[Latent], floor: float) -> list[Column]:
    """A row for each figure, and a column for each latent."""
    sides = [_figures(latent, floor) for latent in both]
    names = [name for name in dict.fromkeys(name for side in sides for name in side) if any(name in s for s in sides)]
    return [
        Column("figure", names, is_text=True),
        *(
            Column(
                f"latent {latent.id}",
                [side.get(name, text.number(None)) for name in names],
                is_text=True,
                is_narrow=True,
            )
            for latent, side in zip(both, sides, strict=True)
        ),
    ]


def _figures(latent: Latent, floor: float) -> dict[str, str]:
    scaling, ratio = latent.chat_direction, latent.beta_ratio
    alone = latent.base_uselessness_single
    return {
        "called": latent.name,
        "class": CLASS_NAMES[latent.latent_class],
        "verdict": latent.verdict.short,
        "specific to": SPECIFIC_NAMES.get(latent.verdict.specific_to or "", text.number(None)),
        AXES["rel_norm"].label: text.number(latent.rel_norm),
        AXES["nu_err"].label: text.with_error(scaling.nu_err.value, scaling.nu_err.se),
        AXES["nu_rec"].label: text.with_error(scaling.nu_rec.value, scaling.nu_rec.se),
        AXES["beta_ratio"].label: text.with_error(ratio.value, ratio.se),
        AXES["base_uselessness_single"].label: text.number(alone, floor=floor),
        "cosine of its rows": text.number(latent.cosine),
        "active tokens": text.count(latent.num_active),
        "frequency": text.with_error(latent.frequency.value, latent.frequency.se),
        "mean activation": text.with_error(latent.mean.value, latent.mean.se),
        "max activation": text.number(latent.max),
        "on template tokens": text.number(latent.template_share),
    }


def side(latent: Latent, info: CrosscoderInfo, place: str) -> None:
    """One latent: tokens, activations, strongest examples."""
    st.header(f"Latent {latent.id}")
    st.caption(text.plain(str(latent.verdict)))
    session.link("latent", f"Latent {latent.id} alone", crosscoder=info.name, latent=latent.id)
    latent_figures.histogram(latent, info, place)
    panels.together(*latent_figures.tokens(latent, info))
    st.header("Strongest examples")
    found = session.examples(info.name, info.version_id, latent.id, 2 * NUM_EXAMPLES, ExampleGroup.TOP, None, CONTEXT)
    shown: list[Folded] = list(folded(found))[:NUM_EXAMPLES]
    if not shown:
        st.markdown("It has no example.")
        return
    strips = [replace(latent_examples.strip(each, latent), actions={}) for each in shown]
    token_view(strips, key=f"beside-{place}", scale_max=latent.max or None, colour_by=latent.id)
