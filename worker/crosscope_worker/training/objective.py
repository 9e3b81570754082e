"""Losses of the crosscoder and their gradients, written out (math §2, §3). Pure: nothing here keeps or moves state.

After the encoder's product all work is on active pairs: where a code entry is zero, so is every gradient through it.
The same formulas run on a dense code while it is too full for that to pay, as it is in the first steps of an L1 run.
tests/worker/test_objective.py checks every gradient against autograd in float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from crosscope_proto.recipe import CrosscoderSpec
from crosscope_proto.roles import BASE
from crosscope_worker.crosscoder import code_norms
from crosscope_worker.sparse import SparseCode, batch_topk, by_latent, decode_pairs, pair_products, places, sparse_relu
from crosscope_worker.training.variants import Widths, budgets, constrain, penalties

DENSE_ABOVE = 0.05
"""Share of active entries above which the dense formulas are faster (two CPU cores, width 512 to 1 024)."""


class Weights(NamedTuple):
    """A crosscoder's parameters, or their gradients; encoder and decoder one row a latent."""

    encoder: Tensor
    """[latent, both]."""
    b_enc: Tensor
    """[latent]."""
    decoder: Tensor
    """[latent, both]."""
    b_dec: Tensor
    """[both]."""


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


class ActiveCode(Protocol):
    """A code with the products that gradients need; sparse or dense."""

    def decode(self, rows: Tensor) -> Tensor:
        """`f @ rows`, [batch, width]."""
        ...

    def products(self, tokens: Tensor, rows: Tensor) -> Tensor:
        """`tokens @ rows.T` where the code is active, in the shape of its values."""
        ...

    def per_latent(self, values: Tensor, tokens: Tensor) -> Tensor:
        """`values.T @ tokens`, [latent, width]."""
        ...

    def sums(self, values: Tensor) -> Tensor:
        """`values` summed over tokens, [latent]."""
        ...

    def spread(self, latents: Tensor) -> Tensor:
        """`latents: [latent]` at every active entry, in the shape of its values."""
        ...

    values: Tensor


class PairCode:
    """An ActiveCode of (token, latent, value) pairs."""

    def __init__(self, code: SparseCode, num_latents: int) -> None:
        self.code = code
        self.values = code.values
        self._num_latents = num_latents
        self._by_latent = by_latent(code, num_latents)

    def decode(self, rows: Tensor) -> Tensor:
        """See ActiveCode."""
        return decode_pairs(self.code, rows)

    def products(self, tokens: Tensor, rows: Tensor) -> Tensor:
        """See ActiveCode."""
        return pair_products(self.code, tokens, rows)

    def per_latent(self, values: Tensor, tokens: Tensor) -> Tensor:
        """See ActiveCode."""
        return self._by_latent.products(values, tokens)

    def sums(self, values: Tensor) -> Tensor:
        """See ActiveCode."""
        return values.new_zeros(self._num_latents).index_add_(0, self.code.latents, values)

    def spread(self, latents: Tensor) -> Tensor:
        """See ActiveCode."""
        return latents[self.code.latents]


class DenseCode:
    """An ActiveCode that holds every entry."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self._active = values > 0

    def decode(self, rows: Tensor) -> Tensor:
        """See ActiveCode."""
        return self.values @ rows

    def products(self, tokens: Tensor, rows: Tensor) -> Tensor:
        """See ActiveCode."""
        return (tokens @ rows.T).mul_(self._active)

    def per_latent(self, values: Tensor, tokens: Tensor) -> Tensor:
        """See ActiveCode."""
        return values.T @ tokens

    def sums(self, values: Tensor) -> Tensor:
        """See ActiveCode."""
        return values.sum(0)

    def spread(self, latents: Tensor) -> Tensor:
        """See ActiveCode."""
        return latents * self._active


@dataclass(frozen=True)
class Selected:
    """A batch's code after sparsification, as far as it decodes to some of the columns of the axis `both`."""

    code: ActiveCode
    columns: slice
    norms: Tensor
    """[latent]; what its entries were scaled with."""


def select(
    pre: Tensor, weights: Weights, spec: CrosscoderSpec, d_model: Widths, floors: Sequence[float]
) -> tuple[list[Selected], tuple[float, ...]]:
    """The code of `relu(pre + b_enc)`, one for each model if decoupled, and each budget's smallest kept value."""
    whole = slice(0, sum(d_model))
    norms = code_norms(weights.decoder, d_model, spec.code_normalisation)
    shares = budgets(spec)
    if not shares:
        return [Selected(active_code(pre, weights.b_enc, None), whole, norms)], ()
    kept, smallest = [], []
    for budget, floor in zip(shares, floors or (0.0,) * len(shares), strict=True):
        columns, own_norms = whole, norms
        if budget.model is not None:
            columns = slice(0, d_model[BASE]) if budget.model == BASE else slice(d_model[BASE], None)
            own_norms = weights.decoder[:, columns].norm(dim=1)
        flat, least = batch_topk(pre, weights.b_enc, own_norms, budget.k * len(pre), floor, budget.latents)
        smallest.append(least)
        kept.append((flat, columns, own_norms))
    if len(kept) > 1 and shares[0].model is None:
        kept = [(torch.cat([flat for flat, _, _ in kept]).sort().values, whole, norms)]
    codes = [Selected(active_code(pre, weights.b_enc, flat), columns, own) for flat, columns, own in kept]
    return codes, tuple(smallest)


