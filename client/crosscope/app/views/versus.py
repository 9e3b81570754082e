"""Compare: two crosscoders of one pair on one page: what each calls chat-only, what holds, and which latents match."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import streamlit as st

from crosscope import CrosscoderInfo, LatentMatches, MatchedSide
from crosscope.app import (
    address,
    charts,
    errors,
    new_job,
    panels,
    session,
    tables,
    text,
    url,
)
from crosscope.app.columns import CLASS_OF_NUMBER, SPECIFIC_OF_NUMBER, VERDICT_OF_NUMBER, is_defined
from crosscope.app.palette import VERDICT_NAMES
from crosscope.app.scatter_view import axis_title
from crosscope.app.table_view import Column, table_view
from crosscope_proto.limits import MAX_NU_ERR, MAX_NU_REC
from crosscope_proto.metrics import inlier_fve

MOST_ROWS = 200
JUDGED = ("supported", "weak", "contradicted", "too_few")
SETS: Mapping[str, str] = {
    "specific": "specific to chat",
    "chat_only": "chat-only by norm",
    "alone": "without a like",
}
"""Sets of latents that the lists show."""
LESSON = (
    "An L1 penalty charges a latent for the norm of its rows in both models. So it shrinks base's row to nothing where "
    "base has the latent too, or lets other latents carry it there: the norms then say chat-only, and the measurements "
    "say otherwise. BatchTopK charges nothing for norms (math §2, §4)."
)
LIMITS = {"nu_err": MAX_NU_ERR, "nu_rec": MAX_NU_REC}


@dataclass(frozen=True)
class Shown:
    """One crosscoder of the two."""

    info: CrosscoderInfo
    columns: Mapping[str, np.ndarray]

    def num(self, **kinds: str) -> int:
        """Latents whose class, verdict and model are those named."""
        return int(np.count_nonzero(self.which(**kinds)))

    def which(self, **kinds: str) -> np.ndarray:
        """[latent] bool: those whose latent_class, verdict and specific_to are those named."""
        names = {"latent_class": CLASS_OF_NUMBER, "verdict": VERDICT_OF_NUMBER, "specific_to": SPECIFIC_OF_NUMBER}
        keep = np.ones(self.info.num_latents, bool)
        for column, value in kinds.items():
            keep &= self.columns[column] == names[column].index(value)
        return keep


def page() -> None:
    """Draws the page."""
    chosen = session.chosen()
    if chosen is None:
        session.nothing_published("Compare")
        return
    st.title("Compare two crosscoders")
    others = [info for info in session.crosscoders() if not info.broken and session.comparable(chosen, info)]
    if not others:
        name = text.plain(chosen.name)
        st.markdown(f"No other crosscoder reads the same two models at layer {chosen.layer} as {name} does.")
        session.link("jobs", "Submit a recipe for another one", crosscoder=chosen.name, show=new_job.NEW)
        return
    names = [info.name for info in others]
    name = url.choice(st.container(), f"{chosen.name} and", names, names[0], "other", width=320)
    other = session.pin(others[names.index(name)])
    both = [Shown(info, session.atlas(info.name, info.version_id)) for info in (chosen, other)]
    lesson(both)
    figures(both)
    nus(both)
    st.header("Which latents are the same?")
    with errors.shown_errors(part="matches"):
        found = session.matches(chosen.name, chosen.version_id, other.name, other.version_id)
        matched(found)
        which = url.choice(st.container(), "List latents", list(SETS), "specific", "set", SETS.__getitem__, width=320)
        for side, back, one, opposite in zip(found.sides, found.sides[::-1], both, both[::-1], strict=True):
            listed(side, back, one, opposite, which, found.min_cosine)


def lesson(both: Sequence[Shown]) -> None:
    """Draws what the two call chat-only and what holds, in sentences."""
    st.markdown("\n".join(f"- {text.plain(sentence)}" for sentence in sentences(both)))
    if box := panels.folded("How this is counted", "versus-counted"):
        box.markdown(
            "- **Chat-only** is a label by the norms of the decoder rows alone; the verdict is what the measurements "
            "make of it: *contradicted* if base has the latent too (math §6).\n"
            "- **Specific to chat** needs no norm: base lacks the latent, whatever its class.\n"
            "- **Matched** latents are each other's nearest, by the cosine of both models' decoder rows in one, at "
            "least 0.7 (math §13). **Without a like**: the nearest has a smaller one. Dead latents are not compared."
        )


def sentences(both: Sequence[Shown]) -> list[str]:
    """What the two call chat-only and what holds, as plain sentences."""
    said = []
    for one in both:
        num = one.num(latent_class="chat_only")
        found = {each: one.num(latent_class="chat_only", verdict=each) for each in JUDGED}
        by = ", ".join(f"{size} {VERDICT_NAMES[each]}" for each, size in found.items() if size)
        judged = f": {by}" if by else ""
        specific, supported = one.num(specific_to="chat"), one.num(specific_to="chat", verdict="supported")
        latents = {0: "no latent", 1: "1 latent"}.get(num, f"{text.count(num)} latents")
        said.append(
            f"{one.info.name} ({one.info.variant}) calls {latents} chat-only by norm{judged}. By the measurements "
            f"{text.count(specific)} are specific to chat, {text.count(supported)} of them supported."
        )
    shrunk = [one.info for one in both if one.num(latent_class="chat_only", verdict="contradicted")]
    if any(info.variant == "l1" for info in shrunk) and any(one.info.variant != "l1" for one in both):
        said.append(LESSON)
    return said


def figures(both: Sequence[Shown]) -> None:
    """Draws the figures of both, side by side."""
    st.header("Side by side")
    rows: list[tuple[str, list[str]]] = [
        ("variant", [one.info.variant for one in both]),
        ("latents", [text.count(one.info.num_latents) for one in both]),
        ("dead", [f"{one.info.metrics.get('dead_share', np.nan):.1%}" for one in both]),
        ("L0, latents a token", [text.number(one.info.metrics.get("l0")) for one in both]),
        *(
            (f"FVE {model}", [text.number(inlier_fve(one.info.metrics, model)) for one in both])
            for model in ("base", "chat")
        ),
        ("chat-only by norm", [text.count(one.num(latent_class="chat_only")) for one in both]),
        *(
            (
                f"of these {VERDICT_NAMES[each]}",
                [text.count(one.num(latent_class="chat_only", verdict=each)) for one in both],
            )
            for each in JUDGED
        ),
        ("specific to chat", [text.count(one.num(specific_to="chat")) for one in both]),
        ("of these supported", [text.count(one.num(specific_to="chat", verdict="supported")) for one in both]),
    ]
    columns = [Column("figure", [name for name, _ in rows], is_text=True)]
    columns += [Column(one.info.name, [values[i] for _, values in rows]) for i, one in enumerate(both)]
    table_view("versus-figures", "Figures of both crosscoders", columns, max_height=700)


def nus(both: Sequence[Shown]) -> None:
    """Draws the distributions of ν of both, side by side."""
    if not all(is_defined(one.columns, "nu_err") for one in both):
        st.caption("ν is undefined in a dictionary of differences, so its distribution is not drawn (math §2).")
        return
    st.header("Does base have them too?")
    st.caption(
        "Share of the living latents by ν: near 1 base has what chat's row writes, near 0 it lacks it. Left of both "
        "dotted limits, by more than its errors, a latent is specific to chat."
    )
    with st.container(key="wrap-versus-nus"):
        columns = st.columns(2, gap="large")
    for column, (name, limit) in zip(columns, LIMITS.items(), strict=True):
        values = {one.info.name: one.columns[name] for one in both}
        with column:
            figure = charts.shares(values, axis_title(name), limit)
            panels.plot(figure, f"versus-{name}", f"Distribution of {name} in both crosscoders")


def matched(found: LatentMatches) -> None:
    """Draws how many latents of each kind match."""
    counts = [(side, count) for side in found.sides for count in side.counts]
    columns = [
        Column("of", [side.crosscoder for side, _ in counts], is_text=True),
        Column("kind", [count.kind for _, count in counts], is_text=True),
        Column("latents", [text.count(count.num) for _, count in counts]),
        Column("matched", [_share(count.num_matched, count.num) for _, count in counts], "Mutually nearest."),
        Column("without a like", [_share(count.num_alone, count.num) for _, count in counts], "Cosine below 0.7."),
        Column("mean cosine", tables.figures([count.mean_cosine for _, count in counts])),
    ]
    table_view("versus-counts", "Matched latents by kind", columns)


def _share(part: int, whole: int) -> str:
    return f"{text.count(part)} ({part / whole:.0%})" if whole else "0"


def listed(side: MatchedSide, back: MatchedSide, one: Shown, opposite: Shown, which: str, min_cosine: float) -> None:
    """Draws latents of one crosscoder beside the nearest ones of the other."""
    chosen = np.flatnonzero(_chosen(side, one, which, min_cosine))
    chosen = chosen[np.argsort(-side.cosines[chosen], kind="stable")]
    name = one.info.name
    st.markdown(
        f"**{text.plain(name)}**: {text.count(len(chosen))} {SETS[which]}, nearest of {text.plain(back.crosscoder)}"
    )
    if not len(chosen):
        return
    shown = chosen[:MOST_ROWS]
    ids, nearest = side.latents[shown], side.nearest[shown]
    kinds, kinds_of_nearest = (
        [text.judged(*each) for each in zip(*tables.kinds(some, of.columns).values(), strict=True)]
        for some, of in ((ids, one), (nearest, opposite))
    )
    links = [address.href("latent", {"crosscoder": name, "latent": latent}) for latent in ids.tolist()]
    links_of_nearest = [
        address.href("latent", {"crosscoder": opposite.info.name, "latent": latent}) for latent in nearest.tolist()
    ]
    columns = [
        Column("latent", [str(latent) for latent in ids], links=links),
        Column("class", kinds, is_text=True),
        Column("nearest", [str(latent) for latent in nearest], links=links_of_nearest),
        Column("its class", kinds_of_nearest, is_text=True),
        Column("cosine", tables.figures(side.cosines[shown])),
        Column("mutual", ["yes" if each else "no" for each in side.mutual[shown]], is_text=True),
    ]
    table_view(f"versus-{name}", f"Latents of {name} and the nearest ones", columns)
    if len(chosen) > MOST_ROWS:
        st.caption(f"The {MOST_ROWS} nearest of {text.count(len(chosen))}; `crosscope match --json --latents` has all.")


def _chosen(side: MatchedSide, one: Shown, which: str, min_cosine: float) -> np.ndarray:
    """[living] bool: the latents of a set."""
    if which == "alone":
        return side.cosines < min_cosine
    kind = {"specific_to": "chat"} if which == "specific" else {"latent_class": "chat_only"}
    return one.which(**kind)[side.latents]
