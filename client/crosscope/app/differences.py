"""What the prompt lab shows of both models' predictions: colours of tokens, next tokens, the latents behind them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import nan

import numpy as np
import streamlit as st

from crosscope import (
    Attribution,
    BothAttributions,
    Comparison,
    CrosscoderInfo,
    Encoding,
    LatentInBoth,
    LeftOut,
    ModelPredictions,
)
from crosscope._tables import percent
from crosscope.app import (
    address,
    asking,
    composer,
    panels,
    prompts,
    tables,
    text,
    url,
)
from crosscope.app.columns import SPECIFIC_OF_NUMBER
from crosscope.app.latent_list import latent_list
from crosscope.app.next_tokens import side_by_side
from crosscope.app.prompts import LabPrompt
from crosscope.app.table_view import Column, Gauge
from crosscope_proto.verdict import SpecificTo

LATENTS, SPECIFIC = "latents", "specific"
"""Colourings that need no comparison of the models."""
SPECIFIC_MEASURE = "activation of latents specific to chat:"
SHADE, WHY = "shade", "why"
"""Names of parameters of the URL."""
INTO_BASE_HELP = (
    "Share of the KL that goes when chat's row of this latent is put into the base model, which then is run again. "
    "Below 0 the models differ more. ~: estimated. –: not measured in base."
)
OUT_OF_CHAT_HELP = (
    "Share of the KL that goes when this latent is taken out of the chat model, which then is run again. It is small "
    "where other latents carry the same. Below 0 the models differ more. ~: estimated. –: not measured in chat."
)
AT_HELP = "Behind it: the token at which it acts most, by the estimate, in the model where it carries more."
TRY_HELP = "Both models' answers with this change."


@dataclass(frozen=True)
class Shade:
    """A figure that colours tokens."""

    label: str
    measure: str
    """What stands at the scale and in front of a figure."""
    of: Callable[[Comparison], np.ndarray]
    """[token]; empty where it is not defined."""
    missing: str = ""
    """Why it may not be defined."""


SHADES: Mapping[str, Shade] = {
    "kl": Shade("KL(chat‖base)", "KL(chat‖base), nats:", lambda found: found.kl_chat_base),
    "difference": Shade(
        "difference norm",
        "norm of chat − base:",
        lambda found: found.difference_norms,
        "the models differ in width",
    ),
    "error_chat": Shade(
        "reconstruction error, chat",
        "norm of chat's error:",
        lambda found: found.chat.error_norms,
        "this dictionary does not reconstruct the chat model's activations",
    ),
    "error_base": Shade(
        "reconstruction error, base",
        "norm of base's error:",
        lambda found: found.base.error_norms,
        "this dictionary does not reconstruct the base model's activations",
    ),
}


def shade_name(has_specific: bool) -> str:
    """What colours the tokens by the URL: LATENTS, SPECIFIC or one of SHADES.

    If the URL does not say, it is the latent that it names, else what is specific to chat, where any latent is.
    """
    options = (LATENTS, SPECIFIC, *SHADES)
    default = SPECIFIC if has_specific and st.query_params.get("by") is None else LATENTS
    found = st.query_params.get(SHADE, default)
    return found if found in options else default


def shade_choice(has_specific: bool) -> None:
    """Draws the choice of what colours the tokens."""
    names = {LATENTS: "latents", SPECIFIC: "chat-specificity"} | {name: shade.label for name, shade in SHADES.items()}
    default = SPECIFIC if has_specific and st.query_params.get("by") is None else LATENTS
    row = st.container(horizontal=True)
    url.choice(row, "Colour tokens by", tuple(names), default, SHADE, names.__getitem__, width=230)


def specificity(encoding: Encoding, specific_to: np.ndarray) -> np.ndarray:
    """[token] the activations of all latents that are specific to chat by their measurements, added up."""
    is_chat = specific_to[encoding.latents] == SPECIFIC_OF_NUMBER.index(SpecificTo.CHAT)
    return np.bincount(encoding.token_index(), encoding.activations * is_chat, len(encoding))


def colours(shade: Shade, comparison: Comparison) -> np.ndarray | None:
    """[token] the figure that colours the tokens; None, with a sentence why, if it is not defined here."""
    values = shade.of(comparison)
    if not len(values):
        st.caption(f"There is no {shade.label} here: {shade.missing}.")
        return None
    return values


def top_of(values: np.ndarray, left_out: tuple[LeftOut, ...]) -> float | None:
    """Top of the colour scale: the largest figure at a token that training did not leave out."""
    kept = np.array([reason == LeftOut.KEPT for reason in left_out]) if left_out else np.ones(len(values), dtype=bool)
    finite = values[kept & np.isfinite(values)]
    return float(finite.max(initial=0)) or None


def notes(comparison: Comparison) -> list[str]:
    """A line about each token: how both models' predictions and streams differ there."""
    lines = [f"KL(chat‖base) {text.number(value)} nats" for value in comparison.kl_chat_base.tolist()]
    if len(comparison.difference_norms):
        pairs = zip(lines, comparison.difference_norms.tolist(), comparison.cosines.tolist(), strict=True)
        lines = [f"{line} · norm of chat − base {text.number(n)} · cosine {text.number(c)}" for line, n, c in pairs]
    return lines


