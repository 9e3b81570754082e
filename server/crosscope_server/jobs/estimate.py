"""What a training takes on one device: memory, whether it fits, what would, and how long it runs.

Pure arithmetic on a recipe and the sizes of its models: asks no device. Another device is another `Target`.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from crosscope_proto import rates
from crosscope_proto.footprint import Speed
from crosscope_proto.rates import Rates
from crosscope_proto.recipe import CrosscoderRecipe
from crosscope_proto.training_memory import COPY, needed, streams_of
from crosscope_server.jobs.inputs import Model, bytes_of

TRAINING, ANALYSIS, WHOLE_JOB = "training", "analysis", "whole job"
"""Names of times."""
NO_WORKER = "no job worker listens now"
_MOST_DEVICES = 64
"""Most devices that are tried where nobody has said how many there are."""
_LEAST = {"training.buffer_tokens": 1, "training.batch_size": 1, "crosscoder.num_latents": 1}


@dataclass(frozen=True)
class Entry:
    """Something that a job takes (PlanEntry of the .proto); a value of None is unknown, and the note says why."""

    name: str
    value: float | None
    unit: str = ""
    note: str = ""


@dataclass(frozen=True)
class Target:
    """A device to plan for."""

    name: str
    """As the job worker calls it, or its name in the table of rates."""
    rates: Rates | None
    memory_bytes: int | None = None
    free_bytes: int | None = None
    torch_device: str = ""
    """The device in torch's words; empty for a device that no worker has said to have."""
    num_devices: int | None = None
    """Number of such devices that a worker has; None if nobody has said."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of device in torch's words that it may be: one, or both if nobody has said."""
        if self.torch_device or self.rates:
            return ("cpu" if "cpu" in (self.torch_device, self.rates and self.rates.name) else "cuda",)
        return "cpu", "cuda"


@dataclass(frozen=True)
class DevicePlan:
    """A job on one device, or on several that train together (DevicePlan of the .proto); memory is that of each."""

    name: str
    memory_bytes: int | None
    free_bytes: int | None
    memory: Sequence[Entry] = ()
    fits: bool | None = None
    """None: unknown."""
    ways_out: Sequence[str] = ()
    times: Sequence[Entry] = ()
    rates: str = ""
    """Where the rates come from; empty where none were measured on such a device."""


@dataclass(frozen=True)
class Amounts:
    """The sizes of a training that do not depend on the device; None where unknown."""

    models: Mapping[str, Model] = field(default_factory=dict)
    """The models that were found, by "base" and "chat"."""
    d_model: tuple[int, int] | None = None
    """Widths of both models."""
    tokens: int | None = None
    """Tokens that it trains on; a token counts in every epoch."""
    steps: int | None = None
    harvested_tokens: int | None = None
    """Tokens that both models read for it: those of one epoch where activations are kept, else all."""


def on_device(recipe: CrosscoderRecipe, amounts: Amounts, target: Target, speed: Speed | None) -> DevicePlan:
    """The job of a recipe on one device; `speed` is that of a training like this one on the same device."""
    memory, number = memory_of(recipe, amounts, target), devices_of(recipe, target)
    fits, ways_out = None, []
    if memory and target.memory_bytes is not None:
        fits = sum(memory.values()) <= target.memory_bytes
        ways_out = [] if fits else list(_ways_out(recipe, amounts, target))
    if "cuda" in target.kinds and number > (there := target.num_devices or number):
        fits, ways_out = False, [f"training.devices {there} is all that there are", *ways_out]
    return DevicePlan(
        name=target.name if number == 1 else f"{number} × {target.name}",
        memory_bytes=target.memory_bytes,
        free_bytes=target.free_bytes,
        memory=[Entry(part.partition(", ")[0], size, "bytes") for part, size in memory.items()],
        fits=fits,
        ways_out=ways_out,
        times=list(_times(recipe, amounts, target, speed)),
        rates=target.rates.source if target.rates else "",
    )


