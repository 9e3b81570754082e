"""What a dictionary decides in its training; everything else is the same for all (objective.py, trainer.py)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Generic, NamedTuple, Self, TypeVar

import torch
from torch import Tensor

from crosscope_proto.artefacts import LatentPart
from crosscope_proto.dictionaries import DictionarySpec, TwoModels
from crosscope_proto.specs import TrainingSpec
from crosscope_worker.dictionary.crosscoder import Crosscoder
from crosscope_worker.dictionary.keep import ALL_POSITIVE, Keep, code_norms
from crosscope_worker.dictionary.streams import STREAMS
from crosscope_worker.training.active_code import Selected, Weights, active_code
from crosscope_worker.training.losses import mean_size

AnySpec = TypeVar("AnySpec", bound=DictionarySpec)


class Operands(NamedTuple):
    """What products read, in the data type that they are made in."""

    x: Tensor
    """[batch, width]."""
    encoder: Tensor
    """[latent, width]."""
    decoder: Tensor
    """[latent, width]."""


@dataclass(frozen=True)
class Batch:
    """What a step starts from."""

    x: Tensor
    """[batch, width], as the dictionary reads it."""
    pre: Tensor
    """[batch, latent]: the encoder's product, without its bias."""
    weights: Weights
    extra: Mapping[str, Tensor]
    """The variant's own learnt tensors."""
    operands: Operands
    floors: Sequence[float] = ()
    """Guesses at the smallest kept values; they change the speed, not the result."""


class Reconstruction(NamedTuple):
    """A reconstruction's loss and what it asks of the codes that it was made of."""

    loss: float
    pieces: list[tuple[Selected, Tensor]]
    """Codes, and the gradient by what each decodes to, [batch, width of all columns]. Codes of the same columns are of
    different latents (`Selected.narrowed`), ascending, and of all latents together."""
    b_dec: Tensor
    """[width]: the gradient by the decoder's bias."""
    error: Tensor
    """[batch, width]: `x - x_hat` of the whole code."""


class Penalty(NamedTuple):
    """What a code costs, and the gradients of that."""

    loss: float
    by_code: Tensor
    """In the shape of the code's values."""
    by_norm: Tensor
    """[latent of the code]: by the code normalisation n."""


@dataclass(frozen=True)
class Further:
    """Losses beside reconstruction and penalty, and the gradients by the variant's own tensors."""

    loss: float = 0.0
    extra: dict[str, Tensor] = field(default_factory=dict)


