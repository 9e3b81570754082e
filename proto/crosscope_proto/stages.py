"""The stages of jobs: their names, their order, and what share of a whole job each of them is."""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Final


class Stage(StrEnum):
    """The stages in the order in which jobs go through them."""

    WORLD = "world"
    """Makes the texts of a generated world and its tokenizer."""
    BASE = "base"
    """Trains the demo's base model."""
    CHAT = "chat"
    """Trains the demo's chat model."""
    LOAD = "load"
    """Loads the pair, and a published crosscoder, and tries them."""
    HASH = "hash"
    """Hashes the models' files."""
    HASH_DATA = "hash-data"
    """Hashes the data files, if activations are cached."""
    FILL = "fill"
    """Fills the shuffle buffer before the first step."""
    TRAIN = "train"
    """Trains the dictionary."""
    ANALYSE = "analyse"
    """Measures every latent."""
    FIDELITY = "fidelity"
    """Runs both models with reconstructions spliced in."""
    SCAN = "scan"
    """Compares the predictions of both models at every token of the data."""
    SWEEP = "sweep"
    """Exchanges the models' streams at each layer, on the tokens that differ most."""
    CONTINUE = "continue"
    """Lets both models continue the prompts that differ most."""
    CAUSAL = "causal"
    """Runs both models with single latents changed."""
    LABEL = "label"
    """Asks for labels, and has them judged."""
    PUBLISH = "publish"
    """Writes the version, or the look, and makes it current."""


STAGES: Final[Mapping[str, Sequence[tuple[Stage, float]]]] = {
    "crosscoder": (
        (Stage.LOAD, 1.0),
        (Stage.HASH, 1.0),
        (Stage.HASH_DATA, 1.0),
        (Stage.FILL, 3.0),
        (Stage.TRAIN, 69.0),
        (Stage.ANALYSE, 20.0),
        (Stage.FIDELITY, 4.0),
        (Stage.CAUSAL, 4.0),
        (Stage.PUBLISH, 1.0),
    ),
    "published": (
        (Stage.LOAD, 5.0),
        (Stage.HASH, 5.0),
        (Stage.ANALYSE, 72.0),
        (Stage.FIDELITY, 15.0),
        (Stage.CAUSAL, 15.0),
        (Stage.PUBLISH, 3.0),
    ),
    "look": (
        (Stage.LOAD, 8.0),
        (Stage.HASH, 4.0),
        (Stage.SCAN, 50.0),
        (Stage.SWEEP, 25.0),
        (Stage.CONTINUE, 12.0),
        (Stage.PUBLISH, 1.0),
    ),
    "causal": ((Stage.LOAD, 8.0), (Stage.HASH, 4.0), (Stage.CAUSAL, 85.0), (Stage.PUBLISH, 3.0)),
    "label": ((Stage.LOAD, 4.0), (Stage.LABEL, 95.0), (Stage.PUBLISH, 1.0)),
    "demo-pair": ((Stage.WORLD, 5.0), (Stage.BASE, 60.0), (Stage.CHAT, 35.0)),
}
"""The stages of each kind of recipe in their order. A weight is the rough share of time, in a job of usual size."""


def in_order(stages: Iterable[str]) -> list[str]:
    """Names of stages in the order in which jobs go through them; unknown names come last."""
    order = {str(stage): i for i, stage in enumerate(Stage)}
    return sorted(stages, key=lambda stage: order.get(stage, len(order)))
