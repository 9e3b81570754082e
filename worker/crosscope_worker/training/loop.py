"""The training loop: batches from the shuffle buffer, one step each, checkpoints and curves.

Only `Trainer.step` changes weights, counters and thresholds; figures come from what a step has computed anyway. Knows
nothing about models or texts: activations come from an ActivationSource.
"""

import math
import time
from collections.abc import Iterable
from contextlib import closing
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
from crosscope_worker.training import memory
from crosscope_worker.training.buffer import ShuffleBuffer
from crosscope_worker.training.checkpoint import Checkpoint, load_checkpoint
from crosscope_worker.training.checkpoint_writer import CheckpointWriter
from crosscope_worker.training.errors import TrainingError
from crosscope_worker.training.objective import Step
from crosscope_worker.training.start import geometric_median, input_scales
from crosscope_worker.training.trainer import Counters, Trainer
from crosscope_worker.work import Progress, is_out_of_memory

_BUFFER = "buffer."
"""Prefix of the buffer's tensors in a checkpoint."""


@dataclass(frozen=True)
class TrainingResult:
    """A trained crosscoder, and the course of its training."""

    crosscoder: Crosscoder
    curves: list[tuple[int, str, float]]
    """(step, name, value)."""
    tokens: int
    """Tokens trained on, each epoch counted."""
    steps: int
    source: dict[str, Any] = field(default_factory=dict)
    """The state of the activations' source at the end."""
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
    source: ActivationSource,
    d_model: tuple[int, int],
    folder: Path,
    progress: Progress,
    device: torch.device | str = "cpu",
) -> TrainingResult:
    """Trains a crosscoder, from the newest checkpoint below `folder` if there is one; the last checkpoint holds the
    end.

    Raises TrainingError, also if memory runs out, CheckpointError, OSError (a full disk), and whatever `progress` and
    the source raise.
    """
    try:
        return _train(recipe, source, d_model, folder, progress, device)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        parts = memory.needed(recipe.crosscoder, recipe.training, d_model, torch.device(device).type)
        values = memory.values_of(recipe.crosscoder, recipe.training)
        raise TrainingError(memory.ran_out(parts, values)) from error


def saved_result(recipe: CrosscoderRecipe, d_model: tuple[int, int], folder: Path) -> TrainingResult | None:
    """The result in the newest checkpoint below `folder`, on the CPU; None without one. Raises CheckpointError."""
    if (checkpoint := load_checkpoint(folder, recipe_dict(recipe))) is None:
        return None
    trainer = Trainer(recipe.crosscoder, recipe.training, d_model)
    trainer.restore(checkpoint.tensors, checkpoint.counters)
    return _result(trainer, checkpoint.source)


def _result(trainer: Trainer, source: dict[str, Any]) -> TrainingResult:
    """The current crosscoder with calibrated thresholds."""
    counters, figures = trainer.counters, {}
    crosscoder, sample = trainer.crosscoder(), trainer.sample.tokens()
    if trainer.spec.calibrates and len(sample):
        calibrated = trainer.variant.thresholds(crosscoder, sample)
        figures = {"calibration_tokens": float(len(sample))}
        figures |= _numbered("threshold", calibrated) | _numbered("threshold_running", trainer.running_thresholds())
        crosscoder = trainer.crosscoder(calibrated)
    return TrainingResult(crosscoder, counters.curves, counters.tokens, counters.step, source, figures)


def _numbered(name: str, values: Iterable[float]) -> dict[str, float]:
    """A figure for each budget; the first has the plain name, the others have a number behind it."""
    return {f"{name}_{index}" if index else name: value for index, value in enumerate(values)}


def _train(
    recipe: CrosscoderRecipe,
    source: ActivationSource,
    d_model: tuple[int, int],
    folder: Path,
    progress: Progress,
    device: torch.device | str,
) -> TrainingResult:
    training = recipe.training
    _check_memory(recipe.crosscoder, training, d_model, torch.device(device))
    trainer = Trainer(recipe.crosscoder, training, d_model, device)
    checkpoint = load_checkpoint(folder, recipe_dict(recipe))
    if checkpoint is not None:
        source.restore(checkpoint.source)
        trainer.restore(checkpoint.tensors, checkpoint.counters)

    def say(message: str) -> None:
        fraction = _fraction(training, trainer.counters, source, buffer.num_waiting)
        progress(Stage.TRAIN, fraction, message, step=trainer.counters.step)

    with closing(source.blocks()) as blocks, CheckpointWriter(folder, say) as checkpoints:
        buffer = ShuffleBuffer(blocks, training.buffer_tokens, training.batch_size, training.seed)
        if checkpoint is not None:
            buffer.restore(_of_buffer(checkpoint.tensors), device)
        else:
            _start(trainer, buffer.fill(), training, d_model)
        del checkpoint  # Its tensors would take memory until the end of the training.
        _steps(recipe, trainer, buffer, source, checkpoints, progress)
        if trainer.counters.step % training.checkpoint_every:
            checkpoints.save(_state(recipe, trainer, buffer, source))  # Later stages can fail and be retried from here.
    if trainer.counters.step == 0:
        raise TrainingError("the token policy leaves no token to train on; check data and tokens in the recipe")
    return _result(trainer, source.state())