def active_code(pre: Tensor, bias: Tensor, flat: Tensor | None) -> ActiveCode:
    """The entries of `relu(pre + bias)`, `[batch, latent]`, at ascending flattened places, or all that are positive.

    In whichever form is faster at its density.
    """
    if flat is None:
        positive = pre > -bias
        if int(torch.count_nonzero(positive)) > DENSE_ABOVE * pre.numel():
            return DenseCode((pre + bias).relu_())
        flat = places(positive)
    code = sparse_relu(flat, pre, bias)
    if len(flat) > DENSE_ABOVE * pre.numel():
        return DenseCode(code.dense(pre.shape[1]))
    return PairCode(code, pre.shape[1])


def compute_step(
    weights: Weights,
    x: Tensor,
    spec: CrosscoderSpec,
    d_model: Widths,
    *,
    dead: Tensor | None = None,
    aux_weight: float = 0.0,
    floors: Sequence[float] = (),
) -> Step:
    """Loss and gradients of one batch.

    `x: [batch, both]` float32, as the dictionary reads it; `d_model` are the widths of its parts. `dead: [latent]` bool
    and `aux_weight` are the auxiliary loss of variants with k. `floors` are guesses at each budget's smallest kept
    scaled activation; they change the speed, not the result.
    """
    pre = x @ weights.encoder.T
    selected, smallest = select(pre, weights, spec, d_model, floors)
    error = x - weights.b_dec
    for each in selected:
        error[:, each.columns] -= each.code.decode(_columns(weights.decoder, each.columns))
    loss, grad = reconstruction_loss(error, d_model, spec)
    found = [_code_gradients(each, weights, x, grad, spec, d_model) for each in selected]
    loss += sum(each.penalty for each in found)
    gradients = Weights(
        encoder=_sum([each.encoder for each in found]),
        b_enc=_sum([each.b_enc for each in found]),
        decoder=found[0].decoder if len(found) == 1 else torch.cat([each.decoder for each in found], 1),
        b_dec=grad.sum(0),
    )
    if aux_weight > 0 and dead is not None and bool(dead.any()):
        norms = code_norms(weights.decoder, d_model, spec.code_normalisation)
        loss += aux_weight * add_aux_gradients(gradients, weights, x, pre, error, norms, dead, d_model, aux_weight)
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
    selected: Selected, weights: Weights, x: Tensor, grad: Tensor, spec: CrosscoderSpec, d_model: Widths
) -> _CodeGradients:
    code, own_grad = selected.code, _columns(grad, selected.columns)
    code_grad = code.products(own_grad, _columns(weights.decoder, selected.columns))
    decoder, loss = code.per_latent(code.values, own_grad), 0.0
    if (penalty := penalties(spec, weights.b_enc)) is not None:
        penalty /= len(x)
        code_grad += code.spread(penalty * selected.norms)
        totals = penalty * code.sums(code.values)
        add_norm_gradient(decoder, weights.decoder, d_model, spec.code_normalisation, totals)
        loss = float(totals @ selected.norms)
    return _CodeGradients(code.per_latent(code_grad, x), code.sums(code_grad), decoder, loss)


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
    whole = torch.stack(halves).norm(dim=0)
    for out, rows, norms in zip(gradient.split(d_model, dim=1), decoder.split(d_model, dim=1), halves, strict=True):
        out.addcmul_(rows, (by_norm * (per_model / norms + together / whole))[:, None])


def add_aux_gradients(
    gradients: Weights,
    weights: Weights,
    x: Tensor,
    pre: Tensor,
    error: Tensor,
    norms: Tensor,
    dead: Tensor,
    d_model: Widths,
    aux_weight: float,
) -> float:
    """Adds the auxiliary loss's gradients in place and returns the loss, unweighted (math §2).

    For every token the `d_model // 2` largest dead latents reconstruct the detached error without bias; the squared
    error of that is divided by the error's variance. Dense over the dead latents: four products of
    `batch · both · dead` and a few `[batch, dead]` blocks, so a step with most latents dead costs about a dense one.
    """
    latents = dead.nonzero().squeeze(1)
    count = min(max(d_model) // 2, len(latents))
    values = (pre[:, latents] + weights.b_enc[latents]).relu_()
    top = torch.topk(values * norms[latents], count, dim=1, sorted=False).indices
    code = torch.zeros_like(values).scatter_(1, top, values.gather(1, top))
    rows = weights.decoder[latents]
    rest = error - code @ rows
    variance = (error - error.mean(0)).square().sum().clamp_min(torch.finfo(error.dtype).tiny)
    grad = rest * (-2 * aux_weight / variance)
    code_grad = (grad @ rows.T) * (code > 0)
    gradients.encoder.index_add_(0, latents, code_grad.T @ x)
    gradients.b_enc.index_add_(0, latents, code_grad.sum(0))
    gradients.decoder.index_add_(0, latents, code.T @ grad)
    return float(rest.square().sum() / variance)
