"""Which trainings are equally fast, and how fast they were. Reads no file and asks no device."""

from dataclasses import dataclass

from crosscope_proto.recipe import CrosscoderRecipe

SPEEDS = "speeds.jsonl"
"""File in the home folder that says how fast trainings were: a JSON object a line, the newest last."""


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
    num_devices: int = 1
    """Number of such devices that trained together."""

    def is_of(self, recipe: CrosscoderRecipe) -> bool:
        """Whether a recipe will train about as fast, on the same device."""
        spec, training = recipe.crosscoder, recipe.training
        wanted = recipe.pair.name, recipe.layer, spec.variant, spec.num_latents, training.batch_size, training.dtype
        alike = wanted == (self.pair, self.layer, self.variant, self.num_latents, self.batch_size, self.dtype)
        return alike and training.devices in (self.num_devices, "auto")
