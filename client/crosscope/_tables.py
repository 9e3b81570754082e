"""Results as plain text: numbers, tokens on one line, aligned tables, short cards. Knows no result.

The command line adds the colours and widths of a terminal.
"""

import math
import unicodedata
from collections.abc import Iterable, Sequence

MOST_ROWS = 50
"""Rows that a printed table shows before it says how many there are."""
MARKS = {"\n": "↵", "\t": "⇥", "\r": "␍", " ": "␣"}
"""The signs that stand for white space in a token, wherever tokens are shown."""
_MARKED = str.maketrans(MARKS)
UNDEFINED = "–"
"""The sign that stands for an undefined figure."""
MINUS = "−"
THIN_SPACE = "\u202f"
"""Between thousands; lines do not break at it."""


def marked(text: str) -> str:
    """A token's text with its white space shown as MARKS."""
    return text.translate(_MARKED)


def visible(text: str) -> str:
    """A token's text on one line: blanks and line ends shown as signs, control characters as their code."""
    return printable(marked(text))


def printable(text: str) -> str:
    """A sentence or a text on one line, control characters as their code, so that no text moves the cursor."""
    return lines(text.replace("\n", MARKS["\n"]))


def lines(text: str) -> str:
    """A text that keeps its lines, all other control characters as their code."""
    return "".join(c if c == "\n" or unicodedata.category(c)[0] != "C" else f"\\u{ord(c):04x}" for c in text)


def number(value: float | None, digits: int = 3) -> str:
    """A number as people read it, wherever one is shown: `digits` significant digits, one from 1 000 on whole.

    Thin spaces stand between thousands, a true minus in front, "–" for an undefined one: 0.123, 12 345, −1.2e−5.
    """
    if value is None or value != value:
        return UNDEFINED
    if abs(value) == math.inf:
        return "∞" if value > 0 else f"{MINUS}∞"
    rounded = float(f"{value:.{digits - 1}e}")
    shown = count(value) if abs(rounded) >= 1000 else f"{rounded:.{digits}g}"
    mantissa, _, exponent = shown.partition("e")
    return (f"{mantissa}e{int(exponent)}" if exponent else shown).replace("-", MINUS)


def count(value: float) -> str:
    """A whole number with thin spaces between thousands."""
    return f"{value:,.0f}".replace(",", THIN_SPACE).replace("-", MINUS)


def percent(share: float | None) -> str:
    """A share in per cent, one below 1 % with a digit more, a true minus in front; a dash where it is undefined."""
    if share is None or share != share:
        return UNDEFINED
    if abs(share) < 0.0005:
        return "0%"
    shown = f"{share:.1%}" if abs(share) < 0.01 else f"{share:.0%}"
    return shown.replace("-", MINUS)


def counted(count: int, noun: str) -> str:
    """A number of things, in words: "1 token", "2 tokens"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


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


def with_rest(table: str, shown: int, total: int) -> str:
    """A table, and below it the number of rows that it does not show."""
    return table if shown >= total else f"{table}\n… {total - shown} more"


def card(title: str, facts: Sequence[tuple[str, str]]) -> str:
    """A title and, below it, facts as (what, value)."""
    wide = max(len(what) for what, _ in facts)
    return "\n".join([title, *(f"  {what:<{wide}}  {printable(value)}" for what, value in facts)])


def amount(value: float, unit: str) -> str:
    """The amount of a plan's entry, with its unit."""
    if unit == "bytes":
        return next((f"{value / size:.1f} {name}" for size, name in _SIZES if value >= size), f"{value:.0f} B")
    if unit == "seconds":
        return duration(value)
    if unit == "share":
        return f"{value:.0%}"
    return f"{value:,.0f} {unit}".strip().replace(",", " ")


_SIZES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def duration(seconds: float) -> str:
    """A time in the units that fit its length: "45 s", "12 min", "3 h 20 min", "2 d 5 h"."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    if hours < 36:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{hours // 24} d {hours % 24} h"
