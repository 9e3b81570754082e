"""Results as HTML for notebooks: tokens coloured by activation. Every text is escaped; no script, no outside file.

A token's colour is an orange wash over the page's own background, so that text keeps the notebook's own colour; the
contrast stays at least 4.5 on white and on black. The number stands in the title of each token, and a stronger wash
comes with a stronger underline, so that colour is not the only sign.
"""

from collections.abc import Iterable, Sequence
from html import escape

from crosscope import _tables
from crosscope._types import Tokens
from crosscope_proto.roles import LeftOut

MAX_ALPHA = 0.45
"""Opacity of the strongest wash: contrast 9.6 with black text on white paper, 5.4 with white text on black."""
WASH = (230, 120, 0)
"""Colour of the wash: red, green, blue."""

_STYLE = (
    "<style>.crosscope{font-size:13px;line-height:1.7}"
    ".crosscope table{border-collapse:collapse}.crosscope td,.crosscope th{text-align:left;padding:1px 8px}"
    ".crosscope .text{white-space:pre-wrap;overflow-wrap:anywhere;font-family:monospace}"
    ".crosscope .template{opacity:.75}.crosscope .left-out{opacity:.6;text-decoration:line-through}</style>"
)


def page(body: str) -> str:
    """A whole notebook output."""
    return f'{_STYLE}<div class="crosscope">{body}</div>'


def scale_of(tokens: Tokens, values: Sequence[float]) -> float:
    """The largest value on a token that training did not leave out; 0 if there is none.

    Latents may be hundreds of times as strong on the others, and on their scale all tokens would be pale.
    """
    reasons = tokens.left_out or (LeftOut.KEPT,) * len(tokens)
    return max((v for v, reason in zip(values, reasons, strict=True) if reason == LeftOut.KEPT), default=0.0)


def tokens(tokens: Tokens, values: Sequence[float], maximum: float, titles: Sequence[str]) -> str:
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


def facts(title: str, facts: Iterable[tuple[str, str]]) -> str:
    """A title and a table of facts as (what, value)."""
    rows = "".join(f"<tr><th>{escape(what)}</th><td>{escape(value)}</td></tr>" for what, value in facts)
    return f"<strong>{escape(title)}</strong><table><tbody>{rows}</tbody></table>"


def remarks(sentences: Iterable[str]) -> str:
    """Sentences below a table."""
    return "".join(f"<div><small>{escape(sentence)}</small></div>" for sentence in sentences)
