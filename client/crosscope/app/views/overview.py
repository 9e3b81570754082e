"""Overview: what a crosscoder is, how good it is, and where to look first."""

from collections.abc import Mapping, Sequence

import numpy as np
import streamlit as st

from crosscope import CrosscoderInfo
from crosscope.app import (
    address,
    bars_view,
    cards,
    errors,
    new_job,
    panels,
    session,
    tables,
    text,
    words,
)
from crosscope.app.columns import (
    AXES,
    CLASS_OF_NUMBER,
    LABELS,
    SPECIFIC_OF_NUMBER,
    VERDICT_OF_NUMBER,
    evidence,
    is_defined,
    is_difference,
)
from crosscope.app.palette import CLASS_COLOURS, CLASS_NAMES
from crosscope.app.selection import VERDICT, Selection
from crosscope.app.table_view import Column, table_view
from crosscope_proto.metrics import inlier_fve

NUM_TELLING = 12
"""Tokens that a row of the most telling latents shows."""
TELLING = Selection(specific=("chat",), order=VERDICT)
"""The most telling latents: what base lacks, in whichever class."""
WHAT = "What did tuning add?"
OPENS = "A row opens its latent."
REPEATS = "of tokens repeat an earlier text"
NUM_JOBS = 4
HELP: Mapping[str, str] = {
    "FVE": "Fraction of the variance of a model's activations that the dictionary explains on held-out tokens; inliers "
    "leave out tokens of an outlying norm (math §7).",
    "KL recovered": "How much of a model's predictions survives when its activations are replaced by their "
    "reconstruction: 1 is all, 0 no better than zeros (math §7).",
    "L0": "Mean number of latents that fire on a token.",
    "threshold": "Scaled activations above it stay at inference.",
    "dead": "Share of the latents that never fired in the analysis.",
    "outliers": "Share of the held-out tokens whose norm is more than ten times the median, attention sinks for "
    "instance (math §7).",
    "repeats": "Share of the held-out tokens that stand in a text as in an earlier one; they count once in standard "
    "errors (math §4).",
    "latents": "Size of the dictionary.",
    "pair": "The two models, and the layer whose output is read.",
    "variant": "How the dictionary is kept sparse (math §2), and the widths of both models.",
    "tokens": "Tokens that it was trained on, and held-out tokens that the figures rest on.",
    "relative norm": "Of a latent's two decoder rows: 0 base only, ½ shared, 1 chat only (math §6).",
    "verdict": "What the measurements say of a class, which is by norms alone (math §6).",
}
"""What the figures of the page mean, in Markdown."""
CLAIMING = ("chat_only", "base_only", "shared")
"""Classes that claim something of both models."""
NORMS = "norms"
"""Key of the histogram."""
REFRESH_S = 2


def page() -> None:
    """Draws the page."""
    chosen = session.chosen()
    if chosen is None:
        nothing_yet()
        return
    st.title(chosen.name)
    broken()
    st.header(WHAT)
    cards.story_of(chosen)
    st.header("The figures")
    card(chosen)
    remarks(chosen)
    with st.container(key="wrap-norms"):
        left, right = st.columns([3, 2], gap="large")
    with left:
        norms(chosen)
    with right:
        classes(chosen)
    telling(chosen)
    with st.container(key="wrap-jobs"):
        left, right = st.columns([3, 2], gap="large")
    with left:
        behaviours(chosen)
    with right:
        recent_jobs(chosen)


def nothing_yet() -> None:
    """The page before anything is published."""
    st.title("No crosscoder yet")
    broken()
    with errors.shown_errors():
        jobs = session.jobs()
        if any(not job.state.is_over for job in jobs):
            st.markdown("These jobs make the first one; this page fills when it is published.")
            running_jobs()
            return
        if jobs:
            st.markdown("No job has made one yet. Each job's page says how it ended.")
            running_jobs()
    st.markdown(
        "Make the demo with `crosscope demo`, or submit a recipe of your own. It takes a few minutes and shows here."
    )
    session.link("jobs", "Submit a recipe", show=new_job.NEW)


@st.fragment(run_every=REFRESH_S)
def running_jobs() -> None:
    """Draws the progress of all jobs, again and again until a crosscoder is there."""
    with errors.shown_errors():
        for job in session.jobs():
            panels.job_line(job)
        if session.crosscoders():
            st.rerun()


