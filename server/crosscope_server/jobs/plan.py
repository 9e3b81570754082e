"""Estimates what a job would take (steps, tokens, memory, disk, time), and finds settings that do not fit that.

Numbers of tokens are estimates from the beginning of each data set, four characters a token. Knows nothing about gRPC.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from crosscope_proto.footprint import SPEEDS, Speed
from crosscope_proto.job_disk import HeldOut, Measured
from crosscope_proto.label_specs import CHARACTERS_A_TOKEN
from crosscope_proto.recipe import CausalRecipe, CrosscoderRecipe, DemoPairRecipe, LabelRecipe, Recipe
from crosscope_proto.specs import DataSpec
from crosscope_proto.training_memory import checkpoint_bytes
from crosscope_server.jobs.check import Findings
from crosscope_server.jobs.disk import DiskPlan, Written, no_room_for, of_analysis, of_downloads, of_others, of_training
from crosscope_server.jobs.estimate import (
    NO_WORKER,
    Amounts,
    DevicePlan,
    Entry,
    Target,
    devices_of,
    held_out_tokens,
    loaded_bytes,
    on_device,
)
from crosscope_server.jobs.hub import Download, downloads
from crosscope_server.jobs.inputs import FirstRows
from crosscope_server.jobs.labels import most
from crosscope_server.jobs.room import demo_entries, too_little_memory

_MAX_SPEEDS_BYTES = 1 << 20


@dataclass(frozen=True)
class Planned:
    """What a job takes, as far as it is known."""

    entries: Sequence[Entry] = ()
    """Amounts that are the same on every device."""
    devices: Sequence[DevicePlan] = ()
    downloads: Sequence[Download] = ()
    disk: DiskPlan = field(default_factory=DiskPlan)
    warnings: Sequence[str] = ()
    """Settings of the training that can have no effect, and room that is missing."""


@dataclass(frozen=True)
class Length:
    """How long a training is; None where it is unknown."""

    tokens: int | None
    """Tokens that it trains on; a token counts in every epoch."""
    steps: int | None
    epoch_tokens: int | None
    """Tokens of one epoch."""
    mean_text: float | None
    """Tokens of a text on average, of the data set with the shortest ones."""
    most_tokens: float
    """Tokens of all epochs at most, as a token has at least one character; infinite where nothing says."""
    is_estimate: bool

    @property
    def about(self) -> str:
        """The word before a number that is an estimate; empty for an exact number."""
        return "about " if self.is_estimate else ""


def plan(
    recipe: Recipe, found: Findings, home: Path, targets: Sequence[Target] = (), left_bytes: int | None = None
) -> Planned:
    """What a job takes on each of the devices, as far as that follows from `found`. Loads nothing.

    `left_bytes` is what the home may still take in; None without a limit.
    """
    fetched = [] if isinstance(recipe, DemoPairRecipe | LabelRecipe | CausalRecipe) else list(downloads(recipe, home))
    if isinstance(recipe, CrosscoderRecipe):
        return _training(recipe, found, home, targets, fetched, left_bytes)
    entries, num_labels, warnings = list[Entry](), 0, list[str]()
    if isinstance(recipe, LabelRecipe):
        entries, num_labels = list(_label_entries(recipe)), most(recipe)[0]
    elif isinstance(recipe, DemoPairRecipe):
        entries, warnings = demo_entries(recipe), list(too_little_memory(recipe))
    written = [*of_downloads(fetched, home), *of_others(recipe, home, num_labels)]
    disk = DiskPlan.of(written, home, left_bytes)
    warnings += [*disk.too_little(home), *no_room_for(fetched, home)]
    return Planned(entries, downloads=fetched, disk=disk, warnings=warnings)


def _training(
    recipe: CrosscoderRecipe,
    found: Findings,
    home: Path,
    targets: Sequence[Target],
    fetched: Sequence[Download],
    left_bytes: int | None,
) -> Planned:
    length = _length(recipe, found)
    speeds = list(_speeds(recipe, home))
    amounts = _amounts(recipe, found, length)
    newest = {speed.device: speed for speed in reversed(speeds)}
    if not targets:  # No worker listens now; one has before.
        targets = [Target(device, None, torch_device=device) for device in newest] or [Target(NO_WORKER, None)]
    plans = [on_device(recipe, amounts, target, newest.get(target.torch_device)) for target in targets]
    used = [newest[each.torch_device] for each in targets if each.torch_device in newest]
    notes = [f"measured on {speed.device}: {speed.note}" for speed in used if speed.note]
    num_devices = max(devices_of(recipe, each) for each in targets)
    written = [*of_downloads(fetched, home), *_written(recipe, length, amounts, num_devices)]
    disk = DiskPlan.of(written, home, left_bytes)
    warnings = [*_oddities(recipe, length), *disk.too_little(home), *no_room_for(fetched, home), *notes]
    return Planned(list(_entries(recipe, found, length, amounts, num_devices)), plans, fetched, disk, warnings)


def _written(recipe: CrosscoderRecipe, length: Length, amounts: Amounts, num_devices: int) -> Iterator[Written]:
    """What a training and its analysis write."""
    if amounts.d_model is None:
        why = "the widths of the models are not known before they are loaded"
        yield Written("checkpoint", None, "job", why)
        yield Written("parts", None, "job", why, is_late=True)
        yield Written("version", None, "kept", why, is_late=True)
        return
    there = held_out_tokens(recipe, amounts)
    held_out = HeldOut.of(recipe.analysis, recipe.tokens, len(recipe.data), length.mean_text, there)
    measured = Measured(recipe.crosscoder, amounts.d_model, recipe.analysis, held_out)
    yield from of_training(recipe.training, measured, num_devices, length.steps, length.most_tokens)
    if recipe.training.cache:
        known = length.epoch_tokens is not None
        size = 4 * length.epoch_tokens * sum(amounts.d_model) if length.epoch_tokens is not None else None
        yield Written("cache of activations", size, "kept", "" if known else "the length of an epoch is not known")
    yield from of_analysis(measured)


def _amounts(recipe: CrosscoderRecipe, found: Findings, length: Length) -> Amounts:
    base, chat = found.models.get("base"), found.models.get("chat")
    d_model = (base.width, chat.width) if base and chat and base.width and chat.width else None
    harvested = length.tokens
    if recipe.training.cache and length.tokens is not None and length.epoch_tokens is not None:
        harvested = min(length.tokens, length.epoch_tokens)
    return Amounts(found.models, d_model, length.tokens, length.steps, harvested)


def _label_entries(recipe: LabelRecipe) -> Iterator[Entry]:
    num_latents, cost = most(recipe)
    bound = "at most; the job counts exactly before it asks"
    yield Entry("latents", num_latents, "", "" if recipe.latents.ids else "at most")
    yield Entry("requests", cost.requests, "", f"{bound}; repeated ones count against budget.requests too")
    yield Entry("prompt tokens", cost.prompt_tokens, "tokens", f"{bound}; {CHARACTERS_A_TOKEN} characters a token")
    yield Entry("answer tokens", cost.answer_tokens, "tokens", "at most")


def _length(recipe: CrosscoderRecipe, found: Findings) -> Length:
    training = recipe.training
    sets = [_train_tokens(spec, found, recipe) for spec in recipe.data]
    known = [tokens for tokens in sets if tokens is not None]
    whole = sum(known) if len(known) == len(sets) else None
    limits = [math.inf if spec.max_tokens is None else spec.max_tokens for spec in recipe.data]
    guesses = [math.inf if tokens is None else CHARACTERS_A_TOKEN * tokens for tokens in sets]
    most = training.epochs * sum(map(min, limits, guesses))
    limit = None if training.max_steps is None else training.max_steps * training.batch_size
    read = [found.rows.get(spec.name) for spec in recipe.data]
    lengths = [_mean_tokens(spec, rows, recipe.tokens.max_length) for spec, rows in zip(recipe.data, read, strict=True)]
    mean_text = min((each or 0.0 for each in lengths), default=0.0) or None
    if whole is None:
        return Length(limit, training.max_steps, None, mean_text, most, False)
    tokens = whole * training.epochs
    if limit is not None and limit <= tokens:
        return Length(limit, training.max_steps, whole, mean_text, most, False)
    guessed = any(spec.name in found.rows and found.rows[spec.name].first for spec in recipe.data)
    return Length(tokens, math.ceil(tokens / training.batch_size), whole, mean_text, most, guessed)


def _train_tokens(spec: DataSpec, found: Findings, recipe: CrosscoderRecipe) -> int | None:
    """About how many tokens of a data set one epoch trains on; None if nothing says."""
    tokens = None
    if (rows := found.rows.get(spec.name)) is not None and rows.first:
        mean = _mean_tokens(spec, rows, recipe.tokens.max_length)
        tokens = _whole_tokens(mean or 0.0, rows, found.files[spec.name])
        tokens = int(tokens * (1 - 1 / recipe.tokens.held_out_every))
    if spec.max_tokens is not None:
        return spec.max_tokens if tokens is None else min(tokens, spec.max_tokens)
    return tokens


def _mean_tokens(spec: DataSpec, rows: FirstRows | None, max_length: int) -> float | None:
    """About how many tokens a text of a data set has; None if nothing says."""
    if rows is None or not rows.first:
        return None
    lengths = [min(max_length, _characters(spec, row) / CHARACTERS_A_TOKEN + 1) for row in rows.first]
    return sum(lengths) / len(lengths)


def _whole_tokens(mean: float, rows: FirstRows, files: list[Path]) -> float:
    if rows.num_rows is not None:
        size = files[0].stat().st_size or 1
        return mean * rows.num_rows * sum(file.stat().st_size for file in files) / size
    return mean * sum(file.stat().st_size for file in files) * len(rows.first) / max(rows.num_read_bytes, 1)


def _characters(spec: DataSpec, row: object) -> int:
    """Number of characters of all texts in a row's column."""
    value = row.get(spec.chat_column or spec.text_column or "text") if isinstance(row, dict) else row
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(_characters(spec, each) for each in map(_wrapped, value.values()))
    return sum(_characters(spec, _wrapped(each)) for each in value) if isinstance(value, list) else 0