class Variant(Generic[AnySpec]):
    """A dictionary's training; what stands here is that of a plain ReLU code without any penalty.

    To write a new one: a spec class in crosscope_proto/dictionaries.py, and a file here, named like the spec's
    `variant`, that ends with `VARIANT = TheClass`. The class overrides what differs, and nothing else:

    - before the first step: `extra` gives learnt tensors of its own, which Adam moves, clipping counts and checkpoints
      keep like the weights; `absent` zeroes weights that do not exist;
    - at a step, in this order: `at_step` warms the sparsity up, `select` chooses the active entries, `reconstruct`
      decodes them and asks `loss` what the error costs, `penalty` says what the code costs, `further` adds any other
      loss and all gradients by `extra`, and `constrain` ties gradients;
    - after the last step: `thresholds` measures what inference needs on a sample (where the spec `calibrates`), `keep`
      says which entries inference keeps, and `parts` names the parts of the dictionary.

    All are pure but for what they are told to change in place. Its row in tests/worker/training/test_objective.py
    compares the gradients with autograd.
    """

    equal_widths: ClassVar[bool] = False
    """Whether it needs models of equal width."""
    centres_bias: ClassVar[bool] = False
    """Whether the decoder's bias starts at the geometric median of the first batch, instead of 0."""

    def __init__(self, spec: AnySpec, d_model: tuple[int, int]) -> None:
        self.spec = spec
        self.d_model = d_model
        self.streams = STREAMS[spec.reads]
        self.widths = self.streams.widths(d_model)
        """Of the parts of its own columns, which every tensor here has."""

    def needs_equal_widths(self) -> str | None:
        """What of the recipe needs models of equal width, or None."""
        if self.equal_widths:
            return f"variant {self.spec.variant}"
        return "cross_term" if isinstance(self.spec, TwoModels) and self.spec.cross_term else None

    def extra(self, weights: Weights) -> dict[str, Tensor]:
        """Learnt tensors beside the weights, by name, as they are at the first step, on the weights' device."""
        return {}

    def absent(self, encoder: Tensor, decoder: Tensor) -> None:
        """Zeroes what a latent neither reads nor writes; `[latent, width]`, weights or gradients, in place."""

    def at_step(self, training: TrainingSpec, step: int) -> Self:
        """The same with the sparsity of a step of the warm-up."""
        if step >= training.sparsity_warmup_steps:
            return self
        return type(self)(self.warming(training, step), self.d_model)

    def warming(self, training: TrainingSpec, step: int) -> AnySpec:
        """The spec at a step of the warm-up, which is `training.sparsity_warmup_steps` long."""
        return self.spec

    def norms(self, decoder: Tensor) -> Tensor:
        """The code normalisation of `decoder: [latent, width]`, [latent]."""
        return code_norms(decoder, self.widths, self.spec.code_normalisation)

    def select(self, batch: Batch) -> tuple[list[Selected], tuple[float, ...]]:
        """The active entries of the batch, and the smallest value that was kept by each threshold to be found.

        One code of all latents and columns, or one for each model's columns.
        """
        code = active_code(batch.pre, batch.weights.b_enc, None)
        return [Selected(code, slice(0, sum(self.widths)), self.norms(batch.weights.decoder))], ()

    def reconstruct(self, batch: Batch, selected: Sequence[Selected]) -> Reconstruction:
        """What the codes decode to, what that costs, and what it asks of each."""
        error = batch.x - batch.weights.b_dec
        for each in selected:
            error[:, each.columns] -= each.decode(batch.operands.decoder)
        loss, grad = self.loss(error)
        return Reconstruction(loss, [(each, grad) for each in selected], grad.sum(0), error)

    def loss(self, error: Tensor) -> tuple[float, Tensor]:
        """What an error `x - x_hat: [batch, width]` costs, and the gradient by x_hat, in its shape.

        `mean over batch and part of ‖e‖`, or of its square if `spec.squared`; and, with a cross term lambda, the mean
        over the batch of `lambda <e^chat, e^base>`.
        """
        loss, grad = mean_size(error, self.widths, squared=self.spec.squared)
        if isinstance(self.spec, TwoModels) and (weight := self.spec.cross_term):
            base, chat = error.split(self.widths, dim=1)
            loss += weight * float((base * chat).sum()) / len(error)
            grad -= torch.cat([chat, base], 1).mul_(weight / len(error))
        return loss, grad

    def penalty(self, selected: Selected, num_tokens: int) -> Penalty | None:
        """What a code of `num_tokens` tokens costs, or None."""
        return None

    def further(self, batch: Batch, reconstruction: Reconstruction, gradients: Weights) -> Further:
        """Losses of its own; adds their gradients by the weights to `gradients`, in place."""
        return Further()

    def constrain(self, encoder: Tensor, decoder: Tensor) -> None:
        """Makes gradients `[latent, width]` respect ties and absences, in place."""
        self.absent(encoder, decoder)

    def aux_weight(self, training: TrainingSpec) -> float:
        """Weight of the auxiliary loss that revives dead latents; 0: there is none."""
        return training.aux_weight if self.spec.revives else 0.0

    @property
    def num_thresholds(self) -> int:
        """Thresholds of which training keeps an average, and which `thresholds` measures."""
        return 0

    def thresholds(self, crosscoder: Crosscoder, tokens: Tensor) -> tuple[float, ...]:
        """The thresholds of a finished crosscoder from a sample `tokens: [token, both]` of what it was trained on."""
        return ()

    def keep(self, thresholds: Sequence[float], weights: Weights, extra: Mapping[str, Tensor]) -> Keep:
        """Which entries inference keeps."""
        return ALL_POSITIVE

    def parts(self) -> tuple[LatentPart, ...]:
        """The part of the dictionary that each latent belongs to, [latent]; none where it has no parts."""
        first = [part for part, count in self.apart() for _ in range(count)]
        return (*first, *[LatentPart.REST] * (self.spec.num_latents - len(first))) if first else ()

    def apart(self) -> Sequence[tuple[LatentPart, int]]:
        """The parts that come first, and how many latents each has."""
        return ()