def devices_of(recipe: CrosscoderRecipe, target: Target) -> int:
    """Number of devices that train together; on the CPU processes, of which auto makes one."""
    wanted = recipe.training.devices
    return (target.num_devices or 1) if wanted == "auto" else wanted


def memory_of(recipe: CrosscoderRecipe, amounts: Amounts, target: Target) -> dict[str, int]:
    """Bytes without which the training cannot run, by what they are for; nothing where a model is unknown.

    They are those of each device that trains; of processes on the CPU, which share its memory, those of all. A
    checkpoint's copy is not among them: it is not taken where there is no room for it. If the kind of device is not
    known, they are those of the kind that takes more.
    """
    if amounts.d_model is None or len(amounts.models) < 2:
        return {}
    models = sum(loaded_bytes(each, recipe) for each in amounts.models.values())
    number = devices_of(recipe, target)
    parts = [needed(recipe.crosscoder, recipe.training, amounts.d_model, kind, number) for kind in target.kinds]
    most = max(parts, key=lambda each: sum(each.values()))
    times = number if target.kinds == ("cpu",) else 1
    found = {"both models": models, **{name: size for name, size in most.items() if name != COPY}}
    return {name: times * size for name, size in found.items()}


def loaded_bytes(model: Model, recipe: CrosscoderRecipe) -> int:
    """Memory of a model in the pair's data type."""
    return model.parameters * bytes_of(recipe.pair.dtype)


def _ways_out(recipe: CrosscoderRecipe, amounts: Amounts, target: Target) -> Iterator[str]:
    """What would fit: lower values, one field at a time, more such devices, and measured devices with more memory."""
    for name in _LEAST:
        value = _fitting(recipe, amounts, target, name)
        if value is not None:
            yield f"{name} {value} would fit"
    if (number := _enough(recipe, amounts, target)) is not None:
        yield f"training.devices {number} would fit"
    for device in rates.DEVICES:
        need, room = sum(memory_of(recipe, amounts, Target(device.name, device)).values()), device.memory_bytes
        if room is not None and need <= room and room > (target.memory_bytes or 0):
            yield f"it fits on {device.name} ({device.title})"


def _enough(recipe: CrosscoderRecipe, amounts: Amounts, target: Target) -> int | None:
    """The smallest number of GPUs like the target, of those that there are, on which the training fits; None if none.

    Each holds both models whole, and its share of the latents and streams.
    """
    if target.kinds != ("cuda",):
        return None
    for number in range(devices_of(recipe, target) + 1, 1 + (target.num_devices or _MOST_DEVICES)):
        try:
            wider = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, devices=number))
        except ValueError:  # More streams than tokens in a batch.
            return None
        if sum(memory_of(wider, amounts, target).values()) <= (target.memory_bytes or 0):
            return number
    return None


def _fitting(recipe: CrosscoderRecipe, amounts: Amounts, target: Target, name: str) -> int | None:
    """The largest value of a field that fits, of the field's value halved again and again; None if none does."""
    section, _, key = name.partition(".")
    part = getattr(recipe, section)
    value = getattr(part, key)
    while value > _LEAST[name]:
        value //= 2
        try:
            smaller = dataclasses.replace(recipe, **{section: dataclasses.replace(part, **{key: value})})
        except ValueError:  # For instance fewer latents than k.
            return None
        if sum(memory_of(smaller, amounts, target).values()) <= (target.memory_bytes or 0):
            return value
    return None


def token_flops(recipe: CrosscoderRecipe, models: Mapping[str, Model]) -> float | None:
    """Operations in which both models read a token up to the recipe's layer; None where a model's size is unknown."""
    layers = [each.layer_parameters for each in models.values()]
    known = [each for each in layers if each is not None]
    return 2 * sum(known) * (recipe.layer + 1) if len(known) == 2 else None


