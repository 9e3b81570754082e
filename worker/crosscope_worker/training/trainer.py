"""The state of a training, and the one step that moves it. Knows no loop, no data and no disk."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from crosscope_proto.roles import BASE, CHAT
from crosscope_proto.specs import CrosscoderSpec, TrainingSpec
from crosscope_worker.dictionary.crosscoder import DIFFERENCE, Crosscoder, scale_inputs
from crosscope_worker.training.active_code import Scratch, Weights
from crosscope_worker.training.calibration import TokenSample
from crosscope_worker.training.errors import TrainingError
from crosscope_worker.training.objective import Step, compute_step
from crosscope_worker.training.start import initial_weights
from crosscope_worker.training.variants import at_step, budgets, needs_equal_widths, widths

THRESHOLD_MEMORY = 0.999
"""Decay of the moving average of thresholds (math §2)."""
FLOOR_SHARE = 0.8
"""The guess at a batch's smallest kept activation, as a share of the last one."""


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
        self.sample = TokenSample()
        """Tokens that thresholds are calibrated on at the end; stays empty without a k."""
        self._scratch = Scratch()

    def step(self, x: Tensor, lr: float) -> Step:
        """Trains on `x: [batch, both]`, from `inputs`; returns what the batch said before the update.

        Its gradients last until the next step.

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
            scratch=self._scratch,
        )
        if not torch.isfinite(torch.tensor(outcome.loss)):
            raise TrainingError(f"the loss is {outcome.loss} at step {counters.step}; try training.lr below {lr:g}")
        self._update(outcome.gradients, lr)
        self.since_fired += len(x)
        self.since_fired[outcome.fired] = 0
        # The last batch of a stream may be a few tokens, whose smallest kept activation says little of the others'.
        if len(x) == self.training.batch_size or not counters.last_smallest:
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

    def crosscoder(self, thresholds: Sequence[float] | None = None) -> Crosscoder:
        """The crosscoder as it stands; shares memory with the weights where it can.

        `thresholds`, one a budget, are its inference thresholds; unset: the running averages.
        """
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
            **self._thresholds(self.running_thresholds() if thresholds is None else thresholds),
        )

    def running_thresholds(self) -> tuple[float, ...]:
        """The average of each budget; the last batch's values until the averages begin."""
        counters = self.counters
        return tuple(counters.thresholds or counters.last_smallest or (0.0,) * len(budgets(self.spec)))

    def _thresholds(self, values: Sequence[float]) -> dict[str, Any]:
        """The thresholds, one a budget, as a crosscoder has them."""
        shares = budgets(self.spec)
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
        """Weights, optimiser state, counters of latents and the sample, for a checkpoint."""
        out = {"since_fired": self.since_fired, "sample": self.sample.tokens()}
        for name, weight in zip(Weights._fields, self.weights, strict=True):
            out[name] = weight
            out |= {f"adam.{name}.{key}": value for key, value in self.optimiser.state[weight].items()}
        return out

    def restore(self, tensors: dict[str, Tensor], counters: dict[str, Any]) -> None:
        """Takes on a copy of a checkpoint's tensors and counters."""
        self.since_fired.copy_(tensors["since_fired"])
        for name, weight in zip(Weights._fields, self.weights, strict=True):
            weight.copy_(tensors[name])
            prefix = f"adam.{name}."
            self.optimiser.state[weight] = {
                key.removeprefix(prefix): value.clone() for key, value in tensors.items() if key.startswith(prefix)
            }
        self.sample.restore(tensors.get("sample", torch.empty(0, 0)))
        curves = [(int(step), str(name), float(value)) for step, name, value in counters["curves"]]
        base, chat = counters["input_scale"]
        smallest = tuple(float(value) for value in counters["last_smallest"])
        plain = {"curves": curves, "input_scale": (base, chat), "last_smallest": smallest}
        self.counters = Counters(**counters | plain)
