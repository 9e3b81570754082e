"""The training loop: batches from the shuffle buffer, one step each, checkpoints and curves.

Only `Trainer.step` changes weights, counters and the threshold; measuring reads what a step has computed anyway.
Knows nothing about models or texts: activations come from an ActivationSource.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from crosscope_proto.recipe import CrosscoderRecipe, CrosscoderSpec, TrainingSpec, recipe_dict
from crosscope_proto.roles import BASE, CHAT, MODEL_NAMES
from crosscope_worker.crosscoder import DIFFERENCE, Crosscoder, scale_inputs
from crosscope_worker.training import memory
from crosscope_worker.training.active_code import Weights
from crosscope_worker.training.buffer import ShuffleBuffer
from crosscope_worker.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from crosscope_worker.training.objective import Step, compute_step
from crosscope_worker.training.variants import (
    Widths,
    absent_weights,
    at_step,
    budgets,
    first_weights,
    needs_equal_widths,
    widths,
)
from crosscope_worker.work import Progress

STAGE = "train"
INITIAL_ROW_NORM = 0.4
"""Norm of each model's half of a decoder row at the start."""
THRESHOLD_MEMORY = 0.999
"""Decay of the moving average that becomes the inference threshold (math §2)."""
FLOOR_SHARE = 0.8
"""The guess at a batch's smallest kept activation, as a share of the last one."""


class TrainingError(ValueError):
    """A training that cannot go on; the message says why and what to change."""


class ActivationSource(Protocol):
    """A stream of activations that can be continued where it stood."""

    num_epochs: int
    """Passes that it will make."""

    def blocks(self) -> Iterator[Tensor]:
        """Yields `[token, both]` float32; call once."""
        ...

    def fraction(self) -> float:
        """Share of all passes that has been read, 0 to 1; an estimate where the length is unknown."""
        ...

    def state(self) -> dict[str, Any]:
        """Plain values that say where the stream stands."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state; called before `blocks`."""
        ...


@dataclass(frozen=True)
class TrainingResult:
    """A trained crosscoder and how training went."""

    crosscoder: Crosscoder
    curves: list[tuple[int, str, float]]
    """(step, name, value)."""
    tokens: int
    """Tokens trained on, each epoch counted."""
    steps: int


@dataclass
class Counters:
    """What a training remembers besides its weights."""

    step: int = 0
    tokens: int = 0
    thresholds: list[float] = field(default_factory=list)
    """Moving average of the smallest kept scaled activation, of each budget."""
    threshold_updates: int = 0
    last_smallest: tuple[float, ...] = ()
    input_scale: tuple[float, float] = (1.0, 1.0)
    curves: list[tuple[int, str, float]] = field(default_factory=list)


