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


SECTIONS = (
    Section("step", "a training step against a dense step and its floor", 70, 30),
    Section("tests", "the tests marked gpu", 120, 4, "checked"),
    Section("checks", "losses, codes, trainings and analysis against the CPU and autograd", 120, 4, "checked"),
    Section("harvest", "activations of both models to the layer", 70, 20),
    Section("online", "codes of prompts as the inference process makes them", 60, 18),
    Section("train", "training end to end: texts, both models, dictionary", 90, 52),
    Section("analysis", "the analysis of a dictionary: its pass, and what follows", 90, 26),
    Section("checkpoint", "how long training stands still for a checkpoint", 60, 46),
    Section("memory", "the peak of a training step against its estimate", 45, 56),
    Section("peaks", "products and copies: what the card can do", 30, 12),
)