def _steps(
    recipe: CrosscoderRecipe,
    trainer: Trainer,
    buffer: ShuffleBuffer,
    source: ActivationSource,
    checkpoints: CheckpointWriter,
    progress: Progress,
) -> None:
    training = recipe.training
    clock, tokens_before = time.monotonic(), trainer.counters.tokens
    batches, counters = iter(buffer), trainer.counters
    while counters.step != training.max_steps and (tokens := next(batches, None)) is not None:
        fraction = _fraction(training, counters, source, buffer.num_waiting + len(tokens))
        if recipe.crosscoder.calibrates:
            trainer.sample.add(counters.tokens, tokens)
        x = trainer.inputs(tokens)
        outcome = trainer.step(x, learning_rate(training, counters.step, fraction))
        metrics: dict[str, float] = {}
        bins: list[int] = []
        if counters.step % training.log_every == 0:
            rate = (counters.tokens - tokens_before) / max(time.monotonic() - clock, 1e-9)
            metrics = batch_figures(trainer, outcome, x) | {"tokens_per_second": rate}
            counters.curves += [(counters.step, name, value) for name, value in metrics.items()]
            if trainer.variant.streams.compares_rows:
                bins = trainer.relative_norm_bins()
        progress(Stage.TRAIN, fraction, step=counters.step, metrics=metrics, rel_norms=bins)
        if counters.step % training.checkpoint_every == 0:
            progress(Stage.TRAIN, fraction, f"writing the checkpoint of step {counters.step}", step=counters.step)
            checkpoints.save(_state(recipe, trainer, buffer, source))
        checkpoints.check()


def _check_memory(spec: DictionarySpec, training: TrainingSpec, d_model: tuple[int, int], device: torch.device) -> None:
    free = memory.free_bytes(device)
    parts = memory.needed(spec, training, d_model, device.type)
    if sentence := memory.shortage(parts, memory.values_of(spec, training), free):
        raise TrainingError(sentence)


def _start(trainer: Trainer, tokens: Tensor, training: TrainingSpec, d_model: tuple[int, int]) -> None:
    if len(tokens) == 0:
        return
    for name, part in zip(MODEL_NAMES, tokens.split(d_model, dim=1), strict=True):
        if len(part) > 1 and bool((part == part[0]).all()):
            raise TrainingError(
                f"the {name} model's activations are the same on all of the first {len(part)} tokens; "
                "check the layer and the model's weights"
            )
    streams = trainer.variant.streams
    if streams.can_vanish or training.normalise_inputs:  # a part that vanishes is refused in both cases
        scales = input_scales(streams, tokens, d_model)
        if training.normalise_inputs:
            trainer.counters.input_scale = scales
    if trainer.variant.centres_bias:
        x = trainer.inputs(tokens[: training.batch_size])
        parts = [geometric_median(part) for part in x.split(trainer.variant.widths, dim=1)]
        trainer.weights.b_dec.copy_(torch.cat(parts))


def _fraction(training: TrainingSpec, counters: Counters, source: ActivationSource, num_waiting: int) -> float:
    """Share of the training that is done; `num_waiting` tokens were read from the source and are not yet trained on."""
    by_steps = counters.step / training.max_steps if training.max_steps else 0.0
    return max(by_steps, source.fraction() * counters.tokens / (counters.tokens + num_waiting))


def batch_figures(trainer: Trainer, outcome: Step, x: Tensor) -> dict[str, float]:
    """Figures of one batch: loss, FVE of each part, L0, dead share, thresholds (math §7)."""
    total = [float((p - p.mean(0)).square().sum(dtype=torch.float64)) for p in x.split(trainer.variant.widths, dim=1)]
    fve = [1 - e / t if t else float("nan") for e, t in zip(outcome.squared_error, total, strict=True)]
    return {
        "loss": outcome.loss,
        **{f"fve_{name}": value for (_, name), value in zip(trainer.variant.streams.figures, fve, strict=True)},
        "l0": outcome.num_active / len(x),
        "dead_share": trainer.dead_share(),
        **_numbered("threshold", trainer.counters.thresholds),
    }


def _of_buffer(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(_BUFFER): tensor for name, tensor in tensors.items() if name.startswith(_BUFFER)}


def _state(recipe: CrosscoderRecipe, trainer: Trainer, buffer: ShuffleBuffer, source: ActivationSource) -> Checkpoint:
    """The whole state between two steps; its tensors are the training's own."""
    tensors = trainer.tensors() | {f"{_BUFFER}{name}": tensor for name, tensor in buffer.state().items()}
    return Checkpoint(trainer.counters.step, tensors, recipe_dict(recipe), asdict(trainer.counters), source.state())
