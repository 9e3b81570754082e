"""What tuning added, as cards: groups of latents that chat alone has, an example of each, and links to try it.

Pure functions from groups to texts and HTML; every text that comes from data is escaped. Draws nothing.
"""

import math
from collections.abc import Iterator, Mapping
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from crosscope import Arm, CrosscoderInfo, Example, LatentGroup, LatentGroupList, Steer, TokenRole, Tokens
from crosscope._groups import rounded
from crosscope._tables import MARKS
from crosscope.app import address, prompts
from crosscope.app.composer import link_params
from crosscope.app.prompts import LabPrompt
from crosscope.app.selection import MAX_IDS
from crosscope.app.text import count, judged, number, visible
from crosscope_proto.limits import MAX_NU_ERR, MAX_NU_REC, MIN_TEXTS, NUM_SE

QUOTED = 14
"""Tokens that a card quotes on each side of the peak."""
MOST_LATENTS = 5
"""Latents that a card names one by one."""
COUNTED = f"""\
- **Specific to chat**: base lacks what the latent writes. Along chat's decoder row ν err < {MAX_NU_ERR:g} and \
ν rec < {MAX_NU_REC:g}, each by more than {NUM_SE:g} standard errors, in at least {MIN_TEXTS} distinct texts, and chat \
does not lack base's row. The class by norm plays no part. *Supported* says that nothing else speaks against it \
(math §6).
- **A group**: two latents are joined if they fire together on at least one in ten of the tokens of either, \
strongest pair first. The best detectors of a behaviour that the data tags stand in one group from the start; a pair \
that would unite two behaviours is left out (math §13).
- **A name**: what a person called one of its latents; else the behaviour; else the text around the peak of the \
strongest example.
- **Texts**: distinct held-out texts in which the group's most frequent latent fires.
- **Without it**: by how much KL(chat‖base) falls when one latent is ablated in chat, and when chat's row of it is put \
into base: means over the assistant's tokens, with standard errors over texts (math §11). Effects of several latents \
do not add up.
"""
"""How the sentences and cards are counted, in Markdown."""


@cache
def style() -> str:
    """The style sheet of the cards as an element of a page."""
    return f"<style>{Path(__file__).with_name('story.css').read_text('utf-8')}</style>"


def sentences(groups: LatentGroupList, metrics: Mapping[str, float]) -> list[str]:
    """What the groups say, and what the causal patch says of all such latents together; plain sentences."""
    base, patch, full = (metrics.get(f"kl_{name}_all", math.nan) for name in ("base", "patch", "full"))
    said = list(groups.sentences)
    if base > 0 and not math.isnan(patch + full):
        num = metrics.get("patch_latents", 0)
        which = "the most chat-specific latent" if num == 1 else f"the {count(num)} most chat-specific latents"
        together, close = ("", "closes") if num == 1 else (" together", "close")
        said.append(
            f"Put into base's stream{together}, {which} by decoder norms {close} {1 - patch / base:.0%} of the way "
            f"from base to chat; all latents close {1 - full / base:.0%}."
        )
    return said


def card(group: LatentGroup, info: CrosscoderInfo, gap: float) -> str:
    """One group as HTML; `gap` is `LatentGroupList.gap`."""
    parts = [
        f"<h3>{escape(group.name)}</h3>",
        f'<p class="what">{escape(what(group))}</p>',
        quote(group.examples[0]) if group.examples else "",
        f'<ul class="latents">{"".join(latent_lines(group, info))}</ul>',
        f'<p class="without">{escape(effect(group, gap))}</p>',
        f'<p class="links">{"".join(links(group, info))}</p>',
    ]
    return f'<div class="xs-card">{"".join(parts)}</div>'


def what(group: LatentGroup) -> str:
    """What a group is, in a phrase."""
    num = len(group.latents)
    texts = f"in at least {count(group.num_texts)} texts" if group.num_texts else "texts were not counted"
    latents = "1 latent" if num == 1 else f"{count(num)} latents"
    tagged, own = "a behaviour that the data tags", "named after its strongest example"
    kind = f"{tagged}: {group.tagged}" if group.behaviour and group.called else tagged if group.behaviour else own
    if group.called and not group.behaviour:
        kind = "named by a person"
    return f"{kind} · {latents}, {group.num_supported} supported · {texts}"


def quote(example: Example) -> str:
    """The text around an example's peak, its active tokens shaded and underlined."""
    tokens, values = example.tokens, example.values()
    first, last = max(0, example.peak - QUOTED), min(len(tokens), example.peak + QUOTED + 1)
    turn, spans = '<span class="turn"> ⏎ </span>', []
    for i in range(first, last):
        if tokens.is_template[i] and not values[i]:
            if tokens.roles[i] is TokenRole.TURN_END and spans and spans[-1] != turn:
                spans.append(turn)
            continue
        piece = escape(tokens.pieces[i].replace("\n", MARKS["\n"] + " ")) or "⋯"
        if values[i] > 0:
            share = min(1.0, values[i] / example.max) if example.max > 0 else 0.0
            shade = f"background:color-mix(in srgb, var(--xs-heat) {15 + 55 * share:.0f}%, transparent)"
            piece = f'<b style="{shade}" title="activation {number(values[i])}">{piece}</b>'
        spans.append(piece)
    if spans and spans[-1] == turn:
        spans.pop()
    before, after = "… " if first else "", " …" if last < len(tokens) else ""
    return f"<blockquote>{before}{''.join(spans)}{after}</blockquote>"


