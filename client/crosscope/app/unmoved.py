"""What is said where changes have no visible effect on any answer: that they have none, and what to try instead.

Pure functions of answers; knows nothing about pages.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crosscope import Answer, Steer
from crosscope.app.text import number

UNFINISHED = ("cancelled", "under_way")
"""Reasons of answers that cannot be compared, because more would have come."""
ONLY_WHERE_IT_FIRES = ("ablate", "scale", "transplant")
"""Actions that change nothing at a token on which neither the latent fires nor its counterpart."""
NOTHING = {"scale": 1.0, "add": 0.0}
"""Amounts that change nothing whatever the prompt."""


@dataclass(frozen=True)
class Unmoved:
    """Steered answers that are what the same models say unchanged."""

    said: str
    tries: tuple[str, ...]
    """What to try instead, most telling first; in Markdown, as `said`."""


def unmoved(answers: Sequence[Answer]) -> Unmoved | None:
    """What to say of answers to one prompt; None if a change moved a word of one, or if none can be compared."""
    pairs = [(plain, each) for each in answers for plain in answers if is_plain_of(plain, each)]
    if not pairs or any(is_other(plain, steered) for plain, steered in pairs):
        return None
    steered = [each for _, each in pairs]
    models = list(dict.fromkeys(each.arm.model for each in steered))
    largest = max(_moved(*pair) for pair in pairs)
    moved = f"no token's log-probability moved by more than {number(largest, 2)} nats"
    verb = "answer" if len(models) > 1 else "answers"
    return Unmoved(
        f"With the changes, {' and '.join(models)} {verb} the same, word for word; "
        f"{moved if largest else 'no probability moved'}.",
        tuple(_tries(steered[0].arm.changes, steered, largest)),
    )


def is_plain_of(other: Answer, answer: Answer) -> bool:
    """Whether the other answer is what the same model said unsteered."""
    same = (other.arm.model, other.sample) == (answer.arm.model, answer.sample)
    return bool(answer.arm.steer) and not other.arm.steer and same


def is_other(plain: Answer, steered: Answer) -> bool:
    """Whether a steered answer differs from the plain one, or cannot be compared with it."""
    return plain.text != steered.text or any(each.reason in UNFINISHED for each in (plain, steered))


def _moved(plain: Answer, steered: Answer) -> float:
    """The largest change of a token's log-probability; 0 where the tokens are not the same."""
    if plain.tokens.ids != steered.tokens.ids or not len(plain.tokens):
        return 0.0
    return float(np.abs(plain.log_probabilities - steered.log_probabilities).max())


def _tries(changes: Sequence[Steer], steered: Sequence[Answer], largest: float) -> list[str]:
    """What to try instead of changes that moved no word."""
    found: list[str] = []
    actions, models = {change.action for change in changes}, list(dict.fromkeys(each.arm.model for each in steered))
    idle = [change.action for change in changes if change.action in NOTHING and change.amount == NOTHING[change.action]]
    if idle:
        said = {"scale": "a factor of 1", "add": "a strength of 0"}[idle[0]]
        found.append(f"Another strength: {said} changes nothing.")
    silent = [model for model in models if not any(each.num_changed for each in steered if each.arm.model == model)]
    if silent and actions <= set(ONLY_WHERE_IT_FIRES):
        where = f"in {silent[0]} they" if len(silent) < len(models) else "they"
        found.append(
            f"A prompt on which the latents fire: {where} fire nowhere here, so nothing was changed. Each example on a "
            "latent's page opens in the prompt lab."
        )
    if silent == models:
        if any(change.reach != "all" or change.roles or change.positions for change in changes):
            found.append("Changes that act everywhere: these reach only a part of the text.")
        if any(each.num_left_out for each in steered):
            found.append("*Also at left-out tokens*, if the latents fire on nothing else.")
    elif "swap_stream" in actions:
        found.append("Another prompt: with the other model's whole stream, no latent of this layer can do more.")
    else:
        if actions & {"ablate", "scale", "transplant"}:
            found.append("More latents together: others may carry the same. The link below lists those that do here.")
        if actions & {"add", "set"}:
            found.append("A larger strength, or latents that carry what you want to change.")
        found.append("*Add the whole stream*: it shows the most that latents of this layer can do on this prompt.")
    if largest:
        found.append("The colour *steered less plain*: it shows where the changes moved a probability.")
    return found
