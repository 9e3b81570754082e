"""Results as HTML for notebooks: tokens coloured by activation. Every text is escaped; no script, no outside file.

A token's colour is an orange wash over the page's own background, so that text keeps the notebook's own colour; the
wash stays light enough on white and dark enough on black for a contrast of at least 4.5. The number stands in the
title of each token, and a stronger underline goes with a stronger wash, so that colour is not the only carrier.
"""

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from crosscope import _tables
from crosscope_proto.roles import LeftOut

if TYPE_CHECKING:
    from crosscope._encoding import Encoding, TopLatents
    from crosscope._latents import Example, Latent
    from crosscope._types import CrosscoderInfo, JobInfo, Tokens

MAX_ALPHA = 0.45
"""Strongest wash: contrast 9.6 with black text on white paper, 5.4 with white text on black."""
WASH = (230, 120, 0)
"""Its colour, red, green, blue."""

_STYLE = (
    "<style>.crosscope{font-size:13px;line-height:1.7}"
    ".crosscope table{border-collapse:collapse}.crosscope td,.crosscope th{text-align:left;padding:1px 8px}"
    ".crosscope .text{white-space:pre-wrap;overflow-wrap:anywhere;font-family:monospace}"
    ".crosscope .template{opacity:.75}.crosscope .left-out{opacity:.6;text-decoration:line-through}</style>"
)


def page(body: str) -> str:
    """A whole notebook output."""
    return f'{_STYLE}<div class="crosscope">{body}</div>'


def tokens(tokens: "Tokens", values: Sequence[float], maximum: float, titles: Sequence[str]) -> str:
    """Tokens washed in proportion to their values, 0 to `maximum`; those that training left out are struck through."""
    kinds = ["template" if is_template else "" for is_template in tokens.is_template]
    for i, reason in enumerate(tokens.left_out):
        kinds[i] = kinds[i] if reason == LeftOut.KEPT else "left-out"
    spans = (
        _token(piece, value / maximum if maximum > 0 else 0.0, title, kind)
        for piece, value, title, kind in zip(tokens.pieces, values, titles, kinds, strict=True)
    )
    return f'<div class="text">{"".join(spans)}</div>'


def _token(piece: str, share: float, title: str, kind: str) -> str:
    share = min(max(share, 0.0), 1.0)
    red, green, blue = WASH
    wash = f"background:rgba({red},{green},{blue},{share * MAX_ALPHA:.3f})"
    style = f"{wash};border-bottom:{1 + 2 * share:.1f}px solid currentColor" if share > 0 else ""
    shown = escape(piece.replace("\n", _tables.MARKS["\n"] + "\n"))
    shows_kind = kind == "left-out" or (kind and share == 0)
    marked = f' class="{kind}"' if shows_kind else ""
    return f'<span{marked} title="{escape(title)}" style="{style}">{shown}</span>'


def table(headers: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of texts."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in headers)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _facts(title: str, facts: Iterable[tuple[str, str]]) -> str:
    rows = "".join(f"<tr><th>{escape(what)}</th><td>{escape(value)}</td></tr>" for what, value in facts)
    return f"<strong>{escape(title)}</strong><table><tbody>{rows}</tbody></table>"


def example(example: "Example") -> str:
    """One example, coloured by its latent."""
    values = example.values()
    titles = [
        f"token {example.token_start + i}, {role.name.lower()}: {value:.3f}"
        for i, (value, role) in enumerate(zip(values, example.tokens.roles, strict=True))
    ]
    band = f", band {example.quantile}" if example.group == "quantile" else ""
    times = f" · {example.repeats + 1} texts" if example.repeats else ""
    head = escape(f"{example.max:.3f} · {example.dataset} · {example.group}{band}{times}")
    return f"<div><small>{head}</small>{tokens(example.tokens, values, example.max, titles)}</div>"


def examples(found: "Sequence[Example]") -> str:
    """Examples one below the other."""
    return "".join(map(example, found)) or "no examples"


def encoding(encoding: "Encoding") -> str:
    """The prompt, each token coloured by its strongest latent."""
    values, reasons = encoding.strongest().tolist(), encoding.tokens.left_out or (LeftOut.KEPT,) * len(encoding)
    # What training left out may be hundreds of times as strong and would leave all else pale.
    strongest = max((v for v, reason in zip(values, reasons, strict=True) if reason == LeftOut.KEPT), default=0.0)
    titles = [_token_title(encoding, i) for i in range(len(encoding))]
    head = escape(f"{len(encoding)} tokens in {encoding.crosscoder}, coloured by each token's strongest latent")
    return f"<small>{head}</small>{tokens(encoding.tokens, values, strongest, titles)}"


def _token_title(encoding: "Encoding", i: int) -> str:
    strongest = ", ".join(f"latent {latent}: {activation:.3f}" for latent, activation in encoding.top(i, 5))
    return f"token {i}, {_tables.role_name(encoding.tokens, i)}: {strongest or 'no latent'}"


def latent(latent: "Latent") -> str:
    """One latent's card."""
    return _facts(f"latent {latent.id} of {latent.crosscoder}", _tables.latent_facts(latent))


def latent_table(latents: "Sequence[Latent]") -> str:
    """A row a latent."""
    shown = latents[: _tables.MOST_ROWS]
    rest = f"<small>… {len(latents) - len(shown)} more</small>" if len(shown) < len(latents) else ""
    return table(_tables.LATENT_HEADERS, map(_tables.latent_cells, shown)) + rest if shown else "no latents"


def remarks(sentences: Iterable[str]) -> str:
    """Sentences below a table."""
    return "".join(f"<div><small>{escape(sentence)}</small></div>" for sentence in sentences)


def top_latents(top: "TopLatents") -> str:
    """A row a latent, best first."""
    left_out = escape(_tables.left_out_line(top))
    return table(_tables.TOP_LATENT_HEADERS, _tables.top_latent_rows(top)) + (left_out and f"<small>{left_out}</small>")


def crosscoder(info: "CrosscoderInfo") -> str:
    """A crosscoder's card."""
    return _facts(f"crosscoder {info.name}", _tables.crosscoder_facts(info))


def job(info: "JobInfo") -> str:
    """A job's card."""
    return _facts(f"job {info.id}", _tables.job_facts(info))
