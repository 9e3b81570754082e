"""Latents and prompts as one HTML file, which opens without a server and loads nothing. Knows nothing about gRPC.

Every text is escaped, and the file's own policy forbids scripts and outside files.
"""

from collections.abc import Iterable, Sequence
from html import escape
from itertools import groupby
from pathlib import Path

from crosscope import _html
from crosscope._cards import crosscoder_facts
from crosscope._examples import Example
from crosscope._latents import LatentStatistics, latent_facts
from crosscope._sections import Section
from crosscope._tables import MARKS, number
from crosscope._types import CrosscoderInfo

MOST_EXPORTED = 1000
"""Latents in one file."""
_TITLED = 10
"""Latents that a title names."""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = (
    ":root{color-scheme:light dark;--wash:230,120,0}body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;"
    "margin:0 auto;padding:1rem;background:Canvas;color:CanvasText}"
    "@media(prefers-color-scheme:dark){:root{--wash:255,150,40}}"
    "table{border-collapse:collapse}th,td{text-align:left;vertical-align:top;padding:1px 8px}"
    "p,small{overflow-wrap:anywhere}.t{white-space:pre-wrap;overflow-wrap:anywhere;font:13px/1.7 monospace;"
    "margin:0 0 .8rem}.t b{font-weight:inherit;border-bottom:2px solid currentColor;"
    f"background:rgba(var(--wash),calc(var(--v)*{_html.MAX_ALPHA}))}}.t u{{text-decoration:underline dotted}}"
)


def latents_document(
    info: CrosscoderInfo, shown: Sequence[tuple[LatentStatistics, Sequence[Section]]], title: str = ""
) -> str:
    """A file about some latents: the crosscoder, then of each its figures with errors, its verdict and its examples.

    Without a title, the ids of the first latents are it.
    """
    ids = ", ".join(str(latent.id) for latent, _ in shown[:_TITLED])
    more = f" and {len(shown) - _TITLED} more" if len(shown) > _TITLED else ""
    title = title or f"{info.name}: latents {ids}{more}"
    contents = "".join(
        f'<li><a href="#latent-{latent.id}">Latent {latent.id}</a> {escape(latent.name)}</li>' for latent, _ in shown
    )
    head = _html.facts(f"crosscoder {info.name}", crosscoder_facts(info))
    return _document(title, f"<ul>{contents}</ul>{''.join(_latent(*each) for each in shown)}<h2>Source</h2>{head}")


def prompt_document(title: str, version_id: str, tokens: str) -> str:
    """A file about a prompt; `tokens` is the HTML of its coloured tokens."""
    return _document(title, f"<p>Version {escape(version_id)}</p>{tokens}")


def write_page(path: str | Path, document: str) -> int:
    """Writes a document as UTF-8 and returns the bytes written. Raises OSError."""
    content = document.encode("utf-8", "replace")
    Path(path).write_bytes(content)
    return len(content)


def _document(title: str, body: str) -> str:
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>{body}</body></html>\n"
    )


def _latent(latent: LatentStatistics, found: Sequence[Section]) -> str:
    parts = [
        f'<section id="latent-{latent.id}"><h2>Latent {latent.id}</h2>',
        f"<p>{escape(str(latent.latent_class))}, {escape(str(latent.verdict))}</p>",
        _html.facts(f"version {latent.version_id}", latent_facts(latent)),
    ]
    for section in found:
        parts.append(f"<h3>{escape(section.title)}</h3><p><small>{escape(section.remark)}</small></p>")
        parts += [_example(each.example, latent.max, each.note) for each in section.examples]
    if not found:
        parts.append("<p>The version has no examples of it.</p>")
    return "".join((*parts, "</section>"))


def _example(example: Example, maximum: float, note: str) -> str:
    strength = "silent" if example.group == "silent" else f"max {number(example.max)}"
    head = " · ".join(part for part in (example.dataset, strength, f"{example.num_tokens} tokens", note) if part)
    before = "…" if example.token_start else ""
    after = "…" if example.token_start + len(example.tokens) < example.num_tokens else ""
    return f'<small>{escape(head)}</small><div class="t">{before}{"".join(_tokens(example, maximum))}{after}</div>'


def _tokens(example: Example, maximum: float) -> Iterable[str]:
    """Active tokens each in an element with its activation; the others in runs of plain text."""
    values = example.values()
    marked = example.peak if example.group == "silent" else -1
    for (value, is_marked), run in groupby(range(len(values)), lambda i: (values[i], i == marked)):
        pieces = [example.tokens.pieces[i] for i in run]
        for piece in pieces if value else ["".join(pieces)]:
            shown = escape(piece.replace("\n", MARKS["\n"] + "\n"))
            if value:
                share = min(1.0, value / maximum) if maximum > 0 else 0.0
                yield f'<b style="--v:{share:.2f}" title="{number(value)}">{shown}</b>'
            else:
                yield f'<u title="it peaks on this token elsewhere">{shown}</u>' if is_marked else shown