class Trainer:
    """Weights, optimiser and counters of one training."""

    def __init__(
        self,
        spec: CrosscoderSpec,
        training: TrainingSpec,
        d_model: tuple[int, int],
        device: torch.device | str = "cpu",
    ) -> None:
        """Raises TrainingError where the recipe needs models of equal width and these are not."""
        if (what := needs_equal_widths(spec)) and d_model[BASE] != d_model[CHAT]:
            raise TrainingError(f"{what} needs models of equal width; these have {d_model[BASE]} and {d_model[CHAT]}")
        self.spec = spec
        self.training = training
        self.d_model = d_model
        self.widths = widths(spec, d_model)
        self.counters = Counters()
        self.weights = initial_weights(spec, self.widths, training.seed, device)
        self.since_fired = torch.zeros(spec.num_latents, dtype=torch.int64, device=device)
        self.optimiser = torch.optim.Adam(self.weights, lr=training.lr, fused=True)

    def step(self, x: Tensor, lr: float) -> Step:
        """Trains on `x: [batch, both]`, from `inputs`; returns what the batch said before the update.

        Raises TrainingError if the loss is no longer finite.
        """
        counters = self.counters
        outcome = compute_step(
            self.weights,
            x,
            at_step(self.spec, self.training, counters.step),
            self.widths,
            dead=self.since_fired >= self.training.dead_after_tokens,
            aux_weight=self.training.aux_weight if self.spec.k is not None else 0.0,
            floors=[FLOOR_SHARE * smallest for smallest in counters.last_smallest],
            dtype=getattr(torch, self.training.dtype),
        )
        if not torch.isfinite(torch.tensor(outcome.loss)):
            raise TrainingError(f"the loss is {outcome.loss} at step {counters.step}; try training.lr below {lr:g}")
        self._update(outcome.gradients, lr)
        self.since_fired += len(x)
        self.since_fired[outcome.fired] = 0
        counters.last_smallest = outcome.smallest_kept
        if counters.step >= max(self.training.warmup_steps, self.training.sparsity_warmup_steps):
            self._update_thresholds(outcome.smallest_kept)
        counters.step += 1
        counters.tokens += len(x)
        return outcome

    def _update(self, gradients: Weights, lr: float) -> None:
        if (limit := self.training.max_grad_norm) is not None:
            norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
            # The fused optimiser divides as it reads: clipping costs no pass of its own.
            self.optimiser.grad_scale = (norm / limit).clamp_min_(1.0)  # pyright: ignore[reportAttributeAccessIssue]
        for weight, gradient in zip(self.weights, gradients, strict=True):
            weight.grad = gradient
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self.optimiser.step()

    def _update_thresholds(self, smallest: tuple[float, ...]) -> None:
        # A plain mean until the average has seen enough for its memory, so that short runs have no start to forget.
        counters = self.counters
        counters.threshold_updates += 1
        memory = min(THRESHOLD_MEMORY, 1 - 1 / counters.threshold_updates)
        before = counters.thresholds or [0.0] * len(smallest)
        counters.thresholds = [memory * old + (1 - memory) * new for old, new in zip(before, smallest, strict=True)]

    def inputs(self, tokens: Tensor) -> Tensor:
        """`tokens: [batch, both]` as the models gave them, to what the dictionary reads and reconstructs."""
        x = scale_inputs(tokens, self.d_model, self.counters.input_scale)
        return x if self.spec.variant != DIFFERENCE else x[:, self.d_model[BASE] :] - x[:, : self.d_model[BASE]]

    def crosscoder(self) -> Crosscoder:
        """The crosscoder as it stands; shares memory with the weights where it can."""
        encoder, b_enc, decoder, b_dec = (weight.detach() for weight in self.weights)
        if self.spec.variant == DIFFERENCE:
            encoder = torch.cat([-encoder, encoder], 1)
            decoder, b_dec = (torch.cat([torch.zeros_like(each), each], -1) for each in (decoder, b_dec))
        return Crosscoder(
            W_enc=encoder.T,
            b_enc=b_enc,
            W_dec=decoder,
            b_dec=b_dec,
            d_model=self.d_model,
            variant=self.spec.variant,
            code_normalisation=self.spec.code_normalisation,
            input_scale=self.counters.input_scale,
            **self._thresholds(),
        )

    def _thresholds(self) -> dict[str, Any]:
        """The averages; the last batch's values where training has ended before the averages began."""
        counters, shares = self.counters, budgets(self.spec)
        values = counters.thresholds or counters.last_smallest or (0.0,) * len(shares)
        like = self.weights.b_enc.detach()
        if len(shares) < 2:
            return {"threshold": next(iter(values), None), "model_thresholds": None}
        if shares[0].model is not None:
            return {"model_thresholds": torch.stack([torch.full_like(like, value) for value in values])}
        thresholds = torch.zeros_like(like)
        for budget, value in zip(shares, values, strict=True):
            thresholds[budget.latents] = value
        return {"latent_thresholds": thresholds}

    def tensors(self) -> dict[str, Tensor]:
        """Weights, optimiser state and counters of latents, for a checkpoint."""
        out = {"since_fired": self.since_fired}
        for name, weight in zip(Weights._fields, self.weights, strict=True):
            out[name] = weight
            out |= {f"adam.{name}.{key}": value for key, value in self.optimiser.state[weight].items()}
        return out

    def restore(self, tensors: dict[str, Tensor], counters: dict[str, Any]) -> None:
        """Takes on a checkpoint's tensors and counters."""
        self.since_fired.copy_(tensors["since_fired"])
        for name, weight in zip(Weights._fields, self.weights, strict=True):
            weight.copy_(tensors[name])
            prefix = f"adam.{name}."
            self.optimiser.state[weight] = {
                key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
            }
        curves = [(int(step), str(name), float(value)) for step, name, value in counters["curves"]]
        base, chat = counters["input_scale"]
        smallest = tuple(float(value) for value in counters["last_smallest"])
        plain = {"curves": curves, "input_scale": (base, chat), "last_smallest": smallest}
        self.counters = Counters(**counters | plain)


