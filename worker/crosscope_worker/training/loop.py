"""The training loop: batches from the shuffle buffers, one step each, checkpoints and curves; on one rank or several.

Only `Trainer.step` changes weights, counters and thresholds; figures come from what a step has computed anyway. Knows
nothing about models or texts: activations come from ActivationSources, one a stream.
"""

import math
import time
import uuid
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crosscope_proto.dictionaries import DictionarySpec
from crosscope_proto.recipe import CrosscoderRecipe, recipe_dict
from crosscope_proto.roles import MODEL_NAMES
from crosscope_proto.specs import TrainingSpec
from crosscope_proto.stages import Stage
from crosscope_worker.data.activation_source import ActivationSource
from crosscope_worker.dictionary.crosscoder import Crosscoder
from crosscope_worker.ranks import ALONE, Ranks, parts
from crosscope_worker.training import memory
from crosscope_worker.training.batches import Batch, Batches
from crosscope_worker.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    Group,
    Saved,
    load_checkpoint,
    remove_partial,
)
from crosscope_worker.training.checkpoint_writer import CheckpointWriter
from crosscope_worker.training.errors import TrainingError
from crosscope_worker.training.objective import Step
from crosscope_worker.training.start import geometric_median, input_scales
from crosscope_worker.training.trainer import Counters, Trainer
from crosscope_worker.work import Progress, Stopped, is_out_of_memory


@dataclass(frozen=True)
class TrainingResult:
    """A trained crosscoder, and the course of its training."""

    crosscoder: Crosscoder
    curves: list[tuple[int, str, float]]
    """(step, name, value)."""
    tokens: int
    """Tokens trained on, each epoch counted."""
    steps: int
    sources: Sequence[dict[str, Any]] = ()
    """The states of the activations' sources at the end, one a stream."""
    figures: dict[str, float] = field(default_factory=dict)
    """Thresholds of dictionaries that calibrate: threshold, the calibrated one; threshold_running, the average over
    batches. Each threshold after the first has its number in its name. calibration_tokens is the size of the sample."""


def learning_rate(training: TrainingSpec, step: int, fraction: float) -> float:
    """The learning rate: a linear warm-up, a constant part, then a linear or cosine decay to zero over the last
    `decay_share` of training.
    """
    rise = min(1.0, (step + 1) / training.warmup_steps) if training.warmup_steps else 1.0
    fall = min(1.0, (1 - fraction) / training.decay_share) if training.decay_share else 1.0
    fall = max(fall, 0.0)
    if training.decay == "cosine":
        fall = 0.5 * (1 - math.cos(math.pi * fall))
    return training.lr * rise * fall


def train(
    recipe: CrosscoderRecipe,
    sources: Sequence[ActivationSource],
    d_model: tuple[int, int],
    folder: Path,
    progress: Progress,
    device: torch.device | str = "cpu",
) -> TrainingResult:
    """Trains a crosscoder, from the newest checkpoint below `folder` if there is one; the last checkpoint holds the
    end. `sources`: one a stream (`num_streams`).

    Raises TrainingError, also if memory runs out, CheckpointError, OSError (a full disk), and whatever `progress` and
    the sources raise.
    """
    trainer = train_together(recipe, sources, d_model, folder, progress, device)
    return _result(trainer, [source.state() for source in sources])


def train_together(
    recipe: CrosscoderRecipe,
    sources: Sequence[ActivationSource],
    d_model: tuple[int, int],
    folder: Path,
    progress: Progress,
    device: torch.device | str = "cpu",
    ranks: Ranks = ALONE,
) -> Trainer:
    """`train` on several ranks, each of which calls this with the sources of its share of the streams.

    Gives the trainer of this rank's latents. The whole result is in the last checkpoint (`saved_result`). If `progress`
    raises Stopped on one rank, all stop at the same step.
    """
    with _told(recipe, d_model, torch.device(device), ranks):
        return _train(recipe, sources, d_model, folder, progress, torch.device(device), ranks)


