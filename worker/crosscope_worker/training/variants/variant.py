"""The decisions of a dictionary in its training; objective.py and trainer.py hold what all dictionaries share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Generic, NamedTuple, Self, TypeVar

import torch
from torch import Tensor

from crosscope_proto.artefacts import LatentPart
from crosscope_proto.dictionaries import DictionarySpec, TwoModels
from crosscope_proto.specs import TrainingSpec
from crosscope_worker.dictionary.crosscoder import Crosscoder
from crosscope_worker.dictionary.keep import ALL_POSITIVE, Keep
from crosscope_worker.dictionary.sparsifier import code_norms
from crosscope_worker.dictionary.streams import STREAMS
from crosscope_worker.ranks import ALONE, Ranks
from crosscope_worker.training.active_code import ActiveCode, Selected, Smallest, Weights, active_code
from crosscope_worker.training.held import Held
from crosscope_worker.training.losses import mean_size

AnySpec = TypeVar("AnySpec", bound=DictionarySpec)


class Operands(NamedTuple):
    """The operands of products, in the data type in which products are made."""

    x: Tensor
    """[batch, width]."""
    encoder: Tensor
    """[latent, width]."""
    decoder: Tensor
    """[latent, width]."""


@dataclass(frozen=True)
class Batch:
    """The input of a step."""

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

    def active(self, flat: Tensor | None = None, above: Tensor | None = None) -> ActiveCode:
        """The code at the ascending flat indices `flat`; without them, all entries above `above: [latent]`, or 0."""
        return active_code(self.pre, self.weights.b_enc, flat, self.operands.x.dtype, above)


class Reconstruction(NamedTuple):
    """The loss of a reconstruction, and its gradients by the codes and by the bias."""

    loss: Tensor
    pieces: list[tuple[Selected, Tensor]]
    """Codes, each with the gradient by its reconstruction, [batch, width of all columns]. Codes of the same columns
    have different latents (`Selected.narrowed`), in ascending order, and together they have all latents."""
    b_dec: Tensor
    """[width]; the gradient by the decoder's bias."""
    error: Tensor
    """[batch, width]; `x - x_hat` of the whole code."""


class Penalty(NamedTuple):
    """The sparsity loss of a code, and its gradients."""

    loss: Tensor
    by_code: Tensor
    """The gradient by the code, in the shape of its values."""
    by_norm: Tensor
    """[latent of the code]; the gradient by the code normalisation n."""


@dataclass(frozen=True)
class Further:
    """Losses beside reconstruction and penalty, and the gradients by the variant's own tensors."""

    loss: Tensor | float = 0.0
    extra: dict[str, Tensor] = field(default_factory=dict)


