"""Results as plain text: aligned tables and short cards. Colours and widths of a terminal are the CLI's matter."""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from crosscope_proto.column import Column
from crosscope_proto.columns import LATENT_COLUMNS, NAN
from crosscope_proto.roles import LeftOut

if TYPE_CHECKING:
    from crosscope._encoding import Encoding, TopLatents
    from crosscope._latents import Example, Latent
    from crosscope._types import CrosscoderInfo, JobInfo, Tokens

MOST_ROWS = 50
"""Rows that a printed table shows before it says how many there are."""
MARKS = {"\n": "↵", "\t": "⇥", "\r": "␍", " ": "␣"}
"""What white space in a token is shown as, on every surface."""
_MARKED = str.maketrans(MARKS)
UNDEFINED = "–"
"""What an undefined figure is shown as."""

LATENT_HEADERS = ("id", "class", "rel_norm", "nu_err", "nu_rec", "uselessness", "frequency", "max", "top tokens")
TOP_LATENT_HEADERS = ("latent", "score", "max", "sum", "count", "peak token")
TOKEN_HEADERS = ("token", "piece", "role", "strongest latents")


def marked(text: str) -> str:
    """A token's text with its white space shown as MARKS."""
    return text.translate(_MARKED)


def visible(text: str) -> str:
    """A token's text on one line: blanks and line ends shown as signs, control characters as their code."""
    return printable(marked(text))


def printable(text: str) -> str:
    """A sentence or a text on one line, control characters as their code, so that no text moves the cursor."""
    line = text.replace("\n", MARKS["\n"])
    return "".join(c if unicodedata.category(c)[0] != "C" else f"\\u{ord(c):04x}" for c in line)


def number(value: float | None, digits: int = 4) -> str:
    """A number in at most `digits` digits, a large one whole; a dash where it is undefined."""
    if value is None or value != value:
        return UNDEFINED
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def width(text: str) -> int:
    """Columns that a text takes in a terminal."""
    marks = sum(1 for c in text if unicodedata.combining(c))
    return len(text) - marks + sum(1 for c in text if unicodedata.east_asian_width(c) in "WF")