def card(info: CrosscoderInfo) -> None:
    """Pair, layer, variant, data and quality."""
    metrics, data = info.metrics, ", ".join(info.datasets)
    trained_on = text.count(info.training_tokens) if info.training_tokens else "trained elsewhere"
    panels.facts(
        [
            *_fve(metrics),
            *_recovered(metrics),
            ("L0", text.number(metrics.get("l0")), "latents a token"),
            *_threshold(info),
            ("dead", f"{metrics['dead_share']:.1%}" if "dead_share" in metrics else "–", "of all latents"),
            *_shares(metrics),
            ("latents", text.count(info.num_latents)),
            ("pair", info.pair, f"layer {info.layer}"),
            ("variant", info.variant, "width " + " · ".join(str(width) for width in dict.fromkeys(info.d_model))),
            ("tokens", trained_on, f"{text.count(info.analysis_tokens)} analysed of {data}"),
        ]
    )
    if box := panels.folded("What these figures mean", "figures-meaning"):
        box.markdown("\n".join(f"- **{name}**: {said}" for name, said in HELP.items()))
    if box := panels.folded("Models, version and manifest", "manifest"):
        box.table({"base": info.base_model, "chat": info.chat_model, "version": info.version_id})
        box.json(session.manifest(info), expanded=1)


def _fve(metrics: Mapping[str, float]) -> list[tuple[str, str, str]]:
    """Fractions of variance explained, by inliers alone if they were told apart, of what the dictionary rebuilds."""
    rebuilt = ("difference",) if "fve_difference" in metrics else ("base", "chat")
    facts = []
    for name in rebuilt:
        if (headline := inlier_fve(metrics, name)) is not None:
            inliers = f"fve_{name}_inliers" in metrics
            remark = f"{text.number(metrics.get(f'fve_{name}'))} of all tokens" if inliers else ""
            facts.append((f"FVE {name}, inliers" if inliers else f"FVE {name}", text.number(headline), remark))
    return facts


def _threshold(info: CrosscoderInfo) -> list[tuple[str, str, str]]:
    """The threshold at inference, and the running one of training if it was recorded."""
    metrics = info.metrics
    threshold = metrics.get("threshold", session.manifest(info).get("threshold"))
    if threshold is None:
        return []
    running = metrics.get("threshold_running")
    return [("threshold", text.number(threshold), f"{text.number(running)} in training" if running else "")]


def _shares(metrics: Mapping[str, float]) -> list[tuple[str, str, str]]:
    """Shares of the tokens that are outliers or repeat an earlier text, if they were measured."""
    shares = (("outliers", "outlier_share", "of tokens, by norm"), ("repeats", "repeat_share", REPEATS))
    return [(name, f"{metrics[metric]:.1%}", remark) for name, metric, remark in shares if metric in metrics]


def _recovered(metrics: Mapping[str, float]) -> list[tuple[str, str, str]]:
    """KL recovered, if reconstructions were spliced into the models."""
    if "kl_recovered_chat" not in metrics:
        return []
    base, chat = (text.number(metrics.get(f"kl_recovered_{model}")) for model in ("base", "chat"))
    return [("KL recovered", chat, f"in chat; {base} in base")]


def remarks(info: CrosscoderInfo) -> None:
    """Draws a sentence for each thing that was left out, unusual, assumed or not measured."""
    manifest = session.manifest(info)
    sentences = [*info.left_out, *manifest.get("warnings", ()), *manifest.get("notes", ())]
    sentences += [f"No {name.replace('_', ' ')}: {reason}" for name, reason in info.unavailable.items()]
    if unknown := session.unknown_columns(info.name, info.version_id):
        labels = ", ".join(LABELS[name] for name in unknown)
        sentences.append(f"The server is older than this app and does not know: {labels}")
    if sentences:
        st.subheader("What to know")
        st.markdown("\n".join(f"- {text.sentence(said)}" for said in sentences))


def broken() -> None:
    """Draws the crosscoders that the server cannot read, each with the reason."""
    for info in session.broken():
        st.warning(f"**{text.plain(info.name)}** cannot be read: {text.sentence(info.broken)}")


def norms(info: CrosscoderInfo) -> None:
    """Histogram of relative norms; a click on a bar opens the atlas there."""
    st.subheader("Relative norm")
    columns = session.atlas(info.name, info.version_id)
    if not is_defined(columns, "rel_norm"):
        st.markdown("No latent has a relative norm, because this dictionary has decoder rows of one side only.")
        session.link("atlas", "All latents in the atlas", crosscoder=info.name)
        return
    bars = bars_view.relative_norms(columns["rel_norm"], columns["latent_class"])
    alt = "Histogram of the relative norm of all latents, in class colours"
    bars_view.bars_view(NORMS, alt, bars, href=address.href("atlas", {"crosscoder": info.name, "rel": "PLACE"}))
    st.caption("A click on a bar opens the atlas there. Dead latents are not drawn.")


