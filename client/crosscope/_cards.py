"""Cards of crosscoders and jobs, as text and as HTML."""

from collections.abc import Iterator, Mapping
from datetime import datetime

from crosscope import _html, _tables
from crosscope._plan_types import JobLog
from crosscope._types import CrosscoderInfo, JobInfo


def crosscoder_facts(info: CrosscoderInfo) -> list[tuple[str, str]]:
    """The facts on a crosscoder's card, as (what, value)."""
    if info.broken:
        return [("version", info.version_id), ("broken", info.broken)]
    classes = ", ".join(f"{count} {name}" for name, count in info.class_counts.items())
    return [
        ("version", info.version_id),
        ("pair", f"{info.pair}: {info.base_model} | {info.chat_model}, layer {info.layer}"),
        ("latents", f"{info.num_latents} ({info.variant}): {classes}"),
        ("tokens", f"{info.training_tokens} training, {info.analysis_tokens} analysis"),
        ("data sets", ", ".join(info.datasets)),
        ("metrics", _figures(info.metrics)),
        *(("left out", sentence) for sentence in info.left_out),
    ]


def _figures(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {_tables.number(value)}" for name, value in sorted(metrics.items()))


def crosscoder_line(info: CrosscoderInfo) -> str:
    """One crosscoder on a line."""
    if info.broken:
        return f"Crosscoder({info.name!r}, broken: {info.broken})"
    return (
        f"Crosscoder({info.name!r}, {info.variant}, {info.num_latents} latents, pair {info.pair!r}, layer {info.layer})"
    )


def crosscoder_card(info: CrosscoderInfo) -> str:
    """One crosscoder."""
    return _tables.card(f"crosscoder {info.name}", crosscoder_facts(info))


def job_facts(info: JobInfo) -> list[tuple[str, str]]:
    """The facts on a job's card, as (what, value)."""
    took = info.ended_at - info.started_at
    facts = [("state", str(info.state)), ("makes", f"{info.kind} {info.name}"), ("message", info.message)]
    if info.owner:
        facts.append(("owner", info.owner))
    if info.state == "queued":
        facts.append(("before it", f"{info.queue_position} in the queue; after {', '.join(info.after) or 'no job'}"))
    if info.state == "running":
        facts.append(("stage", f"{info.stage} {info.fraction:.0%}, attempt {info.attempt}"))
        facts.append(("whole job", job_progress(info)))
    if info.ended_at and info.started_at:
        facts.append(("took", f"{took:.1f} s"))
    if info.metrics:
        facts.append(
            ("metrics", ", ".join(f"{name} {_tables.number(value)}" for name, value in sorted(info.metrics.items())))
        )
    if info.version_id:
        facts.append(("version", info.version_id))
    return facts


def job_progress(info: JobInfo) -> str:
    """How far a whole job is, and how long it will still take if that is known."""
    return f"{info.total_fraction:.0%}" + (f", about {_tables.duration(info.eta_s)} left" if info.eta_s else "")


def job_line(info: JobInfo) -> str:
    """One job on a line."""
    return f"Job({info.id!r}, {info.kind} {info.name!r}, {info.state})"


def log_lines(log: JobLog) -> Iterator[str]:
    """The end of a job's log as lines to read: what is missing before it, then time, attempt, event and text."""
    if log.has_more:
        yield f"… more before: the server read only the end of the log, and {log.num_before} lines of it are not shown"
    elif log.num_before:
        yield f"… {log.num_before} lines before"
    for line in log.lines:
        yield f"{datetime.fromtimestamp(line.at):%d %b %H:%M:%S} #{line.attempt} {line.event}: {line.text}"


def job_card(info: JobInfo) -> str:
    """One job."""
    return _tables.card(f"job {info.id}", job_facts(info))


def crosscoder_html(info: CrosscoderInfo) -> str:
    """One crosscoder, for a notebook."""
    return _html.page(_html.facts(f"crosscoder {info.name}", crosscoder_facts(info)))


def job_html(info: JobInfo) -> str:
    """One job, for a notebook."""
    return _html.page(_html.facts(f"job {info.id}", job_facts(info)))
