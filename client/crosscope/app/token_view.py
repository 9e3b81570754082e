"""The token view: texts with the latents that fire on each token. No other module of the app draws tokens.

A Streamlit component in plain JavaScript (`token_view.js`). Hovering, the colour scale, line breaks and moving with the
keyboard stay in the browser; a click on a token or an action reaches Python. Pieces are hostile input: they travel as
data and become text nodes, never markup. Knows nothing about the server.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from streamlit.components import v2

from crosscope import LeftOut, TokenRole, _tables
from crosscope.app.palette import css_variables
from crosscope.app.text import PART
from crosscope_proto.roles import TEMPLATE_ROLES

_FOLDER = Path(__file__).parent
SCRIPTS = ("parts.js", "heat_map.js", "token_copies.js", "token_colours.js", "token_view.js")
REASONS = {
    LeftOut.BOS: "it is BOS",
    LeftOut.FIRST: "it is one of the first tokens",
    LeftOut.NORM: "its norm is an outlier",
    LeftOut.PAD: "it is padding",
}
"""Why training and analysis leave a token out."""

ROLES = {
    TokenRole.TEXT: "text",
    TokenRole.BOS: "beginning of sequence",
    TokenRole.HEADER: "role header",
    TokenRole.TURN_END: "turn end",
    TokenRole.SYSTEM: "system",
    TokenRole.USER: "user",
    TokenRole.ASSISTANT: "assistant",
    TokenRole.REASONING: "reasoning",
    TokenRole.TOOL: "tool",
    TokenRole.PAD: "padding",
}
"""What one token is for."""
KINDS = {TokenRole.REASONING: "reasoning", TokenRole.TOOL: "tool"}
"""Style classes of tokens of a role."""


@dataclass(frozen=True)
class Strip:
    """One text. The latents of token t are `latents[row_starts[t]:row_starts[t + 1]]`, strongest first."""

    pieces: Sequence[str]
    """Joined, they are the text; a token that only continues a character has the empty piece."""
    roles: Sequence[int]
    """TokenRole of each token."""
    row_starts: Sequence[int]
    latents: Sequence[int]
    values: Sequence[float]
    """Scaled activations."""
    title: str = ""
    note: str = ""
    token_start: int = 0
    """Position of the first token in its whole text."""
    num_tokens: int = 0
    """Tokens of the whole text; 0: this is all of it."""
    peak: int | None = None
    """Token to bring into view and to focus first."""
    left_out: Sequence[LeftOut] = ()
    """Why training and analysis left each token out, KEPT if they did not; empty if unknown."""
    shades: Sequence[float] = ()
    """A figure of each token, at least 0; NaN where undefined. It colours the tokens of a view with a measure."""
    notes: Sequence[str] = ()
    """A line about each token, read where the token is pointed at; empty: none."""
    actions: Mapping[str, str] = field(default_factory=dict)
    """Buttons at its head: what each says, by the kind of the event that it sends."""


@dataclass(frozen=True)
class TokenEvent:
    """A click or a choice: `kind` is "lock", "unlock", "latent", "range" or that of one of the strip's actions."""

    kind: str
    strip: int
    position: int
    """Token index in the strip, for "range" the first one; the latent for "latent"; -1 for actions and for no range."""
    end: int = -1
    """One past the last token of a range."""


def strip_of_latent(
    pieces: Sequence[str],
    roles: Sequence[int],
    latent: int,
    positions: Sequence[int],
    values: Sequence[float],
    **about: Any,
) -> Strip:
    """A strip on which one latent fires at `positions` (ascending) with `values`."""
    starts = np.searchsorted(np.asarray(positions, dtype=np.int64), np.arange(len(pieces) + 1), side="left")
    return Strip(pieces, roles, starts.tolist(), [latent] * len(positions), values, **about)


@cache
def _component() -> Any:
    return v2.component(
        "crosscope_token_view",
        html='<div class="root"></div>',
        css=css_variables(".root") + _mark_variables() + (_FOLDER / "token_view.css").read_text("utf-8"),
        js=_constants() + "".join((_FOLDER / name).read_text("utf-8") for name in SCRIPTS),
    )


