"""What a training takes, computed from its recipe alone: memory and disk; and which trainings are equally fast.

Pure functions of sizes: reads no file and asks no device.
"""

from dataclasses import dataclass

from crosscope_proto.dictionaries import DictionarySpec
from crosscope_proto.recipe import CrosscoderRecipe
from crosscope_proto.specs import TrainingSpec

SPEEDS = "speeds.jsonl"
"""File in the home folder that says how fast trainings were: a JSON object a line, the newest last."""

SAMPLE_TOKENS = 32_768
"""Most tokens that thresholds are calibrated on, `4 · both` bytes each. A sample that was just thinned has half."""
SAMPLE = "the threshold's sample, tokens:"
"""Key of the sample's bytes in `needed`. No field of the recipe changes its size; some variants have no sample."""
_COPIES_OF_WEIGHTS = 4
"""Weights, gradients and Adam's two moments."""
_BYTES_A_CODE_ENTRY = 26
"""Memory of a code entry at the first step: a pre-activation, its bit in a mask, and token, latent and value of the
half that is positive. 878 MB were measured for 2 048 tokens and 16 384 latents."""


def needed(spec: DictionarySpec, training: TrainingSpec, both: int) -> dict[str, int]:
    """Bytes of memory, by the field of the recipe that they grow with. `both` is the sum of the models' widths."""
    sample = {SAMPLE: 4 * SAMPLE_TOKENS * both} if spec.calibrates else {}
    return sample | {
        "crosscoder.num_latents": _COPIES_OF_WEIGHTS * 4 * (2 * spec.num_latents * both + spec.num_latents + both),
        "training.batch_size": _BYTES_A_CODE_ENTRY * training.batch_size * spec.num_latents,
        "training.buffer_tokens": 4 * _buffer_tokens(training) * both,
    }


def values_of(spec: DictionarySpec, training: TrainingSpec) -> dict[str, int]:
    """The values of the fields in `needed`, as the training uses them."""
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
    """Size of a checkpoint: weights, Adam's two moments, the buffer and the sample."""
    parts = needed(spec, training, both)
    weights = parts["crosscoder.num_latents"] * 3 // _COPIES_OF_WEIGHTS
    return weights + parts["training.buffer_tokens"] + parts.get(SAMPLE, 0)


@dataclass(frozen=True)
class Speed:
    """How fast a training ran. Two trainings are alike if their fields are equal down to `device`."""

    pair: str
    layer: int
    variant: str
    num_latents: int
    batch_size: int
    dtype: str
    device: str
    tokens_per_second: float
    note: str = ""
    """What was noticed about the machine at that time."""

    def is_of(self, recipe: CrosscoderRecipe) -> bool:
        """Whether a recipe will train about as fast, on the same device."""
        spec, training = recipe.crosscoder, recipe.training
        wanted = recipe.pair.name, recipe.layer, spec.variant, spec.num_latents, training.batch_size, training.dtype
        return wanted == (self.pair, self.layer, self.variant, self.num_latents, self.batch_size, self.dtype)