def _wrapped(value: object) -> object:
    """An inner value of a row, as a list if it is a mapping: only the row itself is looked up by column."""
    return list(value.values()) if isinstance(value, dict) else value


def _entries(
    recipe: CrosscoderRecipe, found: Findings, length: Length, amounts: Amounts, num_devices: int
) -> Iterator[Entry]:
    training = recipe.training
    limit = "at most, by max_tokens" if training.max_steps is None else ""
    guess = f"estimated at {CHARACTERS_A_TOKEN} characters a token" if length.is_estimate else limit
    if length.tokens is None or length.steps is None:
        yield Entry("training tokens", None, "tokens", "give training.max_steps, or max_tokens of each data set")
    else:
        epochs = f"{training.epochs} epochs" if training.epochs > 1 else ""
        yield Entry("training tokens", length.tokens, "tokens", ", ".join(filter(None, (epochs, guess))))
        yield Entry("steps", length.steps, "", f"of {training.batch_size} tokens")
        if training.warmup_steps:
            yield Entry("warm-up", min(1.0, training.warmup_steps / length.steps), "share", "of the steps")
    base, chat = found.models.get("base"), found.models.get("chat")
    if base and chat:
        yield Entry("models", sum(loaded_bytes(each, recipe) for each in (base, chat)), "bytes", "memory of both")
    if amounts.d_model is not None:
        size = checkpoint_bytes(recipe.crosscoder, training, amounts.d_model, num_devices)
        yield Entry("copy of a checkpoint", size, "bytes", "memory, if there is room; else training waits for the disk")


