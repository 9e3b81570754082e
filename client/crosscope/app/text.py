"""Figures and texts as people read them. Pure functions."""

import math
import re

from crosscope import _tables

PART = "⋯"
"""What stands for a token that only goes on with the character of the token before it."""
_PATH = re.compile(r"(?<![\w/.:~-])(?:unix:)?(?:/[^\s/'\",;:()<>\[\]]+){2,}/?|(?<=unix:)/[^\s'\",;()]+")
_LAYOUT = ("jobs", "crosscoders", "pairs")
"""Folders of the home folder; what lies in them is named from there."""


def number(value: float | None, digits: int = 3, floor: float = math.inf) -> str:
    """A figure for people; "–" where undefined, "≥" where it has reached a `floor` of the measurement."""
    shown = _tables.number(value, digits)
    return shown if value is None else at_least(shown, value, floor)


def at_least(shown: str, value: float, floor: float) -> str:
    """A figure that has reached the floor of what can be measured says so."""
    return f"≥ {shown}" if value >= floor - 1e-3 else shown


def with_error(value: float, se: float) -> str:
    """A figure with its standard error."""
    return number(value) if math.isnan(value) or math.isnan(se) else f"{number(value)} ± {number(se, 2)}"


def count(value: float) -> str:
    """A whole number with thin spaces between thousands."""
    return f"{int(value):,}".replace(",", "\u202f")


def visible(text: str) -> str:
    """A token's text with white space made visible; a token that is the rest of a character shows as "⋯"."""
    return _tables.marked(text) or PART


def plain(text: str) -> str:
    """A text as Markdown that shows it as it is."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]()<>#+-.!|$~:" else c for c in text).replace("\n", "  \n")


def sentence(said: str) -> str:
    """What the server says as Markdown that ends with a full stop, without folders of its machine."""
    shown = plain(without_paths(said)).strip()
    return shown if shown.endswith((".", "!", "?")) else f"{shown}\\."


def without_paths(sentence: str, said: str = "") -> str:
    """A sentence without folders of the server's machine, but for paths that stand in `said`, which a person wrote.

    A path is named from its folder in the home folder on, else by its last part.
    """

    def short(found: re.Match[str]) -> str:
        path = found[0]
        if path in said:
            return path
        parts = path.rstrip("/").split("/")
        start = next((i for i, part in enumerate(parts) if part in _LAYOUT and i + 1 < len(parts)), len(parts) - 1)
        return "…/" + "/".join(parts[start:])

    return _PATH.sub(short, sentence)