def aligned(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows under headers, columns aligned."""
    lines = [headers, *rows]
    widths = [max(width(line[i]) for line in lines) for i in range(len(headers))]
    padded = ("  ".join(cell + " " * (w - width(cell)) for cell, w in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(line.rstrip() for line in padded)


def _with_rest(table: str, shown: int, total: int) -> str:
    return table if shown >= total else f"{table}\n… {total - shown} more"


def latent_cells(latent: "Latent") -> tuple[str, ...]:
    """One latent under LATENT_HEADERS."""
    return (
        str(latent.id),
        latent.latent_class,
        number(latent.rel_norm),
        number(latent.nu_err),
        number(latent.nu_rec),
        number(latent.base_uselessness),
        number(latent.frequency.value),
        number(latent.max),
        " ".join(map(visible, latent.top_tokens[:6])),
    )


def latent_table(latents: "Sequence[Latent]") -> str:
    """A row a latent."""
    if not latents:
        return "no latents"
    shown = latents[:MOST_ROWS]
    return _with_rest(aligned(LATENT_HEADERS, map(latent_cells, shown)), len(shown), len(latents))


def latent_row(latent: "Latent") -> dict[str, object]:
    """A latent's scalars under the names of the columns of latents.parquet, NaN where undefined, and its top tokens."""
    row = {column.name: _cell(latent, column) for column in LATENT_COLUMNS if column.is_scalar}
    return row | {"top_tokens": list(latent.top_tokens)}


def _cell(latent: "Latent", column: Column) -> object:
    value: Any = latent
    for field in column.path:
        value = value.get(field, NAN) if isinstance(value, Mapping) else getattr(value, field)
    return NAN if value is None else str(value) if column.is_text else value


def latent_facts(latent: "Latent") -> list[tuple[str, str]]:
    """What a latent's card says, as (what, value)."""
    return [
        ("class", f"{latent.latent_class} (relative norm {number(latent.rel_norm)})"),
        *([("part", latent.part)] if latent.part else []),
        ("norms", f"base {number(latent.norm_base)}, chat {number(latent.norm_chat)}, cosine {number(latent.cosine)}"),
        ("nu_err", str(latent.chat_direction.nu_err)),
        ("nu_rec", str(latent.chat_direction.nu_rec)),
        ("beta_ratio", str(latent.beta_ratio)),
        ("base uselessness", number(latent.base_uselessness)),
        ("active tokens", f"{latent.num_active} (frequency {latent.frequency})"),
        ("activation", f"mean {latent.mean}, max {number(latent.max)}"),
        ("template share", number(latent.template_share)),
        ("repeats", f"{number(latent.repeat_share)} of its active tokens repeat an earlier text"),
        ("top tokens", " ".join(map(visible, latent.top_tokens))),
        ("base raises", " ".join(map(visible, latent.logit_tokens_base))),
        ("chat raises", " ".join(map(visible, latent.logit_tokens_chat))),
        ("nearest", ", ".join(f"{n.latent} ({n.cosine:.2f})" for n in latent.neighbours)),
        ("fires with", ", ".join(f"{other.latent} ({other.index:.2f})" for other in latent.coactive)),
    ]


def _card(title: str, facts: list[tuple[str, str]]) -> str:
    wide = max(len(what) for what, _ in facts)
    return "\n".join([title, *(f"  {what:<{wide}}  {printable(value)}" for what, value in facts)])


def latent_card(latent: "Latent") -> str:
    """One latent."""
    return _card(f"latent {latent.id} of {latent.crosscoder}", latent_facts(latent))


def example_line(example: "Example") -> str:
    """One example: where from, how strong, and its text with the active tokens in brackets."""
    active = set(example.positions)
    pieces = (f"⟦{piece}⟧" if i in active else piece for i, piece in enumerate(example.tokens.pieces))
    text = printable("".join(pieces))
    cut = ("…" if example.token_start else "", "…" if _ends_early(example) else "")
    where = example.group if example.group == "top" else f"{example.group} {example.quantile}"
    times = f" ({example.repeats + 1} texts)" if example.repeats else ""
    return f"{example.max:7.3f}  {example.dataset}/{where}{times}  {cut[0]}{text}{cut[1]}"


def _ends_early(example: "Example") -> bool:
    return example.token_start + len(example.tokens) < example.num_tokens


def token_rows(encoding: "Encoding", limit: int | None = None) -> list[tuple[str, ...]]:
    """Rows under TOKEN_HEADERS."""
    return [
        (
            str(i),
            visible(piece),
            role_name(encoding.tokens, i),
            "  ".join(f"{latent}:{activation:.2f}" for latent, activation in encoding.top(i, 5)),
        )
        for i, (_, piece, _) in islice(enumerate(encoding.tokens), limit)
    ]


def role_name(tokens: "Tokens", token: int) -> str:
    """What a token is for, and why training left out tokens like it."""
    role = tokens.roles[token].name.lower()
    reason = tokens.left_out[token] if tokens.left_out else LeftOut.KEPT
    return role if reason == LeftOut.KEPT else f"{role}, left out: {reason.name.lower()}"


def left_out_line(top: "TopLatents") -> str:
    """Says how many tokens were not ranked; empty where all were."""
    if not top.num_left_out:
        return ""
    is_are = "token is" if top.num_left_out == 1 else "tokens are"
    return f"{top.num_left_out} {is_are} not ranked, as training left such tokens out (BOS, outlying norms)."


def encoding_table(encoding: "Encoding") -> str:
    """A row a token with its strongest latents."""
    rows = token_rows(encoding, MOST_ROWS)
    return _with_rest(aligned(TOKEN_HEADERS, rows), len(rows), len(encoding))


def top_latent_rows(top: "TopLatents") -> list[tuple[str, ...]]:
    """Rows under TOP_LATENT_HEADERS."""
    return [
        (
            str(entry.latent),
            number(entry.score),
            number(entry.max),
            number(entry.sum),
            str(entry.count),
            f"{entry.peak_token} {visible(top.tokens.pieces[entry.peak_token])}",
        )
        for entry in top
    ]


def top_latents_table(top: "TopLatents") -> str:
    """A row a latent, best first."""
    rows = top_latent_rows(top)
    table = "no latent fires"
    if rows:
        table = aligned(TOP_LATENT_HEADERS, rows[:MOST_ROWS])
        table = _with_rest(table, min(len(rows), MOST_ROWS), top.num_latents)
    return "\n".join(filter(None, [table, left_out_line(top)]))


def crosscoder_facts(info: "CrosscoderInfo") -> list[tuple[str, str]]:
    """What a crosscoder's card says."""
    if info.broken:
        return [("version", info.version_id), ("broken", info.broken)]
    metrics = ", ".join(f"{name} {number(value)}" for name, value in sorted(info.metrics.items()))
    classes = ", ".join(f"{count} {name}" for name, count in info.class_counts.items())
    return [
        ("version", info.version_id),
        ("pair", f"{info.pair}: {info.base_model} | {info.chat_model}, layer {info.layer}"),
        ("latents", f"{info.num_latents} ({info.variant}): {classes}"),
        ("tokens", f"{info.training_tokens} training, {info.analysis_tokens} analysis"),
        ("data sets", ", ".join(info.datasets)),
        ("metrics", metrics),
        *(("left out", sentence) for sentence in info.left_out),
    ]


def crosscoder_line(info: "CrosscoderInfo") -> str:
    """One crosscoder on a line."""
    if info.broken:
        return f"Crosscoder({info.name!r}, broken: {info.broken})"
    return (
        f"Crosscoder({info.name!r}, {info.variant}, {info.num_latents} latents, pair {info.pair!r}, layer {info.layer})"
    )


def crosscoder_card(info: "CrosscoderInfo") -> str:
    """One crosscoder."""
    return _card(f"crosscoder {info.name}", crosscoder_facts(info))


def job_facts(info: "JobInfo") -> list[tuple[str, str]]:
    """What a job's card says."""
    took = info.ended_at - info.started_at
    facts = [("state", str(info.state)), ("makes", f"{info.kind} {info.name}"), ("message", info.message)]
    if info.state == "queued":
        facts.append(("before it", f"{info.queue_position} in the queue; after {', '.join(info.after) or 'no job'}"))
    if info.state == "running":
        facts.append(("stage", f"{info.stage} {info.fraction:.0%}, attempt {info.attempt}"))
        facts.append(("whole job", job_progress(info)))
    if info.ended_at and info.started_at:
        facts.append(("took", f"{took:.1f} s"))
    if info.metrics:
        facts.append(("metrics", ", ".join(f"{name} {number(value)}" for name, value in sorted(info.metrics.items()))))
    if info.version_id:
        facts.append(("version", info.version_id))
    return facts


def amount(value: float, unit: str) -> str:
    """How much a plan's entry is, with its unit."""
    if unit == "bytes":
        return next((f"{value / size:.1f} {name}" for size, name in _SIZES if value >= size), f"{value:.0f} B")
    if unit == "seconds":
        return duration(value)
    if unit == "share":
        return f"{value:.0%}"
    return f"{value:,.0f} {unit}".strip().replace(",", " ")


_SIZES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def job_progress(info: "JobInfo") -> str:
    """How far a whole job is, and how long it still takes where that is known."""
    return f"{info.total_fraction:.0%}" + (f", about {duration(info.eta_s)} left" if info.eta_s else "")


def duration(seconds: float) -> str:
    """A time of any length in two figures that matter: "45 s", "12 min", "3 h 20 min", "2 d 5 h"."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    if hours < 36:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{hours // 24} d {hours % 24} h"


def job_line(info: "JobInfo") -> str:
    """One job on a line."""
    return f"Job({info.id!r}, {info.kind} {info.name!r}, {info.state})"


def job_card(info: "JobInfo") -> str:
    """One job."""
    return _card(f"job {info.id}", job_facts(info))
