"""Changes by latents as a page edits them, and the arms that they are asked in. Knows nothing about Streamlit.

A change stands in the URL in the SDK's own words, for instance "7 add 4"; `crosscope.Steer.parse` reads them.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crosscope import Arm, InvalidInput, Steer

PARAM = "steer"
"""The URL's parameter; each value is one change."""
ACTIONS: Mapping[str, str] = {
    "add": "add",
    "set": "set to",
    "scale": "scale by",
    "ablate": "ablate",
    "transplant": "transplant",
    "swap_stream": "exchange stream",
}
"""What a change does, as people read it."""
ROWS: Mapping[str, str] = {"own": "own", "other": "other model's", "difference": "chat − base"}
REACHES: Mapping[str, str] = {"all": "everywhere", "prompt": "in the prompt", "generated": "in the answer"}
WITHOUT_ROW = ("transplant", "swap_stream")
"""Actions that say themselves which row is written."""
STRENGTHS: Mapping[str, tuple[float, float, float]] = {
    "add": (-8.0, 8.0, 1.0),
    "set": (0.0, 8.0, 1.0),
    "scale": (-4.0, 8.0, 2.0),
}
"""Lowest and highest strength of the slider, and the first one, of actions that have one."""
MAX_CHANGES = 64
"""Changes that the server takes in one arm."""
MODELS = ("base", "chat")


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    max_new_tokens: int = 64
    num_samples: int = 1

    def arguments(self) -> dict[str, Any]:
        """The settings as arguments of `Crosscoder.generate`."""
        return {
            "temperature": self.temperature,
            "top_p": self.top_p if self.top_p < 1 else None,
            "seed": self.seed,
            "max_new_tokens": self.max_new_tokens,
            "num_samples": self.num_samples,
        }


def read(texts: Sequence[str]) -> tuple[list[Steer], list[str]]:
    """The changes of a URL, and what is wrong with the parameters that are none."""
    changes: list[Steer] = []
    problems: list[str] = []
    for text in texts[:MAX_CHANGES]:
        try:
            changes.append(Steer.parse(text))
        except InvalidInput as error:
            problems.append(str(error))
    if len(texts) > MAX_CHANGES:
        problems.append(
            f"{len(texts)} changes are more than the {MAX_CHANGES} that one answer can have; the rest is left out"
        )
    return changes, problems


def altered(change: Steer, **fields: Any) -> Steer:
    """The change with other fields: `action`, `amount`, `latents`, `row`, `reach`. What the action cannot have goes."""
    action = fields.get("action", change.action)
    amount = fields.get("amount", change.amount if change.action == action else None)
    if amount is None and action in STRENGTHS:
        amount = STRENGTHS[action][2]
    given: dict[str, Any] = {
        "latents": () if action == "swap_stream" else fields.get("latents", change.latents),
        "row": "own" if action in WITHOUT_ROW else fields.get("row", change.row),
        "reach": fields.get("reach", change.reach),
        "roles": change.roles,
        "positions": change.positions,
        "include_left_out": change.include_left_out,
        action: amount if action in STRENGTHS else True,
    }
    return Steer(**given)


def added(changes: Sequence[Steer], latent: int) -> list[Steer]:
    """The changes and one more, which adds a latent once at its maximum."""
    return [*changes, Steer(latent=latent, add=STRENGTHS["add"][2])]


def latents_of(text: str) -> tuple[int, ...]:
    """The ids that somebody typed, "7" or "7, 12". Raises InvalidInput if they are none."""
    words = [word for word in re.split(r"[\s,]+", text.strip()) if word]
    if not words or not all(word.isdecimal() and len(word) < 10 for word in words):
        raise InvalidInput.of("latents", f"{text!r} is no list of latents; write for instance 7, or 7, 12")
    return tuple(int(word) for word in words)


def unknown(changes: Sequence[Steer], num_latents: int) -> list[int]:
    """The latents that are changed and do not exist."""
    return sorted({latent for change in changes for latent in change.latents if latent >= num_latents})


def arms(changes: Sequence[Steer]) -> tuple[Arm, ...]:
    """Base and chat as they are, then both with the changes, if there are any."""
    plain = [Arm(model=model, name=f"{model}, plain") for model in MODELS]
    steered = [Arm(model=model, steer=tuple(changes), name=f"{model}, steered") for model in MODELS] if changes else []
    return (*plain, *steered)


def latents_in(arms: Sequence[Arm]) -> list[int]:
    """The latents that any of the arms changes."""
    changes = [change for arm in arms for change in ([arm.steer] if isinstance(arm.steer, Steer) else arm.steer)]
    return sorted({latent for change in changes for latent in change.latents})