def next_tokens(comparison: Comparison, token: int) -> None:
    """Draws both models' most probable next tokens at a token side by side, and how they ranked what came."""
    st.header("What comes next")
    kl, reverse = float(comparison.kl_chat_base[token]), float(comparison.kl_base_chat[token])
    is_last = token + 1 == len(comparison)
    came = None if is_last else comparison.tokens.ids[token + 1]
    piece = "" if is_last else text.visible(comparison.tokens.pieces[token + 1])
    said = "It is the last token. " if is_last else f"Came: **{text.plain(piece)}** · "
    st.markdown(f"{said}KL(chat‖base) {text.number(kl)}, KL(base‖chat) {text.number(reverse)} nats")
    both = comparison.next_tokens(token)
    said = (said_of(comparison.base, token), said_of(comparison.chat, token))
    side_by_side("next", both.base, both.chat, said=said, came=came)


def said_of(model: ModelPredictions, token: int) -> str:
    """How a model ranked the token that came, and how sure it was of any."""
    entropy = f"entropy {text.number(float(model.entropies[token]))} nats"
    rank = int(model.ranks[token])
    if not rank:
        return entropy
    probability = float(np.exp(model.log_probabilities[token]))
    return f"rank {text.count(rank)} for what came, {probability:.1%}; {entropy}"


def is_asked_why() -> bool:
    """Whether the URL asks which latents carry the difference."""
    return st.query_params.get(WHY) == "true"


def why_switch(locked: int | None) -> None:
    """A button that asks which latents carry the difference at the locked token, else where it is largest."""
    row = st.container(horizontal=True, vertical_alignment="center")
    if is_asked_why():
        row.button("Close the explanation", on_click=url.keep, args=(WHY, None), key="why-not")
    else:
        row.button("Why do they differ here?", on_click=url.keep, args=(WHY, "true"), key="why")
        row.caption("At the token where they differ most." if locked is None else f"At token {locked}.")


def why(prompt: LabPrompt, arguments: str, comparison: Comparison, locked: int | None, info: CrosscoderInfo) -> None:
    """Draws which latents carry the difference at the locked token, else where it is largest."""
    most = comparison.most_different(1, skip_template_tokens=True, include_left_out=False)
    tokens = [locked] if locked is not None else most
    if not tokens:
        st.markdown(
            "Every token is of the template or was left out by training. Click one to ask about it all the same."
        )
        return
    st.header("Why they differ")
    piece = text.plain(text.visible(comparison.tokens.pieces[tokens[0]]))
    st.caption(f"At token {tokens[0]}, “{piece}”" + (", where they differ most." if locked is None else "."))
    explanation(prompt, asking.attribute_both(info.name, info.version_id, arguments, tokens[0]), info)