@contextmanager
def _told(recipe: CrosscoderRecipe, d_model: tuple[int, int], device: torch.device, ranks: Ranks) -> Generator[None]:
    """Tells of an error at once (`Ranks.tell`). One of memory that ran out becomes a TrainingError."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, RuntimeError | MemoryError) or not is_out_of_memory(error):
            ranks.tell(error)
            raise
        needed = memory.needed(recipe.crosscoder, recipe.training, d_model, device.type, ranks.size)
        said = TrainingError(memory.ran_out(needed, memory.values_of(recipe.crosscoder, recipe.training)))
        ranks.tell(said)
        raise said from error


def num_streams(recipe: CrosscoderRecipe, folder: Path, num_devices: int) -> int:
    """Number of streams of a training: the checkpoint's below `folder`, the recipe's, or the number of devices.

    Raises CheckpointError, and TrainingError if a batch has fewer tokens than there are streams.
    """
    if (saved := load_checkpoint(folder, recipe_dict(recipe))) is not None:
        return saved.num_streams
    found, batch_size = recipe.training.streams or num_devices, recipe.training.batch_size
    if found > batch_size:
        raise TrainingError(
            f"there are {found} devices, and a batch of {batch_size} tokens cannot take one of a stream for each; give "
            "training.streams, or raise training.batch_size"
        )
    return found


def saved_result(recipe: CrosscoderRecipe, d_model: tuple[int, int], folder: Path) -> TrainingResult | None:
    """The result in the newest checkpoint below `folder`, on the CPU; None without one. Raises CheckpointError."""
    if (saved := load_checkpoint(folder, recipe_dict(recipe))) is None:
        return None
    trainer = Trainer(recipe.crosscoder, recipe.training, d_model)
    trainer.restore(saved.tensors(trainer.per_latent(), trainer.latents), saved.counters)
    return _result(trainer, saved.sources())


def _result(trainer: Trainer, sources: Sequence[dict[str, Any]]) -> TrainingResult:
    """The current crosscoder with calibrated thresholds."""
    counters, figures = trainer.counters, {}
    crosscoder, sample = trainer.crosscoder(), trainer.sample.tokens()
    if trainer.spec.calibrates and len(sample):
        calibrated = trainer.variant.thresholds(crosscoder, sample)
        figures = {"calibration_tokens": float(len(sample))}
        figures |= _numbered("threshold", calibrated) | _numbered("threshold_running", trainer.running_thresholds())
        crosscoder = trainer.crosscoder(calibrated)
    return TrainingResult(crosscoder, counters.curves, counters.tokens, counters.step, sources, figures)


def _numbered(name: str, values: Iterable[float]) -> dict[str, float]:
    """A figure for each budget; the first has the plain name, the others have a number behind it."""
    return {f"{name}_{index}" if index else name: value for index, value in enumerate(values)}


def _train(
    recipe: CrosscoderRecipe,
    sources: Sequence[ActivationSource],
    d_model: tuple[int, int],
    folder: Path,
    progress: Progress,
    device: torch.device,
    ranks: Ranks,
) -> Trainer:
    training = recipe.training
    _check_memory(recipe.crosscoder, training, d_model, device, ranks)
    trainer = Trainer(recipe.crosscoder, training, d_model, device, ranks)
    if ranks.rank == 0:
        remove_partial(folder)
    start = ranks.everyone(uuid.uuid4().hex)[0] if ranks.size > 1 else ""
    saved = load_checkpoint(folder, recipe_dict(recipe))

    def say(message: str) -> None:
        fraction = _fraction(training, trainer.counters, batches.last)
        progress(Stage.TRAIN, fraction, message, step=trainer.counters.step)

    with Batches(sources, training, ranks, device, sum(d_model)) as batches:
        group = Group(parts(recipe.crosscoder.num_latents, ranks.size), ranks.rank, batches.num_streams, start)
        with CheckpointWriter(folder, say, group) as checkpoints, _told(recipe, d_model, device, ranks):
            if saved is not None:
                _restore(trainer, batches, saved)
            else:
                _start(trainer, batches, training, d_model, ranks)
            del saved  # Its tensors would take memory until the end of the training.
            _steps(recipe, trainer, batches, checkpoints, progress, ranks)
            if trainer.counters.step % training.checkpoint_every:
                checkpoints.save(_state(recipe, trainer, batches))  # Later stages can fail and be retried from here.
    if trainer.counters.step == 0:
        raise TrainingError("the token policy leaves no token to train on; check data and tokens in the recipe")
    return trainer


def _restore(trainer: Trainer, batches: Batches, saved: Saved) -> None:
    if saved.num_streams != batches.num_streams:
        raise CheckpointError(
            f"{saved.folder} has {saved.num_streams} streams of texts and training.streams says {batches.num_streams}; "
            "give the job another name or remove the folder"
        )
    trainer.restore(saved.tensors(trainer.per_latent(), trainer.latents), saved.counters)
    batches.restore(saved.stream)


def _steps(
    recipe: CrosscoderRecipe,
    trainer: Trainer,
    batches: Batches,
    checkpoints: CheckpointWriter,
    progress: Progress,
    ranks: Ranks,
) -> None:
    training, counters = recipe.training, trainer.counters
    clock, tokens_before = time.monotonic(), counters.tokens
    stop: Stopped | None = None
    while counters.step != training.max_steps and (batch := batches.next(stop is not None)) is not None:
        fraction = _fraction(training, counters, batch)
        if recipe.crosscoder.calibrates:
            trainer.sample.add(counters.tokens, batch.tokens)
        x = trainer.inputs(batch.tokens)
        outcome = trainer.step(x, learning_rate(training, counters.step, fraction))
        metrics: dict[str, float] = {}
        bins: list[int] = []
        if counters.step % training.log_every == 0:
            rate = (counters.tokens - tokens_before) / max(time.monotonic() - clock, 1e-9)
            metrics = batch_figures(trainer, outcome, x) | {"tokens_per_second": rate}
            counters.curves += [(counters.step, name, value) for name, value in metrics.items()]
            if trainer.variant.streams.compares_rows:
                bins = trainer.relative_norm_bins()
        saves = counters.step % training.checkpoint_every == 0
        try:
            progress(Stage.TRAIN, fraction, step=counters.step, metrics=metrics, rel_norms=bins)
            if saves:
                progress(Stage.TRAIN, fraction, f"writing the checkpoint of step {counters.step}", step=counters.step)
        except Stopped as error:
            if ranks.size == 1:
                raise
            stop = error  # The others hear of it before their next step.
        if saves and stop is None:
            checkpoints.save(_state(recipe, trainer, batches))
        checkpoints.check()


def _check_memory(
    spec: DictionarySpec, training: TrainingSpec, d_model: tuple[int, int], device: torch.device, ranks: Ranks
) -> None:
    free = memory.free_bytes(device)
    if device.type == "cpu":
        free //= ranks.size  # They share the machine's.
    needed = memory.needed(spec, training, d_model, device.type, ranks.size)
    if sentence := memory.shortage(needed, memory.values_of(spec, training), free, ranks.size):
        raise TrainingError(sentence)


def _start(trainer: Trainer, batches: Batches, training: TrainingSpec, d_model: tuple[int, int], ranks: Ranks) -> None:
    held = batches.first()
    first = [tokens[0].cpu() for tokens in held if len(tokens)]
    lengths = ranks.everyone(([len(tokens) for tokens in held], first[:1]))
    number = sum(sum(each) for each, _ in lengths)
    if number == 0:
        return
    one = next(rows[0] for _, rows in lengths if rows)
    _check_not_constant([tokens for tokens in held if len(tokens)], one, number, d_model, ranks)
    streams = trainer.variant.streams
    if streams.can_vanish or training.normalise_inputs:  # a part that vanishes is refused in both cases
        scales = input_scales(streams, held, d_model, ranks)
        if training.normalise_inputs:
            trainer.counters.input_scale = scales
    if trainer.variant.centres_bias:
        x = trainer.inputs(batches.sample(held))
        medians = [geometric_median(part) for part in x.split(trainer.variant.widths, dim=1)]
        trainer.weights.b_dec.copy_(torch.cat(medians))


def _check_not_constant(
    held: Sequence[Tensor], one: Tensor, number: int, d_model: tuple[int, int], ranks: Ranks
) -> None:
    """Raises TrainingError if a model's activations are those of `one` token in all `number` tokens of all streams."""
    same = [
        all(bool((tokens.split(d_model, dim=1)[model] == each.to(tokens.device)).all()) for tokens in held)
        for model, each in enumerate(one.split(d_model))
    ]
    for name, everywhere in zip(MODEL_NAMES, zip(*ranks.everyone(same), strict=True), strict=True):
        if number > 1 and all(everywhere):
            raise TrainingError(
                f"the {name} model's activations are the same on all of the first {number} tokens; "
                "check the layer and the model's weights"
            )