def _mark_variables() -> str:
    """A rule that gives the style sheet the marks of line ends, of blanks and of the rest of a character."""
    marks = {"newline": _tables.MARKS["\n"], "blank": _tables.MARKS[" "], "part": PART}
    return ".root {" + "".join(f' --xs-{name}: "{mark}";' for name, mark in marks.items()) + " }\n"


def _constants() -> str:
    """The roles and marks, as constants of the script."""
    constants = {"ROLES": ROLES, "TEMPLATE": sorted(TEMPLATE_ROLES), "KINDS": KINDS, "MARKS": _tables.MARKS}
    return "".join(f"const {name} = {json.dumps(value)};\n" for name, value in constants.items())


def _packed(strip: Strip) -> dict[str, Any]:
    return {
        "pieces": list(strip.pieces),
        "roles": [int(role) for role in strip.roles],
        "row_starts": [int(start) for start in strip.row_starts],
        "latents": [int(latent) for latent in strip.latents],
        "values": np.round(np.asarray(strip.values, dtype=np.float64), 4).tolist(),
        "title": strip.title,
        "note": strip.note,
        "token_start": strip.token_start,
        "num_tokens": strip.num_tokens or len(strip.pieces),
        "peak": strip.peak,
        "shades": [None if math.isnan(shade) else float(f"{shade:.5g}") for shade in strip.shades],
        "notes": list(strip.notes),
        "actions": [list(each) for each in strip.actions.items()],
        "left_out": {str(position): REASONS[why] for position, why in enumerate(strip.left_out) if why in REASONS},
    }


def token_view(
    strips: Sequence[Strip],
    *,
    key: str,
    scale_max: float | None = None,
    colour_by: int | None = None,
    locked: tuple[int, int] | None = None,
    legend: Mapping[int, str] | None = None,
    line_breaks: bool = False,
    measure: str = "",
    columns: int = 1,
    ranges: bool = False,
    chosen: tuple[int, int] | None = None,
    heat: Sequence[int] = (),
    split: Mapping[int, float] | None = None,
) -> TokenEvent | None:
    """Draws the strips and returns the click that caused this rerun, if one did.

    Tokens are coloured by the latent `colour_by`, or by the strongest one of each token. `scale_max` is the activation
    of the full colour; unset: the largest one on a token that training did not leave out. `locked` is (strip,
    token). `legend` offers latents, with a name each, to colour by. `measure` says what the strips' `shades` are: they
    then colour the tokens. Two `columns` lay strips side by side where there is room. With `ranges`, several tokens can
    be chosen by dragging or with Shift; `chosen` is the range of the first strip, from a token to one past the last.
    `heat` are latents that get a heat map over its tokens. `split` are two latents and the activation of the full
    colour of each: one colours the upper half of a token, the other the lower half.
    """
    content = {
        "strips": [_packed(strip) for strip in strips],
        "legend": [[int(latent), name] for latent, name in (legend or {}).items()],
        "line_breaks": line_breaks,
        "scale_max": scale_max,
        "measure": measure,
        "columns": columns,
        "ranges": ranges,
        "heat": [int(latent) for latent in heat],
        "split": [[int(latent), largest] for latent, largest in (split or {}).items()],
    }
    data = {
        **content,
        "revision": hashlib.blake2b(json.dumps(content).encode("utf-8", "surrogatepass"), digest_size=12).hexdigest(),
        "colour_by": colour_by,
        "locked": list(locked) if locked else None,
        "range": [0, *chosen] if chosen else None,
    }
    result = _component()(key=key, data=data, on_event_change=_ignore)
    event = result.event
    if not event:
        return None
    return TokenEvent(str(event["kind"]), int(event["strip"]), int(event["position"]), int(event["end"]))


def _ignore() -> None:
    """Does nothing. Streamlit gives the event in the result if a callback is named; the rerun is the reaction."""
