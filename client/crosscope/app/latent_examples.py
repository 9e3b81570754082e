"""The examples of a latent's page: the strongest, the bands, and the silent ones, each under a heading with its range.

Does not know the statistics of the latent.
"""

from collections.abc import Sequence
from dataclasses import replace

import streamlit as st

from crosscope import CrosscoderInfo, Example, ExampleGroup, ExampleList, Latent
from crosscope._sections import Folded, Section, sections
from crosscope.app import (
    address,
    asking,
    errors,
    prompts,
    session,
    text,
    url,
)
from crosscope.app.token_view import Strip, TokenEvent, strip_of_latent, token_view

EXAMPLES_A_PAGE = 10
OF_OTHER_GROUPS = 40
"""Examples of the bands that are asked for, and silent ones."""
MAX_EXAMPLES = 200
WHOLE = "whole"
"""Parameter of the URL with the name of the example whose whole text is shown."""
CONTEXTS = (8, 16, 32, 64, 128, 0)
"""Tokens on each side of the peak; 0 is the whole text."""
GROUPS: dict[str, tuple[ExampleGroup, ...]] = {
    "all": (ExampleGroup.TOP, ExampleGroup.QUANTILE, ExampleGroup.SILENT),
    "top": (ExampleGroup.TOP,),
    "quantiles": (ExampleGroup.QUANTILE,),
    "silent": (ExampleGroup.SILENT,),
}


@st.fragment
def examples(latent: Latent, info: CrosscoderInfo, near: Sequence[int] = ()) -> None:
    """Draws the texts on which it fires. Errors are shown here, because this part may be drawn again alone.

    What the latents `near` would show is read ahead.
    """
    with errors.shown_errors():
        list_examples(latent, info, near)


def list_examples(latent: Latent, info: CrosscoderInfo, near: Sequence[int]) -> None:
    """Texts under headings, with a choice of group, data set and context width."""
    st.header("Examples")
    row = st.container(horizontal=True, vertical_alignment="bottom")
    group = url.segments(row, "Group", list(GROUPS), "all", "group")
    dataset = url.choice(row, "Data set", ["all", *info.datasets], "all", "dataset", width=160)
    context = url.choice(row, "Context", CONTEXTS, 32, "context", context_name, width=140)
    limit = min(MAX_EXAMPLES, int(prompts.decimal(st.query_params.get("n"), EXAMPLES_A_PAGE)))
    only = None if dataset == "all" else dataset
    has_more = False
    found = ExampleList()
    counts = {each: limit + 1 if each is ExampleGroup.TOP else OF_OTHER_GROUPS for each in GROUPS[group]}
    asked = [(count, each, only, context or None) for each, count in counts.items()]
    for each, arguments in zip(counts, asked, strict=True):
        listed = session.examples(info.name, info.version_id, latent.id, *arguments)
        has_more |= each is ExampleGroup.TOP and len(listed) > limit
        found += listed[:limit] if each is ExampleGroup.TOP else listed
    if not found:
        st.markdown("No example in this choice. Try another group or data set.")
    shown = sections(found, latent.max, num_bands(info))
    first = 0
    for section in shown:
        draw(section, latent, info, first)
        first += len(section.examples)
        if section.examples[0].example.group is ExampleGroup.TOP and has_more and limit < MAX_EXAMPLES:
            st.button("More examples", on_click=url.keep, args=("n", str(limit + EXAMPLES_A_PAGE)))
    if ExampleGroup.SILENT in GROUPS[group] and not any(each.group is ExampleGroup.SILENT for each in found):
        st.caption(why_none_is_silent(info))
    if limit == EXAMPLES_A_PAGE:
        asking.ahead(info.name, info.version_id, near, asked)


def draw(section: Section, latent: Latent, info: CrosscoderInfo, first: int) -> None:
    """A heading and its examples; `first` is the number of the first one among all on the page."""
    st.subheader(section.title)
    if section.remark:
        st.caption(section.remark)
    strips = [strip(each, latent) for each in section.examples]
    locked = locked_token()
    for place, each in enumerate(section.examples):
        if st.query_params.get(WHOLE) == name_of(each.example):
            strips[place] = strip(replace(each, example=whole(each.example, latent, info)), latent, is_whole=True)
    here = locked is not None and first <= locked[0] < first + len(strips)
    event = token_view(
        strips,
        key=f"examples-{first}",
        scale_max=latent.max or None,
        colour_by=latent.id,
        locked=(locked[0] - first, locked[1]) if locked and here else None,
    )
    if event:
        follow(event, section, latent, info, first)