def explanation(prompt: LabPrompt, found: BothAttributions, info: CrosscoderInfo) -> None:
    """Draws the latents that change a difference, by what they do in both models, and what all of them do."""
    panels.facts([("KL(chat‖base)", f"{text.number(found.ablation.value)} nats"), *totals(found)])
    st.caption(" ".join(not_shown(found)))
    if not found.entries:
        st.markdown("No latent fires before this token.")
        return
    ids = np.array([entry.latent for entry in found])
    changes = ["transplant" if entry.strongest is entry.transplant else "ablate" for entry in found]
    question = composer.link_params(prompt.question())
    steer_links = [
        address.href("steer", {"crosscoder": info.name, **question, "steer": f"{entry.latent} {change}"})
        for entry, change in zip(found, changes, strict=True)
    ]
    sides = [
        ("into base", INTO_BASE_HELP, [entry.transplant for entry in found]),
        ("out of chat", OUT_OF_CHAT_HELP, [entry.ablation for entry in found]),
    ]
    cells = zip(*(entry.cells() for entry in found), strict=True)
    gauges = [
        Gauge(head, said, [nan if each is None else each.share for each in effects], help=help_)
        for (head, help_, effects), said in zip(sides, cells, strict=True)
    ]
    acts = [f"{change} at {acts_at(found, entry)}" for entry, change in zip(found, changes, strict=True)]
    more = [
        tables.gauged("share of the KL", gauges),
        Column("try it", acts, f"{TRY_HELP} {AT_HELP}", is_text=True, links=steer_links),
    ]
    links = [address.here({"by": latent, SHADE: None}) for latent in ids.tolist()]
    chosen = prompts.decimal(st.query_params.get("by"), -1)
    latent_list("why-latents", "Latents that carry the difference", ids, info, links, more=more, chosen=chosen)
    st.caption("A row colours the tokens by its latent.")


def acts_at(found: BothAttributions, entry: LatentInBoth) -> str:
    """The token at which a latent acts most."""
    token = entry.strongest.peak_token
    return f"{token} {text.isolated(text.visible(found.ablation.tokens.pieces[token]))}"


def totals(found: BothAttributions) -> list[tuple[str, str, str]]:
    """What all latents and the whole streams do in both models, as facts."""
    sides = [(found.transplant, "into base"), (found.ablation, "out of chat")]
    asked = [(side, where) for side, where in sides if side is not None]
    latents = [
        (
            f"all latents, {where}",
            share(side, side.effect_of_all),
            f"{way(side.effect_of_all)} it, by the {side.num_latents} that fire",
        )
        for side, where in asked
    ]
    streams = [
        (
            f"whole stream, {where}",
            share(side, side.effect_of_stream),
            f"{way(side.effect_of_stream)} it: this layer's ceiling",
        )
        for side, where in asked
    ]
    return latents + streams


def way(effect: float) -> str:
    """Whether an effect is a part of the difference or works against it, in front of "it"."""
    return "against" if effect < 0 else "of"


def not_shown(found: BothAttributions) -> list[str]:
    """Sentences about what was listed, measured and left alone."""
    lines = [f"{len(found)} of {found.ablation.num_latents} latents that fire are listed."]
    estimated = sum(not entry.strongest.measured for entry in found)
    if found.refusal:
        lines.append(text.plain(found.refused))
    if estimated:
        lines.append(f"{estimated} of them were estimated only.")
    if found.num_in_one:
        lines.append(f"{found.num_in_one} were measured in one model only, the strongest there by the estimate.")
    if found.ablation.num_left_out:
        number = found.ablation.num_left_out
        left_out = "1 token" if number == 1 else f"{number} tokens"
        lines.append(f"Latents at {left_out} that training left out (BOS, outliers) were left alone.")
    return lines


def share(found: Attribution, effect: float) -> str:
    """An effect as a share of the figure; below 0 the models then differ more."""
    return percent(effect / found.value if found.value else None)
