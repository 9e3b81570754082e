"""The demo's summary as tables for a terminal. Knows no server."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from crosscope.app.text import number
from crosscope_local.summary import (
    CHAT_SHARE,
    MAX_FALSE_RATE,
    MIN_RECALL,
    NUM_CARRIERS,
    NUM_CHAT_SPECIFIC,
    CrosscoderSummary,
    DetectorRow,
    Query,
    Summary,
)
from crosscope_proto.metrics import inlier_fve
from crosscope_proto.stages import in_order

_METRICS = {"l0": "L0", "dead_share": "dead share"}


def render(summary: Summary) -> Group:
    """The whole summary, one table below the other."""
    parts: list[RenderableType] = [_cards(summary.crosscoders)]
    parts += [_detectors(each) for each in summary.crosscoders if each.detectors]
    if summary.stage_seconds:
        parts.append(_stages(summary))
    parts.append(_query(summary.query))
    if summary.behaviours:
        parts.append(_behaviours(summary))
    return Group(*[line for part in parts for line in (Text(""), part)])


def _cards(crosscoders: Sequence[CrosscoderSummary]) -> Table:
    table = Table(title="Crosscoders", title_justify="left")
    table.add_column("")
    for each in crosscoders:
        table.add_column(each.name, justify="right")
    rows = {
        "pair": [each.pair for each in crosscoders],
        "variant, layer": [f"{each.variant}, {each.layer}" for each in crosscoders],
        "latents": [f"{each.num_latents:,}" for each in crosscoders],
        "tokens trained on": [f"{each.training_tokens:,}" for each in crosscoders],
        "tokens analysed": [f"{each.analysis_tokens:,}" for each in crosscoders],
    }
    for model in ("base", "chat"):
        values = [inlier_fve(each.metrics, model) for each in crosscoders]
        rows[f"FVE {model}, inliers"] = [number(value) for value in values]
    for metric, title in _METRICS.items():
        rows[title] = [number(each.metrics.get(metric)) for each in crosscoders]
    for name in crosscoders[0].class_counts if crosscoders else ():
        rows[f"latents {name}"] = [f"{each.class_counts[name]:,}" for each in crosscoders]
    rows[f"of the first {NUM_CHAT_SPECIFIC} that base lacks, ≥ {CHAT_SHARE:.0%} on chats"] = [
        f"{each.chat_specific_on_chats} of {each.chat_specific}" for each in crosscoders
    ]
    for place, title in {None: "anywhere", "decision": "on the decision token", "within": "within"}.items():
        rows[f"behaviours found {title}"] = [
            f"{len(each.behaviours_found(place))} of {len(each.behaviours)}" for each in crosscoders
        ]
    for title, values in rows.items():
        table.add_row(title, *values)
    return table


def _detectors(crosscoder: CrosscoderSummary) -> Table:
    table = Table(
        title=f"Planted behaviours in {crosscoder.name} (found: recall ≥ {MIN_RECALL}, false ≤ {MAX_FALSE_RATE})",
        title_justify="left",
    )
    table.add_column("behaviour")
    table.add_column("place")
    for title in ("latent", "recall", "false", "cases", "rel. norm", "ν_err", "ν_rec", "uselessness"):
        table.add_column(title, justify="right")
    for title in ("verdict", "found"):
        table.add_column(title)
    for row in crosscoder.detectors:
        table.add_row(*_detector_cells(row))
    return table


def _detector_cells(row: DetectorRow) -> list[str]:
    shares = (row.recall, row.false_rate)
    scores = (row.rel_norm, row.nu_err, row.nu_rec, row.base_uselessness)
    cells = [*map(number, shares), f"{row.num_positive:,}", *map(number, scores)]
    return [row.behaviour, row.place, str(row.latent), *cells, row.verdict.short, "yes" if row.found else "no"]


def _behaviours(summary: Summary) -> Table:
    """A row for each behaviour, then one for all: the rate in each arm."""
    first = summary.behaviours[0]
    table = Table(
        title=f"Answers that show a behaviour, with {NUM_CARRIERS} latents of {summary.crosscoders[0].name} changed "
        "(chosen by their effect on other requests; control: as many random ones that fire there as strongly)",
        title_justify="left",
    )
    table.add_column("behaviour")
    for title in ("n", *first.num_shown):
        table.add_column(title, justify="right")
    rows = [(each.behaviour, each.num, each.num_shown) for each in summary.behaviours]
    total = {arm: sum(each.num_shown[arm] for each in summary.behaviours) for arm in first.num_shown}
    for name, num, shown in [*rows, ("all", sum(each.num for each in summary.behaviours), total)]:
        table.add_row(name, str(num), *(f"{shown[arm] / num:.0%}" for arm in first.num_shown))
    return table


def _stages(summary: Summary) -> Table:
    table = Table(title="Seconds a stage", title_justify="left")
    table.add_column("job")
    table.add_column("stages")
    table.add_column("in all", justify="right")
    for title, stages in summary.stage_seconds.items():
        text = ", ".join(f"{stage} {stages[stage]:.1f}" for stage in in_order(stages))
        table.add_row(title, text, f"{sum(stages.values()):.1f}")
    return table


def _query(query: Query) -> Text:
    latents = ", ".join(f"{latent} ({number(value)})" for latent, value in query.latents)
    return Text(
        f"Sample query to {query.crosscoder}: {query.prompt!r} ({query.num_tokens} tokens) fires latents {latents}; "
        f"{query.warm_ms:.1f} ms, {query.cached_ms:.1f} ms cached."
    )