def _times(recipe: CrosscoderRecipe, amounts: Amounts, target: Target, speed: Speed | None) -> Iterator[Entry]:
    training = _training_time(recipe, amounts, target, speed)
    analysis = _analysis_time(recipe, amounts, target)
    yield training
    yield analysis
    if training.value is not None and analysis.value is not None:
        note = "training and analysis; loading, hashing and what follows the analysis are not in it"
        yield Entry(WHOLE_JOB, training.value + analysis.value, "seconds", note)
    else:
        yield Entry(WHOLE_JOB, None, "seconds", "one of its parts is not known")


def _training_time(recipe: CrosscoderRecipe, amounts: Amounts, target: Target, speed: Speed | None) -> Entry:
    if amounts.tokens is None or amounts.steps is None:
        why = "the length of the training is not known: give training.max_steps, or max_tokens of each data set"
        return Entry(TRAINING, None, "seconds", why)
    if speed is not None:
        rate = f"{speed.tokens_per_second:,.0f}".replace(",", " ")
        note = f"at {rate} tokens/s, measured on {speed.device}"
        return Entry(TRAINING, amounts.tokens / speed.tokens_per_second, "seconds", note)
    flops = token_flops(recipe, amounts.models)
    if (why := _unknown(amounts, target, flops)) or target.rates is None or flops is None or amounts.d_model is None:
        return Entry(TRAINING, None, "seconds", why)
    spec, training = recipe.crosscoder, recipe.training
    number = devices_of(recipe, target) if target.kinds == ("cuda",) else 1  # Processes on a CPU share its cores.
    num_readers = min(number, streams_of(training, number)[0])
    reading = (amounts.harvested_tokens or amounts.tokens) * target.rates.harvest_s(flops) / num_readers
    width = spec.width(*amounts.d_model)
    step = target.rates.step_s(training.dtype, training.batch_size, spec.num_latents, width) / number
    length = f"{step:.3g} s" if step >= 1 else f"{step * 1e3:.3g} ms"
    note = f"both models {reading:.0f} s, then {amounts.steps} steps of {length}; scaled from the rates"
    if number > 1:
        readers = f", of which {num_readers} read texts" if num_readers < number else ""
        note += f", divided by {number} devices{readers}; what these send each other is not in it"
    return Entry(TRAINING, reading + amounts.steps * step, "seconds", note)


def _analysis_time(recipe: CrosscoderRecipe, amounts: Amounts, target: Target) -> Entry:
    flops = token_flops(recipe, amounts.models)
    if (why := _unknown(amounts, target, flops)) or target.rates is None or flops is None or amounts.d_model is None:
        return Entry(ANALYSIS, None, "seconds", why)
    tokens, most = recipe.analysis.max_tokens, held_out_tokens(recipe, amounts)
    tokens = tokens if most is None else min(tokens, most)
    seconds = target.rates.analysis_seconds(
        tokens, flops, recipe.crosscoder.num_latents, recipe.crosscoder.width(*amounts.d_model)
    )
    left_out = "" if target.rates.analysis_latent_s is not None else ", without the tables at its end"
    return Entry(ANALYSIS, seconds, "seconds", f"{tokens} tokens{left_out}; scaled from the rates")


def held_out_tokens(recipe: CrosscoderRecipe, amounts: Amounts) -> int | None:
    """About how many tokens are held out, for files that are read whole; None where that is unknown."""
    if amounts.tokens is None or recipe.training.max_steps is not None or any(each.max_tokens for each in recipe.data):
        return None
    return int(amounts.tokens / recipe.training.epochs / (recipe.tokens.held_out_every - 1))


def _unknown(amounts: Amounts, target: Target, flops: float | None) -> str:
    """Why a time is unknown; empty if it is known."""
    if target.rates is None:
        if target.name == NO_WORKER:
            return f"{NO_WORKER}, so the device is not known"
        there = ", ".join(each.name for each in rates.DEVICES)
        return f"no rates were measured on {target.name}; plan for one of {there} to see theirs"
    if amounts.d_model is None or flops is None:
        return "the sizes of the models are not known before they are loaded"
    return ""