def telling(info: CrosscoderInfo) -> None:
    """Draws the latents that are specific to chat by their measurements, best verdict first."""
    st.subheader("Most telling latents")
    columns = session.atlas(info.name, info.version_id)
    found = TELLING.ids(columns)
    if len(found):
        supported = np.count_nonzero(columns[VERDICT][found] == VERDICT_OF_NUMBER.index("supported"))
        by = "β ratio nearest to 0" if is_difference(columns) else AXES["base_uselessness_single"].label
        more = f"; the first {NUM_TELLING} of {text.count(len(found))}" if len(found) > NUM_TELLING else ""
        st.caption(
            f"Latents that base lacks by their measurements, whatever their class: {text.count(len(found))}, of which "
            f"{text.count(int(supported))} have the verdict “supported”. Best verdict first, then by {by}{more}. "
            f"{OPENS}"
        )
        about = {"order": TELLING.order, "specific": list(TELLING.specific)}
        listed(info, found[:NUM_TELLING], columns, evidence(columns), about)
    else:
        st.markdown("No latent is shown to be specific to chat by its measurements.")
    if num_each := np.count_nonzero(columns["specific_to"] == SPECIFIC_OF_NUMBER.index("each")):
        says = f"{text.count(int(num_each))} with a row of its own in each model"
        session.link("atlas", says, crosscoder=info.name, specific=["each"], order=VERDICT)


def listed(
    info: CrosscoderInfo,
    ids: np.ndarray,
    columns: Mapping[str, np.ndarray],
    names: Sequence[str],
    about: Mapping[str, object],
) -> None:
    """Draws the most telling latents as a table; `about` is the set and the order in the links of its rows."""
    rows = tables.of_latents(
        ids,
        columns,
        names,
        floor=session.uselessness_floor(info),
        names_of_latents=words.cells(info, ids),
    )
    links = [address.href("latent", {"crosscoder": info.name, **about, "latent": latent}) for latent in ids.tolist()]
    table_view("telling", "Most telling latents", rows, links)


def classes(info: CrosscoderInfo) -> None:
    """Counts of the classes, each with a link to its part of the atlas."""
    st.subheader("Classes")
    total = max(1, info.num_latents)
    columns = session.atlas(info.name, info.version_id)
    is_supported = columns[VERDICT] == VERDICT_OF_NUMBER.index("supported")
    bars = []
    for number, name in enumerate(CLASS_OF_NUMBER[1:], 1):
        size, said = info.class_counts.get(name, 0), text.count(info.class_counts.get(name, 0))
        if size and name in CLAIMING:
            supported = np.count_nonzero(is_supported & (columns["latent_class"] == number))
            said += f", {text.count(int(supported))} supported"
        bars.append((CLASS_NAMES[name], size, said, CLASS_COLOURS[name]))
    panels.together(panels.bars(bars, largest=total))
    by = AXES["beta_ratio" if is_difference(columns) else "rel_norm"].label
    st.caption(f"By {by} alone; the verdict of the measurements on each class is counted beside it.")
    if info.class_counts.get("chat_only"):
        session.link("atlas", "Chat-only latents in the atlas", crosscoder=info.name, classes=["chat_only"])
    elif is_defined(columns, "rel_norm"):
        session.link("atlas", "Highest relative norms in the atlas", crosscoder=info.name, order="-rel_norm")


def behaviours(info: CrosscoderInfo) -> None:
    """The best detector of each planted behaviour."""
    found = session.detectors(info.name, info.version_id)
    if not found:
        return
    st.subheader("Planted behaviours")
    rows = [
        Column("behaviour", [d.behaviour for d in found], is_text=True),
        Column("place", [d.place for d in found], "The token that decides it, or its own tokens.", is_text=True),
        Column("latent", [str(d.latent) for d in found]),
        Column("recall", tables.figures([d.recall for d in found]), "Share of its occurrences that it finds."),
        Column(
            "false rate",
            tables.figures([d.false_rate for d in found]),
            "Share of the other assistant turns on which the latent is above its threshold.",
        ),
        Column("of", [text.count(d.num_positive) for d in found], "Occurrences of the behaviour."),
    ]
    links = [address.href("latent", {"crosscoder": info.name, "latent": d.latent}) for d in found]
    table_view("behaviours", "Planted behaviours", rows, links)
    st.caption("The single latent that detects each behaviour best, on the token that decides it or within it.")


def recent_jobs(info: CrosscoderInfo) -> None:
    """The latest jobs, refreshed while one runs."""
    st.subheader("Recent jobs")
    with errors.shown_errors():
        active = any(not job.state.is_over for job in session.jobs())
        st.fragment(job_lines, run_every=REFRESH_S if active else None)(active)
        session.link("jobs", "All jobs", crosscoder=info.name)


def job_lines(was_active: bool) -> None:
    """Draws the latest jobs; draws the whole page again once the last active one has ended."""
    with errors.shown_errors():
        jobs = session.jobs()
        for job in jobs[:NUM_JOBS]:
            panels.job_line(job)
        if not jobs:
            st.caption("None since the queue was started.")
        if was_active and all(job.state.is_over for job in jobs):
            st.rerun()