def initial_weights(spec: CrosscoderSpec, parts: Widths, seed: int, device: torch.device | str) -> Weights:
    """Random directions, equal for both models where their widths agree; the encoder is the decoder."""
    encoder = first_weights(spec.num_latents, INITIAL_ROW_NORM, parts, seed)
    decoder = encoder.clone()
    absent_weights(spec, parts, encoder, decoder)
    return Weights(
        encoder=encoder.to(device),
        b_enc=torch.zeros(spec.num_latents, device=device),
        decoder=decoder.to(device),
        b_dec=torch.zeros(sum(parts), device=device),
    )


def geometric_median(tokens: Tensor, iterations: int = 50) -> Tensor:
    """The point `[width]` with the smallest sum of distances to `tokens: [token, width]` (Weiszfeld's algorithm)."""
    point = tokens.mean(0)
    for _ in range(iterations):
        weights = 1 / (tokens - point).norm(dim=1, keepdim=True).clamp_min(1e-6)
        point = (weights * tokens).sum(0) / weights.sum()
    return point


def input_scales(tokens: Tensor, d_model: tuple[int, int]) -> tuple[float, float]:
    """Factors that bring each model's `tokens: [token, both]` to a mean squared norm of `d_model`.

    Raises TrainingError for activations that are zero everywhere.
    """
    base, chat = (part.double().square().sum(1).mean() for part in tokens.split(d_model, dim=1))
    if not (base > 0 and chat > 0):
        raise TrainingError("the activations of a model are zero everywhere; is the layer right?")
    return float((d_model[0] / base).sqrt()), float((d_model[1] / chat).sqrt())


def difference_scale(tokens: Tensor, d_model: tuple[int, int]) -> tuple[float, float]:
    """The factor, for both models, that brings `x^chat - x^base` to a mean squared norm of `d_model`.

    Raises TrainingError where the models' activations are the same.
    """
    size = (tokens[:, d_model[BASE] :] - tokens[:, : d_model[BASE]]).double().square().sum(1).mean()
    if not size > 0:
        raise TrainingError("the models' activations do not differ; a dictionary of differences has nothing to learn")
    factor = float((d_model[BASE] / size).sqrt())
    return factor, factor


def learning_rate(training: TrainingSpec, step: int, fraction: float) -> float:
    """Linear warm-up, then constant, then a linear or cosine fall to zero over the last `decay_share` of training."""
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
    """Trains a crosscoder, from the newest checkpoint below `folder` if there is one.

    Raises TrainingError, CheckpointError, Cancelled (from `progress`) and OSError (a full disk).
    """
    training = recipe.training
    _check_memory(recipe.crosscoder, training, d_model, torch.device(device))
    trainer = Trainer(recipe.crosscoder, training, d_model, device)
    checkpoint = load_checkpoint(folder, recipe_dict(recipe), device)
    if checkpoint is not None:
        source.restore(checkpoint.state["source"])
        trainer.restore(checkpoint.tensors, checkpoint.state["counters"])
    buffer = ShuffleBuffer(source.blocks(), training.buffer_tokens, training.batch_size, training.seed)
    if checkpoint is not None:
        prefix = "buffer."
        saved = {n.removeprefix(prefix): t for n, t in checkpoint.tensors.items() if n.startswith(prefix)}
        buffer.restore(saved)
    else:
        _start(trainer, buffer.fill(), training, d_model)
    clock, tokens_before = time.monotonic(), trainer.counters.tokens
    for tokens in buffer:
        counters = trainer.counters
        fraction = _fraction(training, counters, source, buffer.held + len(tokens))
        x = trainer.inputs(tokens)
        outcome = trainer.step(x, learning_rate(training, counters.step, fraction))
        metrics: dict[str, float] = {}
        if counters.step % training.log_every == 0:
            rate = (counters.tokens - tokens_before) / max(time.monotonic() - clock, 1e-9)
            metrics = measure(trainer, outcome, x) | {"tokens_per_second": rate}
            counters.curves += [(counters.step, name, value) for name, value in metrics.items()]
        progress(STAGE, fraction, step=counters.step, metrics=metrics)
        if counters.step % training.checkpoint_every == 0:
            _save(folder, recipe, trainer, buffer, source)
        if counters.step == training.max_steps:
            break
    if trainer.counters.step == 0:
        raise TrainingError("no token is left to train on after the token policy; check data and tokens in the recipe")
    return TrainingResult(trainer.crosscoder(), trainer.counters.curves, trainer.counters.tokens, trainer.counters.step)