def _fraction(training: TrainingSpec, counters: Counters, batch: Batch) -> float:
    """Share of the training that is done before a batch's step."""
    by_steps = counters.step / training.max_steps if training.max_steps else 0.0
    return max(by_steps, batch.read * counters.tokens / (counters.tokens + batch.waiting))


def batch_figures(trainer: Trainer, outcome: Step, x: Tensor) -> dict[str, float]:
    """Figures of one batch: loss, FVE of each part, L0, dead share, thresholds (math §7); the same on every rank."""
    total = [float((p - p.mean(0)).square().sum(dtype=torch.float64)) for p in x.split(trainer.variant.widths, dim=1)]
    fve = [1 - e / t if t else float("nan") for e, t in zip(outcome.squared_error, total, strict=True)]
    return {
        "loss": outcome.loss,
        **{f"fve_{name}": value for (_, name), value in zip(trainer.variant.streams.figures, fve, strict=True)},
        "l0": outcome.num_active / len(x),
        "dead_share": trainer.dead_share(),
        **_numbered("threshold", trainer.counters.thresholds),
    }


def _state(recipe: CrosscoderRecipe, trainer: Trainer, batches: Batches) -> Checkpoint:
    """The state between two steps, as far as this rank holds it; its tensors are the training's own."""
    return Checkpoint(
        trainer.counters.step,
        trainer.tensors(),
        recipe_dict(recipe),
        asdict(trainer.counters),
        batches.states(),
        trainer.per_latent(),
    )