def follow(event: TokenEvent, section: Section, latent: Latent, info: CrosscoderInfo, first: int) -> None:
    """Keeps a locked token in the URL; shows the whole text here, or opens it in the prompt lab."""
    if event.kind in ("lock", "unlock"):
        url.keep("token", f"{first + event.strip}.{event.position}" if event.kind == "lock" else None)
    elif event.kind in ("expand", "shorten"):
        opened = name_of(section.examples[event.strip].example)
        url.write({WHOLE: opened if event.kind == "expand" else None, "token": None})
        st.rerun()
    elif event.kind == "open":
        found = whole(section.examples[event.strip].example, latent, info)
        address.go("lab", crosscoder=info.name, by=latent.id, **prompts.of_tokens(found.tokens).params())


def name_of(example: Example) -> str:
    """A name of an example among those of its latent, for the URL."""
    return f"{example.group}.{example.quantile}.{example.rank}.{example.dataset}"


def whole(example: Example, latent: Latent, info: CrosscoderInfo) -> Example:
    """The same example with its whole text."""
    found = session.examples(info.name, info.version_id, latent.id, MAX_EXAMPLES, example.group, example.dataset, None)
    return next(each for each in found if each.quantile == example.quantile and each.rank == example.rank)


def strip(folded: Folded, latent: Latent, *, is_whole: bool = False) -> Strip:
    """An example as a strip. Of a silent one a note marks the token at which the latent peaks elsewhere.

    `is_whole` says that a viewer has asked for the whole text.
    """
    example = folded.example
    is_silent = example.group is ExampleGroup.SILENT
    notes = ["" for _ in example.tokens.pieces]
    if is_silent:
        notes[example.peak] = "it peaks on this token elsewhere"
    return strip_of_latent(
        example.tokens.pieces,
        example.tokens.roles,
        latent.id,
        example.positions,
        example.activations,
        title=example.dataset,
        note=example_note(example, folded.note),
        token_start=example.token_start,
        num_tokens=example.num_tokens,
        peak=example.peak,
        notes=notes if is_silent else (),
        actions=actions_of(example, is_whole=is_whole),
    )


def actions_of(example: Example, *, is_whole: bool) -> dict[str, str]:
    """Buttons of an example: its whole text here, where only a part is shown, and the prompt lab."""
    is_cut = len(example.tokens) < example.num_tokens
    more = {"shorten": "Less text"} if is_whole else {"expand": "Whole text"} if is_cut else {}
    return {**more, "open": "Prompt lab"}


def example_note(example: Example, alike: str) -> str:
    """An example's strength and length, and the number of texts like it."""
    if example.group is ExampleGroup.SILENT:
        said = f"silent on {text.visible(example.tokens.pieces[example.peak])}"
    else:
        said = f"max {text.number(example.max)}"
    return " · ".join(part for part in (said, f"{example.num_tokens} tokens", alike) if part)


def num_bands(info: CrosscoderInfo) -> int:
    """The bands of the version's analysis; 0 if its manifest does not say."""
    return int(((session.manifest(info).get("recipe") or {}).get("analysis") or {}).get("quantiles") or 0)


def why_none_is_silent(info: CrosscoderInfo) -> str:
    """Why there are no silent texts: the version is older, its recipe asked for none, or none was found."""
    wanted = ((session.manifest(info).get("recipe") or {}).get("analysis") or {}).get("silent_examples")
    if wanted is None:
        return "This version was analysed before silent texts were kept. Run its recipe again to get them."
    if wanted == 0:
        return "Its recipe keeps no silent texts (analysis.silent_examples: 0)."
    return "No silent text was found: the latent fires in every text with the token of its peaks that was looked at."


def context_name(tokens: int) -> str:
    """The name of a context width as people read it."""
    return f"± {tokens} tokens" if tokens else "whole text"


def locked_token() -> tuple[int, int] | None:
    """The locked token of the URL: the index of its example, and its own in the example; None if none is locked."""
    example, _, token = st.query_params.get("token", "").partition(".")
    return (int(example), int(token)) if example.isdecimal() and token.isdecimal() else None