def _check_memory(spec: CrosscoderSpec, training: TrainingSpec, d_model: tuple[int, int], device: torch.device) -> None:
    free = memory.free_bytes(device)
    parts = memory.needed(spec, training, sum(widths(spec, d_model)))
    if free is not None and (sentence := memory.shortage(parts, memory.values_of(spec, training), free)):
        raise TrainingError(sentence)


def _start(trainer: Trainer, tokens: Tensor, training: TrainingSpec, d_model: tuple[int, int]) -> None:
    if len(tokens) == 0:
        return
    for name, part in zip(MODEL_NAMES, tokens.split(d_model, dim=1), strict=True):
        if len(part) > 1 and bool((part == part[0]).all()):
            raise TrainingError(
                f"the {name} model's activations are the same on all of the first {len(part)} tokens; "
                "is the layer right, and are the model's weights?"
            )
    if training.normalise_inputs:
        scales = difference_scale if trainer.spec.variant == DIFFERENCE else input_scales
        trainer.counters.input_scale = scales(tokens, d_model)
    if trainer.spec.k is not None:
        x = trainer.inputs(tokens[: training.batch_size])
        parts = [geometric_median(part) for part in x.split(trainer.widths, dim=1)]
        trainer.weights.b_dec.copy_(torch.cat(parts))


def _fraction(training: TrainingSpec, counters: Counters, source: ActivationSource, held: int) -> float:
    """Share of the training that is done; `held` tokens have been read from the source and not yet trained on."""
    by_steps = counters.step / training.max_steps if training.max_steps else 0.0
    return max(by_steps, source.fraction() * counters.tokens / (counters.tokens + held))


def measure(trainer: Trainer, outcome: Step, x: Tensor) -> dict[str, float]:
    """Figures of one batch: loss, FVE of each part, L0, dead share, thresholds (math §7)."""
    total = [float((p - p.mean(0)).square().sum(dtype=torch.float64)) for p in x.split(trainer.widths, dim=1)]
    fve = [1 - e / t if t else float("nan") for e, t in zip(outcome.squared_error, total, strict=True)]
    dead = trainer.since_fired >= trainer.training.dead_after_tokens
    names = MODEL_NAMES if len(fve) > 1 else ("difference",)
    thresholds = trainer.counters.thresholds
    return {
        "loss": outcome.loss,
        **{f"fve_{name}": value for name, value in zip(names, fve, strict=True)},
        "l0": outcome.num_active / len(x),
        "dead_share": float(dead.float().mean()),
        **{f"threshold_{i}" if i else "threshold": value for i, value in enumerate(thresholds)},
    }


def _save(
    folder: Path,
    recipe: CrosscoderRecipe,
    trainer: Trainer,
    buffer: ShuffleBuffer,
    source: ActivationSource,
) -> None:
    state = {
        "recipe": recipe_dict(recipe),
        "counters": asdict(trainer.counters),
        "source": source.state(),
    }
    tensors = trainer.tensors() | {f"buffer.{name}": tensor for name, tensor in buffer.state().items()}
    save_checkpoint(folder, Checkpoint(trainer.counters.step, tensors, state))