class Variant(Generic[AnySpec]):
    """The training of a dictionary; the defaults are those of a plain ReLU code without a penalty.

    To write a new variant: a spec class in crosscope_proto/dictionaries.py, and a file here with the name of the spec's
    `variant`, which ends with `VARIANT = TheClass`. The class overrides what differs, and nothing else:

    - before the first step: `extra` gives learnt tensors of its own; Adam updates them, clipping counts them and
      checkpoints keep them, as with the weights. `blocks` says where weights exist;
    - at a step, in this order: `at_step` warms the sparsity up, `select` chooses the active entries, `reconstruct`
      decodes them and takes the loss of the error from `loss`, `penalty` gives the sparsity loss of the code, `further`
      adds any other loss and all gradients by `extra`, and `constrain` ties gradients;
    - after the last step: `thresholds` computes what inference needs from a sample (if the spec `calibrates`), `keep`
      says which entries inference keeps, and `parts` names the parts of the dictionary.

    All methods are pure, apart from the arguments that they change in place. The variant's row in
    tests/worker/training/test_objective.py compares the gradients with autograd.
    """

    equal_widths: ClassVar[bool] = False
    """Whether the variant needs models of equal width."""
    changes_gradients: ClassVar[bool] = False
    """Whether `further` adds to the gradients of the weights, or `constrain` ties them. They are then made as matrices,
    also where the optimiser could sum them itself."""
    centres_bias: ClassVar[bool] = False
    """Whether the decoder's bias starts at the geometric median of the first batch, instead of 0."""

    def __init__(self, spec: AnySpec, d_model: tuple[int, int], ranks: Ranks = ALONE) -> None:
        self.spec = spec
        self.d_model = d_model
        self.ranks = ranks
        self.held = Held(spec.num_latents, ranks)
        """The latents whose rows are here."""
        self.streams = STREAMS[spec.reads]
        self.widths = self.streams.widths(d_model)
        """Widths of the parts of the dictionary's own columns, which every tensor here has."""

    def needs_equal_widths(self) -> str | None:
        """The field of the recipe that needs models of equal width, or None."""
        if self.equal_widths:
            return f"variant {self.spec.variant}"
        return "cross_term" if isinstance(self.spec, TwoModels) and self.spec.cross_term else None

    def extra(self, weights: Weights) -> dict[str, Tensor]:
        """Learnt tensors beside the weights, by name: their values before the first step, on the weights' device."""
        return {}

    def blocks(self) -> Sequence[tuple[slice, slice]]:
        """The latents, of all, and the columns in which weights exist: one block of columns for each latent, all by
        default.

        A latent neither reads nor writes what lies outside.
        """
        return ((slice(0, self.spec.num_latents), slice(0, sum(self.widths))),)

    def held_blocks(self) -> Sequence[tuple[slice, slice]]:
        """The blocks of the held latents, by their rows."""
        found = [(self.held.rows(latents), columns) for latents, columns in self.blocks()]
        return [(rows, columns) for rows, columns in found if rows.stop > rows.start]

    def absent(self, encoder: Tensor, decoder: Tensor) -> None:
        """Zeroes, in place, the entries of `[latent held, width]` weights or gradients outside the blocks."""
        for weights in (encoder, decoder):
            for rows, columns in self.held_blocks():
                weights[rows, : columns.start] = 0
                weights[rows, columns.stop :] = 0

    def at_step(self, training: TrainingSpec, step: int) -> Self:
        """The variant with the sparsity of a step of the warm-up."""
        if step >= training.sparsity_warmup_steps:
            return self
        return type(self)(self.warming(training, step), self.d_model, self.ranks)

    def warming(self, training: TrainingSpec, step: int) -> AnySpec:
        """The spec at a step of the warm-up, which is `training.sparsity_warmup_steps` long."""
        return self.spec

    def norms(self, decoder: Tensor) -> Tensor:
        """The code normalisation of `decoder: [latent, width]`, [latent]."""
        return code_norms(decoder, self.widths, self.spec.code_normalisation)

    def select(self, batch: Batch) -> tuple[list[Selected], tuple[Smallest, ...]]:
        """The active entries of the batch, and the smallest kept value for each threshold to be estimated.

        Returns one code of all latents and columns, or one for each model's columns.
        """
        return [Selected(batch.active(), slice(0, sum(self.widths)), self.norms(batch.weights.decoder))], ()

    def reconstruct(self, batch: Batch, selected: Sequence[Selected]) -> Reconstruction:
        """The reconstruction by the codes, its loss, and the gradients by each code."""
        error = batch.x - batch.weights.b_dec
        for each in selected:
            error[:, each.columns] -= self.ranks.sum(each.decode(batch.operands.decoder))
        loss, grad = self.loss(error)
        return Reconstruction(loss, [(each, grad) for each in selected], grad.sum(0), error)

    def loss(self, error: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of an error `x - x_hat: [batch, width]`, and its gradient by x_hat in the same shape.

        The loss is `mean over batch and part of ‖e‖`, or of its square if `spec.squared`. With a cross term lambda, the
        mean over the batch of `lambda <e^chat, e^base>` is added.
        """
        loss, grad = mean_size(error, self.widths, squared=self.spec.squared)
        if isinstance(self.spec, TwoModels) and (weight := self.spec.cross_term):
            base, chat = error.split(self.widths, dim=1)
            loss += weight * (base * chat).sum(dtype=torch.float64) / len(error)
            grad -= torch.cat([chat, base], 1).mul_(weight / len(error))
        return loss, grad

    def penalty(self, selected: Selected, num_tokens: int) -> Penalty | None:
        """The sparsity loss of a code of `num_tokens` tokens, or None."""
        return None

    def further(self, batch: Batch, reconstruction: Reconstruction, gradients: Weights | None) -> Further:
        """Losses of the variant's own; adds their gradients by the weights to `gradients`, in place.

        `gradients` are there for sure only if the variant `changes_gradients`.
        """
        return Further()

    def constrain(self, encoder: Tensor, decoder: Tensor) -> None:
        """Changes gradients `[latent, width]` in place so that ties and absences hold."""
        self.absent(encoder, decoder)

    def aux_weight(self, training: TrainingSpec) -> float:
        """Weight of the auxiliary loss that revives dead latents; 0 for none."""
        return training.aux_weight if self.spec.revives else 0.0

    @property
    def num_thresholds(self) -> int:
        """Number of thresholds: training keeps an average of each, and `thresholds` calibrates them."""
        return 0

    def thresholds(self, crosscoder: Crosscoder, tokens: Tensor) -> tuple[float, ...]:
        """The thresholds of a finished crosscoder, from a sample `tokens: [token, both]` of its training tokens."""
        return ()

    def keep(self, thresholds: Sequence[float], weights: Weights, extra: Mapping[str, Tensor]) -> Keep:
        """Which entries inference keeps."""
        return ALL_POSITIVE

    def parts(self) -> tuple[LatentPart, ...]:
        """The part of the dictionary to which each latent belongs, [latent]; empty for a dictionary without parts."""
        first = [part for part, count in self.apart() for _ in range(count)]
        return (*first, *[LatentPart.REST] * (self.spec.num_latents - len(first))) if first else ()

    def apart(self) -> Sequence[tuple[LatentPart, int]]:
        """The first parts of the dictionary, each with its number of latents."""
        return ()
