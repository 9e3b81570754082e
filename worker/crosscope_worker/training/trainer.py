"""The state of a training, and the one step that changes it. Knows no loop, no data and no disk."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from crosscope_proto.dictionaries import DictionarySpec
from crosscope_proto.roles import BASE, CHAT
from crosscope_proto.specs import TrainingSpec
from crosscope_worker.dictionary.crosscoder import Crosscoder, scale_inputs
from crosscope_worker.ranks import ALONE, Ranks
from crosscope_worker.training.active_code import Scratch, Weights
from crosscope_worker.training.adam import MOMENTS, Adam
from crosscope_worker.training.calibration import TokenSample
from crosscope_worker.training.errors import TrainingError
from crosscope_worker.training.norm_histogram import relative_norm_bins
from crosscope_worker.training.objective import Step, compute_step
from crosscope_worker.training.start import initial_weights
from crosscope_worker.training.variants import variant_of

THRESHOLD_MEMORY = 0.999
"""Decay of the moving average of thresholds (math §2)."""
_ADAM = "adam."
"""Prefix of the optimiser's tensors in a checkpoint."""
_WHOLE = frozenset({"b_dec"})
"""The learnt tensors that every rank has whole; the others have a row for each latent held."""
FLOOR_SHARE = 0.8
"""The guess at a batch's smallest kept activation, as a share of the last batch's."""


@dataclass
class Counters:
    """The state of a training besides its weights."""

    step: int = 0
    tokens: int = 0
    thresholds: list[float] = field(default_factory=list)
    """Moving average of the smallest kept scaled activation, for each threshold to be estimated."""
    threshold_updates: int = 0
    last_smallest: tuple[float, ...] = ()
    input_scale: tuple[float, float] = (1.0, 1.0)
    curves: list[tuple[int, str, float]] = field(default_factory=list)


