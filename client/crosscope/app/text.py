"""Figures and texts as people read them. Pure functions."""

import math
import re

from crosscope import _tables
from crosscope.app.palette import CLASS_NAMES, SPECIFIC_NAMES, VERDICT_NAMES

PART = "⋯"
"""The sign of a token that only continues the character of the token before it."""
_PATH = re.compile(r"(?<![\w/.:~-])(?:unix:)?(?:/[^\s/'\",;:()<>\[\]]+){2,}/?|(?<=unix:)/[^\s'\",;()]+")
_LAYOUT = ("jobs", "crosscoders", "pairs")
"""Folders of the home folder; paths in them are shown from there on."""


def number(value: float | None, digits: int = 3, floor: float = math.inf) -> str:
    """A figure for people; "–" if undefined, "≥" in front if it has reached the `floor` of the measurement."""
    shown = _tables.number(value, digits)
    return shown if value is None else at_least(shown, value, floor)


def at_least(shown: str, value: float, floor: float) -> str:
    """The figure, with "≥" in front if it has reached the floor of the measurement."""
    return f"≥ {shown}" if value >= floor - 1e-3 else shown


def with_error(value: float, se: float) -> str:
    """A figure with its standard error."""
    return number(value) if math.isnan(value) or math.isnan(se) else f"{number(value)} ± {number(se, 2)}"


def count(value: float) -> str:
    """A whole number with thin spaces between thousands."""
    return f"{int(value):,}".replace(",", "\u202f")


def judged(latent_class: str, verdict: str, specific_to: str) -> str:
    """A class and the verdict on it, for a cell; class other claims nothing, so what it is specific to stands there."""
    said = [VERDICT_NAMES[verdict]] if verdict not in ("", "not_judged") else []
    if latent_class == "other" and specific_to:
        said = [SPECIFIC_NAMES[specific_to], *(each for each in said if verdict != "supported")]
    return " · ".join(filter(None, (CLASS_NAMES.get(latent_class, latent_class), ", ".join(said))))


def visible(text: str) -> str:
    """A token's text with visible white space; "⋯" for a token that only continues a character."""
    return _tables.marked(text) or PART


def plain(text: str) -> str:
    """A text as Markdown, with every special character escaped."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]()<>#+-.!|$~:" else c for c in text).replace("\n", "  \n")


def sentence(said: str) -> str:
    """A sentence of the server as Markdown, with a full stop and without paths of the server's machine."""
    shown = plain(without_paths(said)).strip()
    return shown if shown.endswith((".", "!", "?")) else f"{shown}\\."


def without_paths(sentence: str, said: str = "") -> str:
    """A sentence without folders of the server's machine; paths in `said`, which a person wrote, stay whole.

    A path is cut to what lies below the home folder, else to its last part.
    """

    def short(found: re.Match[str]) -> str:
        path = found[0]
        if path in said:
            return path
        parts = path.rstrip("/").split("/")
        start = next((i for i, part in enumerate(parts) if part in _LAYOUT and i + 1 < len(parts)), len(parts) - 1)
        return "…/" + "/".join(parts[start:])

    return _PATH.sub(short, sentence)