def _speeds(recipe: CrosscoderRecipe, home: Path) -> Iterator[Speed]:
    """The measured speeds of trainings like this one, the newest first."""
    try:
        with (home / SPEEDS).open(encoding="utf-8") as file:
            lines = file.read(_MAX_SPEEDS_BYTES).splitlines()
    except (OSError, UnicodeDecodeError):
        return
    names = {each.name for each in fields(Speed)}
    for line in reversed(lines):
        try:
            speed = Speed(**{name: value for name, value in json.loads(line).items() if name in names})
            if speed.is_of(recipe) and speed.tokens_per_second > 0:
                yield speed
        except (ValueError, TypeError, AttributeError):
            continue  # A line that another version wrote, or that was cut short.


def _read_in_vain(recipe: CrosscoderRecipe) -> Iterator[str]:
    """A sentence for each data set of the hub of which streams may read what is others'; the job says what is so."""
    training = recipe.training
    streams = training.streams or (1 if training.devices == "auto" else training.devices)
    for spec in recipe.data if streams > 1 else ():
        if spec.source == "hub":
            yield (
                f"data set {spec.name!r} is read in {streams} streams: each reads its own files if they are Parquet "
                f"and at least {streams}; else each reads all of it, and {(streams - 1) / streams:.0%} of that in vain"
            )


def _oddities(recipe: CrosscoderRecipe, length: Length) -> Iterator[str]:
    """Sentences about settings of a training that can have no effect."""
    training, spec, steps, tokens = recipe.training, recipe.crosscoder, length.steps, length.tokens
    devices, streams = training.devices, training.streams
    if streams is not None and devices != "auto" and devices > streams:
        yield (
            f"training.devices {devices}: {devices - streams} of them read no texts, as there are training.streams "
            f"{streams}, and only help with latents"
        )
    yield from _read_in_vain(recipe)
    if steps is None or tokens is None:
        yield "the length of the training is not known: give training.max_steps, or max_tokens of each data set"
        return
    ends = f"training ends after {length.about}{steps} steps"
    if training.max_steps is not None and steps < training.max_steps:
        yield f"{ends}, because the texts end before training.max_steps {training.max_steps}"
    if training.warmup_steps >= steps:
        yield f"training.warmup_steps {training.warmup_steps}: the learning rate never reaches training.lr, {ends}"
    elif training.warmup_steps / steps + training.decay_share > 1:
        yield (
            f"training.warmup_steps {training.warmup_steps} and training.decay_share {training.decay_share:g} overlap: "
            f"the learning rate never reaches training.lr, {ends}"
        )
    if training.sparsity_warmup_steps >= steps:
        warmup = f"training.sparsity_warmup_steps {training.sparsity_warmup_steps}"
        yield f"{warmup}: {spec.anneals} never reaches its value, {ends}"
    if spec.revives and training.aux_weight and training.dead_after_tokens >= tokens:
        yield (
            f"training.dead_after_tokens {training.dead_after_tokens}: no latent can be found dead and revived, the "
            f"training has {length.about}{tokens} tokens"
        )
    if training.log_every > steps:
        yield f"training.log_every {training.log_every}: there will be no curves, {ends}"
