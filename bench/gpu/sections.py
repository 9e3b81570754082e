"""The sections of `make bench-gpu`, most valuable first, and what each may take. Does not know what they measure."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Section:
    """A module of this folder that is run as a process of its own."""

    name: str
    what: str
    limit_s: float
    """Seconds after which it is ended; waiting for the device does not count."""
    gib: float
    """Memory that it takes of the device at most; sections run side by side while all have room."""
    kind: Literal["measured", "checked"] = "measured"
    """What is checked begins when all that is measured has ended."""
    is_alone: bool = False
    """Whether nothing may run beside it: its times depend on the CPU."""


SECTIONS = (
    Section("step", "a training step against a dense step and its floor", 45, 30, is_alone=True),
    Section("analysis", "the analysis of a dictionary: its pass, and what follows", 45, 26),
    Section("online", "codes of prompts as the inference process makes them, and answers", 75, 22),
    Section("train", "training end to end: texts, both models, dictionary", 62, 52),
    Section("memory", "the peak of a training step against its estimate", 45, 56),
    Section("checkpoint", "how long training stands still for a checkpoint", 45, 46),
    Section("harvest", "activations of both models to the layer", 60, 20),
    Section("peaks", "products and copies: what the card can do", 30, 12),
    Section("tests", "the tests marked gpu", 120, 8, "checked"),
    Section("checks", "losses, codes, trainings and analysis against the CPU and autograd", 90, 4, "checked"),
)
