"""What a training takes, worked out from its recipe alone: memory, disk, and under which name its speed is remembered.

Pure functions of sizes: reads no file and asks no device.
"""

from dataclasses import dataclass

from crosscope_proto.dictionaries import DictionarySpec
from crosscope_proto.recipe import CrosscoderRecipe
from crosscope_proto.specs import TrainingSpec

SPEEDS = "speeds.jsonl"
"""Below the home folder: how fast trainings were, a JSON object a line, the newest last."""

SAMPLE_TOKENS = 32_768
"""Tokens that thresholds are calibrated on at most, `4 · both` bytes each; half of them where it was just thinned."""
SAMPLE = "the threshold's sample, tokens:"
"""Stands beside the recipe's fields; no field changes it, but the variant has one or has none."""
_COPIES_OF_WEIGHTS = 4
"""Weights, gradients and Adam's two moments."""
_BYTES_A_CODE_ENTRY = 26
"""A pre-activation, its mark in a mask, and the places, latents and values of the half that is positive: at the first
step all of them are looked at. 878 MB were measured for 2 048 tokens and 16 384 latents."""


def needed(spec: DictionarySpec, training: TrainingSpec, both: int) -> dict[str, int]:
    """Bytes, by the field of the recipe that they grow with; `both` is the sum of the models' widths."""
    sample = {SAMPLE: 4 * SAMPLE_TOKENS * both} if spec.calibrates else {}
    return sample | {
        "crosscoder.num_latents": _COPIES_OF_WEIGHTS * 4 * (2 * spec.num_latents * both + spec.num_latents + both),
        "training.batch_size": _BYTES_A_CODE_ENTRY * training.batch_size * spec.num_latents,
        "training.buffer_tokens": 4 * _buffer_tokens(training) * both,
    }


def values_of(spec: DictionarySpec, training: TrainingSpec) -> dict[str, int]:
    """The fields that `needed` speaks of, as they take effect."""
    return {
        SAMPLE: SAMPLE_TOKENS,
        "crosscoder.num_latents": spec.num_latents,
        "training.batch_size": training.batch_size,
        "training.buffer_tokens": _buffer_tokens(training),
    }


def _buffer_tokens(training: TrainingSpec) -> int:
    """At least two batches (buffer.py)."""
    return max(training.buffer_tokens, 2 * training.batch_size)


def checkpoint_bytes(spec: DictionarySpec, training: TrainingSpec, both: int) -> int:
    """Of a training's checkpoint: weights, Adam's two moments, the buffer and the sample."""
    parts = needed(spec, training, both)
    weights = parts["crosscoder.num_latents"] * 3 // _COPIES_OF_WEIGHTS
    return weights + parts["training.buffer_tokens"] + parts.get(SAMPLE, 0)


@dataclass(frozen=True)
class Speed:
    """How fast a training ran. Equal trainings are those whose fields are equal up to `device`."""

    pair: str
    layer: int
    variant: str
    num_latents: int
    batch_size: int
    dtype: str
    device: str
    tokens_per_second: float
    note: str = ""
    """What was found of the machine then."""

    def is_of(self, recipe: CrosscoderRecipe) -> bool:
        """Whether it tells how fast a recipe will be trained."""
        spec, training = recipe.crosscoder, recipe.training
        wanted = recipe.pair.name, recipe.layer, spec.variant, spec.num_latents, training.batch_size, training.dtype
        return wanted == (self.pair, self.layer, self.variant, self.num_latents, self.batch_size, self.dtype)
