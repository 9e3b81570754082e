"""Losses of the crosscoder and their gradients, written out (math §2, §3). Pure: nothing here keeps or moves state.

After the encoder's product all work is on active pairs: where a code entry is zero, so is every gradient through it.
Products may be made in bfloat16; what they give, sums, losses and gradients stay float32.
tests/worker/test_objective.py checks every gradient against autograd in float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from crosscope_proto.specs import CrosscoderSpec
from crosscope_worker.dictionary.crosscoder import code_norms
from crosscope_worker.training.active_code import Scratch, Selected, Weights, product, select
from crosscope_worker.training.auxiliary import auxiliary_loss
from crosscope_worker.training.variants import Widths, constrain, penalties


@dataclass(frozen=True)
class Step:
    """What one batch says."""

    loss: float
    gradients: Weights
    fired: Tensor
    """[latent] bool: fired in this batch."""
    smallest_kept: tuple[float, ...]
    """Smallest scaled activation that was kept, of each budget; 0 where nothing fired."""
    num_active: int
    """Active entries of the code."""
    squared_error: tuple[float, ...]
    """Sum of squared errors of each part of the reconstruction."""


class Dead(NamedTuple):
    """What the auxiliary loss asks of dead latents."""

    latents: Tensor
    """[dead] int64."""
    num_taken: int
    """Of them, by each token."""
    weight: float
    """Of the loss."""


class Operands(NamedTuple):
    """What products read, in the data type that they are made in."""

    x: Tensor
    """[batch, both]."""
    encoder: Tensor
    """[latent, both]."""
    decoder: Tensor
    """[latent, both]."""


def compute_step(
    weights: Weights,
    x: Tensor,
    spec: CrosscoderSpec,
    d_model: Widths,
    *,
    dead: Tensor | None = None,
    aux_weight: float = 0.0,
    floors: Sequence[float] = (),
    dtype: torch.dtype | None = None,
    scratch: Scratch | None = None,
) -> Step:
    """Loss and gradients of one batch.

    `x: [batch, both]` float32, as the dictionary reads it; `d_model` are the widths of its parts. `dead: [latent]` bool
    and `aux_weight` are the auxiliary loss of variants with k. `floors` are guesses at each budget's smallest kept
    scaled activation; they change the speed, not the result. Products are made in `dtype`, that of `x` unless given.
    With `scratch`, gradients lie in it and are overwritten by the next step that is given it.
    """
    dtype = dtype or x.dtype
    operands = Operands(x.to(dtype), weights.encoder.to(dtype), weights.decoder.to(dtype))
    scratch = scratch or Scratch()
    pre = product(operands.x, operands.encoder.T, scratch.take("pre", x, len(x), len(weights.b_enc)))
    selected, smallest = select(pre, weights, spec, d_model, floors)
    error = x - weights.b_dec
    for each in selected:
        error[:, each.columns] -= each.code.decode(_columns(operands.decoder, each.columns))
    loss, grad = reconstruction_loss(error, d_model, spec)
    found = [_code_gradients(each, weights, operands, grad, spec, d_model, scratch) for each in selected]
    loss += sum(each.penalty for each in found)
    gradients = Weights(
        encoder=_sum([each.encoder for each in found]),
        b_enc=_sum([each.b_enc for each in found]),
        decoder=found[0].decoder if len(found) == 1 else torch.cat([each.decoder for each in found], 1),
        b_dec=grad.sum(0),
    )
    if aux_weight > 0 and dead is not None and bool(dead.any()):
        norms = code_norms(weights.decoder, d_model, spec.code_normalisation)
        found_dead = Dead(dead.nonzero().squeeze(1), max(d_model) // 2, aux_weight)
        loss += _add_auxiliary(gradients, weights, operands, pre, norms, error, found_dead)
    constrain(spec, d_model, gradients.encoder, gradients.decoder)
    fired, num_active = _activity(selected)
    squares = [float(part.square().sum(dtype=torch.float64)) for part in error.split(d_model, dim=1)]
    return Step(loss, gradients, fired, smallest, num_active, tuple(squares))


class _CodeGradients(NamedTuple):
    """What one selected code adds to the gradients, and its sparsity penalty."""

    encoder: Tensor
    b_enc: Tensor
    decoder: Tensor
    """[latent, width of its columns]."""
    penalty: float


def _code_gradients(
    selected: Selected,
    weights: Weights,
    operands: Operands,
    grad: Tensor,
    spec: CrosscoderSpec,
    d_model: Widths,
    scratch: Scratch,
) -> _CodeGradients:
    code, own_grad = selected.code, _columns(grad, selected.columns).to(operands.x.dtype)
    code_grad = code.products(own_grad, _columns(operands.decoder, selected.columns))
    for_encoder, for_decoder = (
        scratch.take(f"{name} from column {selected.columns.start}", weights.b_enc, len(weights.b_enc), width)
        for name, width in (("encoder", operands.x.shape[1]), ("decoder", own_grad.shape[1]))
    )
    decoder, loss = code.per_latent(code.values, own_grad, for_decoder), 0.0
    if (penalty := penalties(spec, weights.b_enc)) is not None:
        penalty /= len(grad)
        code_grad += code.spread(penalty * selected.norms)
        totals = penalty * code.sums(code.values)
        add_norm_gradient(decoder, weights.decoder, d_model, spec.code_normalisation, totals)
        loss = float(totals @ selected.norms)
    encoder = code.per_latent(code_grad, operands.x, for_encoder)
    return _CodeGradients(encoder, code.sums(code_grad), decoder, loss)


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    first, *others = tensors
    for other in others:
        first += other
    return first


def _columns(rows: Tensor, columns: slice) -> Tensor:
    return rows[:, columns].contiguous()


def _activity(selected: list[Selected]) -> tuple[Tensor, int]:
    """Which latents fired, [latent], and the number of active entries; an entry of both models of a decoupled code
    counts once for each, halved.
    """
    active = [(each.code.values > 0).to(each.code.values.dtype) for each in selected]
    counts = torch.stack([each.code.sums(ones) for each, ones in zip(selected, active, strict=True)])
    return counts.sum(0) > 0, round(float(counts.sum()) / len(selected))


def reconstruction_loss(error: Tensor, d_model: Widths, spec: CrosscoderSpec) -> tuple[float, Tensor]:
    """The reconstruction's loss and its gradient by x_hat, [batch, both].

    `mean over batch and part of ‖e‖`, or of its square if `spec.squared`; and, with a cross term lambda, the mean over
    the batch of `lambda <e^chat, e^base>`; of a delta crosscoder also `delta_weight · mean ‖e^chat - e^base‖`, squared
    like the rest.
    """
    loss, grad = _mean_size(error, d_model, squared=spec.squared)
    if spec.cross_term or spec.delta_weight is not None:
        base, chat = error.split(d_model, dim=1)
        if spec.cross_term:
            loss += spec.cross_term * float((base * chat).sum()) / len(error)
            grad -= torch.cat([chat, base], 1).mul_(spec.cross_term / len(error))
        if spec.delta_weight is not None:
            size, by_delta = _mean_size(chat - base, d_model[:1], squared=spec.squared)
            loss += spec.delta_weight * size
            grad += torch.cat([-by_delta, by_delta], 1).mul_(spec.delta_weight)
    return loss, grad


def _mean_size(error: Tensor, parts: Widths, *, squared: bool) -> tuple[float, Tensor]:
    """`mean over batch and part of ‖e‖`, or of its square, and its gradient by x_hat, in the shape of `error`."""
    count = len(parts) * len(error)
    if squared:
        return float(error.square().sum()) / count, error * (-2 / count)
    grad, loss = torch.empty_like(error), 0.0
    for e, out in zip(error.split(parts, dim=1), grad.split(parts, dim=1), strict=True):
        norms = e.norm(dim=1, keepdim=True)
        loss += float(norms.sum())
        # The gradient of a norm at zero is taken as zero.
        torch.mul(e, (-1 / count) / norms.clamp_min(torch.finfo(e.dtype).tiny), out=out)
    return loss / count, grad


def add_norm_gradient(gradient: Tensor, decoder: Tensor, d_model: Widths, normalisation: str, by_norm: Tensor) -> None:
    """Adds the gradient by the decoder of `sum_j by_norm_j n_j` to `gradient: [latent, both]`, in place."""
    per_model, together = {"crosscoder": (1.0, 0.0), "sae": (0.0, 1.0), "mixed": (0.1, 1.0), "none": (0.0, 0.0)}[
        normalisation
    ]
    tiny = torch.finfo(decoder.dtype).tiny
    halves = [half.norm(dim=1).clamp_min(tiny) for half in decoder.split(d_model, dim=1)]
    whole = torch.stack(halves).norm(dim=0).clamp_min(tiny)  # squares of what is tiny are 0
    for out, rows, norms in zip(gradient.split(d_model, dim=1), decoder.split(d_model, dim=1), halves, strict=True):
        out.addcmul_(rows, (by_norm * (per_model / norms + together / whole))[:, None])


def _add_auxiliary(
    gradients: Weights, weights: Weights, operands: Operands, pre: Tensor, norms: Tensor, error: Tensor, dead: Dead
) -> float:
    """Adds the auxiliary loss's gradients in place and returns the loss, both weighted."""
    code = (pre[:, dead.latents] + weights.b_enc[dead.latents]).relu_()
    rows = operands.decoder[dead.latents]
    found = auxiliary_loss(code, norms[dead.latents], rows, operands.x, error, dead.num_taken)
    gradients.encoder.index_add_(0, dead.latents, found.encoder, alpha=dead.weight)
    gradients.b_enc.index_add_(0, dead.latents, found.b_enc, alpha=dead.weight)
    gradients.decoder.index_add_(0, dead.latents, found.decoder, alpha=dead.weight)
    return dead.weight * found.loss