def latent_lines(group: LatentGroup, info: CrosscoderInfo) -> Iterator[str]:
    """A line for each latent, as HTML: a link, its class and verdict, the tokens at its peaks."""
    for latent in group.latents[:MOST_LATENTS]:
        where = address.href("latent", {"crosscoder": info.name, "latent": latent.id, "specific": "chat"})
        kind = judged(latent.latent_class, latent.verdict.verdict, latent.verdict.specific_to or "")
        peaks = " ".join(map(visible, latent.top_tokens[:3]))
        yield (
            f"<li>{address.link(where, f'latent {latent.id}')} "
            f'<span title="{escape(str(latent.verdict))}">{escape(kind)}</span>'
            f" <code>{escape(peaks)}</code></li>"
        )
    if (more := len(group.latents) - MOST_LATENTS) > 0:
        yield f"<li>and {more} more</li>"


def effect(group: LatentGroup, gap: float) -> str:
    """What happens to the models without the group's strongest latent, as it was measured."""
    if group.measured is None:
        return "What they do was not measured; a recipe of kind causal does. Ask the models below."
    of = f" of {number(gap)}" if not math.isnan(gap) else ""
    said = f"Without latent {group.measured.id}, chat comes {rounded(group.ablation)}{of} nats nearer to base"
    if math.isnan(group.transplant.value):
        return f"{said}."
    return f"{said}; with it, base comes {rounded(group.transplant)} nearer to chat."


def links(group: LatentGroup, info: CrosscoderInfo) -> Iterator[str]:
    """Links to try the group and to see its latents in the atlas, as HTML."""
    ids = ",".join(map(str, group.ids[:MAX_IDS]))
    yield address.link(address.href("atlas", {"crosscoder": info.name, "ids": ids, "order": "verdict"}), "in the atlas")
    if not group.examples:
        return
    example = group.examples[0]
    ablate = str(Steer(latents=group.ids, ablate=True))
    asked = {"crosscoder": info.name, **link_params(request(example)), "steer": ablate}
    yield address.link(address.href("steer", asked), "steer without them")
    shown = {"crosscoder": info.name, **link_params(prompts.of_tokens(example.tokens)), "by": group.latents[0].id}
    yield address.link(address.href("lab", shown), "the prompt in the lab")


def request(example: Example) -> LabPrompt:
    """What an example's text asks a model: its conversation before the answer with the peak, or its text up to it."""
    tokens, peak = example.tokens, example.peak
    ends = (i + 1 for i in range(peak, len(tokens)) if tokens.roles[i] is TokenRole.TURN_END)
    turns = prompts.of_tokens(_first(tokens, next(ends, len(tokens))))
    if turns.turns:
        return turns.question().to_answer()
    before = prompts.of_tokens(_first(tokens, peak))
    return turns if before.is_empty else before


def _first(tokens: Tokens, num: int) -> Tokens:
    return Tokens(tokens.ids[:num], tokens.pieces[:num], tokens.roles[:num])


def arms(group: LatentGroup, info: CrosscoderInfo, reads: str) -> tuple[Arm, ...]:
    """Chat as it is and without the group; base as it is, and with the group where it can be put in.

    `reads` is that of the manifest: what the dictionary reconstructs.
    """
    found = [
        Arm(model="chat", name="chat"),
        Arm(model="chat", steer=Steer(latents=group.ids, ablate=True), name="chat without them"),
        Arm(model="base", name="base"),
    ]
    if reads in ("", "both") and len(set(info.d_model)) == 1:
        found.append(Arm(model="base", steer=Steer(latents=group.ids, transplant=True), name="base with them"))
    return tuple(found)


def answers(said: Mapping[str, str], asked: str, *, is_over: bool) -> str:
    """A request and the answers of arms by name as HTML, as far as they have come; at the end, what differs."""
    shown = {"request": asked, **said}
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text) or '…'}</dd>" for name, text in shown.items())
    remarks = [
        f"{verb} them, {model} answers {'the same' if said[f'{model} {end}'] == said[model] else 'something else'}."
        for model, verb, end in (("chat", "Without", "without them"), ("base", "With", "with them"))
        if is_over and f"{model} {end}" in said
    ]
    return f'<dl class="xs-answers">{rows}</dl><p class="xs-note">{escape(" ".join(remarks))}</p>'


def parameters(chosen: CrosscoderInfo) -> dict[str, Any]:
    """Parameters of the atlas with all latents that are specific to chat."""
    return {"crosscoder": chosen.name, "specific": ["chat"], "order": "verdict"}