class Trainer:
    """Weights, optimiser and counters of one training, or what one of its ranks holds of them (math §3)."""

    def __init__(
        self,
        spec: DictionarySpec,
        training: TrainingSpec,
        d_model: tuple[int, int],
        device: torch.device | str = "cpu",
        ranks: Ranks = ALONE,
    ) -> None:
        """Holds the latents `ranks.share(num_latents)`; everything else is the same on every rank.

        Raises TrainingError if the recipe needs models of equal width and these differ, or for more ranks than latents.
        """
        if ranks.size > spec.num_latents:
            raise TrainingError(
                f"{ranks.size} devices cannot share crosscoder.num_latents {spec.num_latents}; "
                f"set training.devices to {spec.num_latents} or fewer"
            )
        self.variant = variant_of(spec, d_model, ranks)
        self.latents = self.variant.held.latents
        """The latents held here, among all."""
        if (what := self.variant.needs_equal_widths()) and d_model[BASE] != d_model[CHAT]:
            raise TrainingError(f"{what} needs models of equal width; these have {d_model[BASE]} and {d_model[CHAT]}")
        self.spec = spec
        self.training = training
        self.d_model = d_model
        self.counters = Counters()
        self.weights = initial_weights(self.variant, training.seed, device)
        self.extra = self.variant.extra(self.weights)
        """The variant's own learnt tensors, by name; a row for each latent held."""
        self.since_fired = torch.zeros(len(self.variant.held), dtype=torch.int64, device=device)
        """[latent held]: tokens since it fired."""
        self.optimiser = Adam(self._learnt(), training.max_grad_norm, self.variant.held_blocks(), ranks, _WHOLE)
        self.sample = TokenSample()
        """Tokens on which thresholds are calibrated at the end; empty for a dictionary without calibration."""
        self._scratch = Scratch()

    def step(self, x: Tensor, lr: float) -> Step:
        """Trains on `x: [batch, both]`, from `inputs`; returns loss, gradients and figures from before the update.

        All ranks call it with the same `x` and `lr`. The gradients stay valid until the next step. Raises TrainingError,
        on every rank, if the loss is not finite.
        """
        counters, optimiser, dtype = self.counters, self.optimiser, getattr(torch, self.training.dtype)
        outcome = compute_step(
            self.weights,
            x,
            self.variant.at_step(self.training, counters.step),
            extra=self.extra,
            dead=self.since_fired >= self.training.dead_after_tokens,
            aux_weight=self.variant.aux_weight(self.training),
            floors=[FLOOR_SHARE * smallest for smallest in counters.last_smallest],
            dtype=dtype,
            rounded=(optimiser.rounded("encoder", dtype), optimiser.rounded("decoder", dtype)),
            scratch=self._scratch,
            unmade=not self.variant.changes_gradients and optimiser.takes_sums(dtype),
        )
        if not math.isfinite(outcome.loss):
            raise TrainingError(f"the loss is {outcome.loss} at step {counters.step}; try training.lr below {lr:g}")
        optimiser.step({**outcome.gradients._asdict(), **outcome.extra}, lr)
        self.since_fired += len(x)
        self.since_fired.masked_fill_(outcome.fired, 0)
        # The last batch of a stream may have few tokens, so its smallest kept activation says little about the others.
        if len(x) == self.training.batch_size or not counters.last_smallest:
            counters.last_smallest = outcome.smallest_kept
            if counters.step >= max(self.training.warmup_steps, self.training.sparsity_warmup_steps):
                self._update_thresholds(outcome.smallest_kept)
        counters.step += 1
        counters.tokens += len(x)
        return outcome

    def _learnt(self) -> dict[str, Tensor]:
        """All learnt tensors by name; weights first."""
        return {**self.weights._asdict(), **self.extra}

    def _update_thresholds(self, smallest: tuple[float, ...]) -> None:
        # A plain mean until the moving average has seen enough batches, so that its start does not weigh on short runs.
        counters = self.counters
        counters.threshold_updates += 1
        memory = min(THRESHOLD_MEMORY, 1 - 1 / counters.threshold_updates)
        before = counters.thresholds or [0.0] * len(smallest)
        counters.thresholds = [memory * old + (1 - memory) * new for old, new in zip(before, smallest, strict=True)]

    def inputs(self, tokens: Tensor) -> Tensor:
        """The dictionary's input, [batch, width], from the models' activations `tokens: [batch, both]`."""
        x = scale_inputs(tokens, self.d_model, self.counters.input_scale)
        return self.variant.streams.read(x, self.d_model)

    def dead_share(self) -> float:
        """The share of all latents that are dead. All ranks call it."""
        dead = (self.since_fired >= self.training.dead_after_tokens).sum()
        return float(self.variant.ranks.sum(dead) / self.spec.num_latents)

    def relative_norm_bins(self) -> list[int]:
        """The histogram of all latents' relative norms (`norm_histogram`). All ranks call it."""
        return self.variant.ranks.sum(relative_norm_bins(self.weights.decoder, self.variant.widths)).tolist()

    def crosscoder(self, thresholds: Sequence[float] | None = None) -> Crosscoder:
        """The current crosscoder, of a trainer that holds all latents; shares memory with the weights where it can.

        `thresholds` are the variant's thresholds at inference; by default the running averages.
        """
        assert self.variant.ranks.size == 1
        weights = Weights(*(weight.detach() for weight in self.weights))
        extra = {name: tensor.detach() for name, tensor in self.extra.items()}
        streams = self.variant.streams
        return Crosscoder(
            W_enc=streams.place_encoder(weights.encoder).T,
            b_enc=weights.b_enc,
            W_dec=streams.place_decoder(weights.decoder),
            b_dec=streams.place_decoder(weights.b_dec),
            d_model=self.d_model,
            variant=self.spec.variant,
            code_normalisation=self.spec.code_normalisation,
            streams=streams,
            keep=self.variant.keep(self.running_thresholds() if thresholds is None else thresholds, weights, extra),
            input_scale=self.counters.input_scale,
        )

    def running_thresholds(self) -> tuple[float, ...]:
        """The average of each threshold; the values of the last batch before averages exist."""
        counters = self.counters
        return tuple(counters.thresholds or counters.last_smallest or (0.0,) * self.variant.num_thresholds)

    def tensors(self) -> dict[str, Tensor]:
        """Weights, optimiser state, counters of latents and the sample, for a checkpoint.

        Of what `per_latent` names, the rows of the latents held; the others whole.
        """
        out = {"since_fired": self.since_fired, "sample": self.sample.tokens(), **self._learnt()}
        return out | {f"{_ADAM}{name}": tensor for name, tensor in self.optimiser.tensors().items()}

    def per_latent(self) -> frozenset[str]:
        """The names in `tensors`, also those of moments before the first step, of what has a row for each latent
        held.
        """
        learnt = self._learnt().keys() - _WHOLE
        return frozenset(
            {"since_fired", *learnt, *(f"{_ADAM}{name}.{moment}" for name in learnt for moment in MOMENTS)}
        )

    def restore(self, tensors: dict[str, Tensor], counters: dict[str, Any]) -> None:
        """Continues from a copy of a checkpoint's tensors, of any device, and counters: what `tensors` gives."""
        self.since_fired.copy_(tensors["since_fired"])
        for name, weight in self._learnt().items():
            weight.copy_(tensors[name])
        adam = {name.removeprefix(_ADAM): each for name, each in tensors.items() if name.startswith(_ADAM)}
        self.optimiser.restore(adam)
        self.sample.restore(tensors.get("sample", torch.empty(0, 0)), self.since_fired.device)
        curves = [(int(step), str(name), float(value)) for step, name, value in counters["curves"]]
        base, chat = counters["input_scale"]
        smallest = tuple(float(value) for value in counters["last_smallest"])
        plain = {"curves": curves, "input_scale": (base, chat), "last_smallest": smallest}
        self.counters = Counters(**counters | plain)
