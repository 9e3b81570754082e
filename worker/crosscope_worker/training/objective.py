"""Losses of the crosscoder and their gradients, written out (math §2, §3). Pure: nothing here keeps or moves state.

After the encoder's product all work is on active entries: where a code entry is zero, so is every gradient through it.
Products may be made in bfloat16; what they give, sums, losses and gradients stay float32.
tests/worker/training/test_objective.py checks every gradient against autograd in float64.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from crosscope_worker.ranks import Ranks
from crosscope_worker.training.active_code import ActiveCode, EntryCode, Scratch, Selected, Weights, product
from crosscope_worker.training.auxiliary import auxiliary_loss
from crosscope_worker.training.entry_sums import EntrySums, RowGradient, add_rows
from crosscope_worker.training.losses import add_own_rows, norm_gradient
from crosscope_worker.training.variants.variant import Batch, Operands, Reconstruction, Variant


class Gradients(NamedTuple):
    """The gradients of the weights, as `active_code.Weights`."""

    encoder: RowGradient
    b_enc: Tensor
    decoder: RowGradient
    b_dec: Tensor

    def made(self) -> Weights | None:
        """The same as matrices, if they are."""
        if isinstance(self.encoder, Tensor) and isinstance(self.decoder, Tensor):
            return Weights(self.encoder, self.b_enc, self.decoder, self.b_dec)
        return None


@dataclass(frozen=True)
class Step:
    """The loss and gradients of one batch, and its figures. Numbers are those of all latents, equal on all ranks."""

    loss: float
    gradients: Gradients
    fired: Tensor
    """[latent held] bool: fired in this batch."""
    smallest_kept: tuple[float, ...]
    """The smallest scaled activation that was kept, for each threshold to be estimated; 0 if nothing fired."""
    num_active: int
    """Number of active entries of the code."""
    squared_error: tuple[float, ...]
    """Sum of squared errors of each part of the reconstruction."""
    extra: dict[str, Tensor]
    """Gradients by the variant's own tensors, by name."""


class Counted:
    """The number of true entries of each rank's mask, which the device counts while the host goes on."""

    def __init__(self, mask: Tensor, ranks: Ranks) -> None:
        self._numbers, self._done = ranks.stack(mask.sum()), None
        if mask.is_cuda:
            there = torch.empty(self._numbers.shape, dtype=torch.int64, pin_memory=True)
            self._numbers = there.copy_(self._numbers, non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record()

    def by_rank(self) -> list[int]:
        """The numbers; the host waits for them."""
        if self._done is not None:
            self._done.synchronize()
        return self._numbers.tolist()


class Dead(NamedTuple):
    """The dead latents, and how the auxiliary loss uses them."""

    latents: Tensor
    """[dead] int64: rows of the held ones."""
    num_all: int
    """Dead latents of all ranks."""
    num_taken: int
    """Dead latents that each token uses."""
    weight: float
    """Weight of the auxiliary loss."""


def compute_step(
    weights: Weights,
    x: Tensor,
    variant: Variant,
    *,
    extra: Mapping[str, Tensor] | None = None,
    dead: Tensor | None = None,
    aux_weight: float = 0.0,
    floors: Sequence[float] = (),
    dtype: torch.dtype | None = None,
    rounded: tuple[Tensor, Tensor] | None = None,
    scratch: Scratch | None = None,
    unmade: bool = False,
) -> Step:
    """Loss and gradients of one batch, by the weights of the latents that `variant.held` says.

    All ranks call it with the same `x`. Each adds its latents' part to sums over all latents: reconstructions, penalties
    and counts. `x: [batch, width]` is float32, as the dictionary reads it; `extra` are the variant's own learnt tensors. `dead:
    [latent held]` bool and `aux_weight` belong to the auxiliary loss. `floors` are guesses at each threshold's smallest kept
    scaled activation; they change the speed, not the result. Products are made in `dtype`, by default that of `x`;
    `rounded` are encoder and decoder in it. With `scratch`, the gradients lie in it, and the next step with the same
    `scratch` overwrites them. `unmade`: those of encoder and decoder come as EntrySums if the code's form allows it.
    """
    dtype = dtype or x.dtype
    operands = Operands(x.to(dtype), *(rounded or (weights.encoder.to(dtype), weights.decoder.to(dtype))))
    scratch = scratch or Scratch()
    pre = product(operands.x, operands.encoder.T, scratch.take("pre", x, len(x), len(weights.b_enc)))
    batch = Batch(x, pre, weights, extra or {}, operands, floors)
    ranks, dead_counts = variant.ranks, None
    if aux_weight > 0 and dead is not None:
        dead_counts = Counted(dead, ranks)
    selected, smallest = variant.select(batch)
    reconstruction = variant.reconstruct(batch, selected)
    gradients, penalties = _gradients(reconstruction, batch, variant, scratch, unmade)
    loss, error = ranks.once(reconstruction.loss) + penalties, reconstruction.error
    # By now the host has waited for a result that is later than the counts.
    if dead is not None and dead_counts is not None and (number := sum(by_rank := dead_counts.by_rank())):
        own = dead.nonzero_static(size=by_rank[ranks.rank]).squeeze(1)
        found_dead = Dead(own, number, max(variant.widths) // 2, aux_weight)
        loss = loss + ranks.once(_add_auxiliary(gradients, batch, variant, error, found_dead))
    made = gradients.made()
    further = variant.further(batch, reconstruction, made)
    if made is not None:
        variant.constrain(made.encoder, made.decoder)
    fired, num_active = _activity(selected)
    squares = [ranks.once(part.square().sum(dtype=torch.float64)) for part in error.split(variant.widths, dim=1)]
    values, sure = [ranks.once(each.value) for each in smallest], [each.sure for each in smallest]
    (total, active), sizes, kept, certain = _on_host(ranks, [loss + further.loss, num_active], squares, values, sure)
    if any(number < ranks.size for number in certain):
        more = {"extra": extra, "dead": dead, "aux_weight": aux_weight, "scratch": scratch, "unmade": unmade}
        return compute_step(weights, x, variant, dtype=dtype, rounded=rounded, **more)
    return Step(total, gradients, fired, tuple(kept), round(active), tuple(sizes), further.extra)


def _on_host(ranks: Ranks, *groups: Sequence[Tensor]) -> list[list[float]]:
    """The numbers of all groups, summed over ranks; the host waits for them once."""
    numbers = torch.stack([number.double() for group in groups for number in group])
    found = iter(ranks.sum(numbers).tolist())
    return [[next(found) for _ in group] for group in groups]


class _CodeGradients(NamedTuple):
    """What codes add to the gradients, and their sparsity penalty."""

    encoder: RowGradient
    """[latent of the codes, width]."""
    b_enc: Tensor
    decoder: RowGradient
    """[latent of the codes, width of their columns]."""
    penalty: Tensor | float


def _gradients(
    reconstruction: Reconstruction, batch: Batch, variant: Variant, scratch: Scratch, unmade: bool
) -> tuple[Gradients, Tensor | float]:
    """The gradients of all pieces, and their penalties: those of other columns lie side by side."""
    pieces = [piece for piece in reconstruction.pieces if len(piece[0].norms)]  # this rank holds none of the others
    (selected, grad), *others = pieces
    if unmade and not others and isinstance(selected.code, EntryCode):
        found = _code_gradients(selected, grad, batch, variant, None)
        return Gradients(found.encoder, found.b_enc, found.decoder, reconstruction.b_dec), found.penalty
    starts = list(dict.fromkeys(selected.columns.start for selected, _ in pieces))
    groups = [[piece for piece in pieces if piece[0].columns.start == start] for start in starts]
    found = [_column_gradients(group, batch, variant, scratch) for group in groups]
    gradients = Gradients(
        encoder=_sum([_made(each.encoder) for each in found]),
        b_enc=_sum([each.b_enc for each in found]),
        decoder=_stacked([_made(each.decoder) for each in found], dim=1),
        b_dec=reconstruction.b_dec,
    )
    return gradients, sum(each.penalty for each in found)


def _column_gradients(
    pieces: list[tuple[Selected, Tensor]], batch: Batch, variant: Variant, scratch: Scratch
) -> _CodeGradients:
    """The gradients of pieces of equal columns, each written to its own rows."""
    columns, num_latents = pieces[0][0].columns, len(batch.weights.b_enc)
    encoder, decoder = (
        scratch.take(f"{name} from column {columns.start}", batch.weights.b_enc, num_latents, width)
        for name, width in (("encoder", batch.x.shape[1]), ("decoder", len(range(batch.x.shape[1])[columns])))
    )
    found = [
        _code_gradients(selected, grad, batch, variant, (encoder[selected.latents], decoder[selected.latents]))
        for selected, grad in pieces
    ]
    if len(found) == 1:
        return found[0]
    for (selected, _), each in zip(pieces, found, strict=True):
        _put(_made(each.encoder), encoder[selected.latents])
        _put(_made(each.decoder), decoder[selected.latents])
    return _CodeGradients(encoder, _stacked([each.b_enc for each in found]), decoder, sum(f.penalty for f in found))


def _put(rows: Tensor, place: Tensor) -> None:
    """Copies `rows` to `place`, unless they were made there."""
    if rows.data_ptr() != place.data_ptr():
        place.copy_(rows)


def _made(gradient: RowGradient) -> Tensor:
    assert isinstance(gradient, Tensor)
    return gradient


def _code_gradients(
    selected: Selected, grad: Tensor, batch: Batch, variant: Variant, out: tuple[Tensor, Tensor] | None
) -> _CodeGradients:
    """The gradients of one piece, made in `out` (encoder, decoder) where the way they are made takes it; not made
    without `out`, which a sparse code of all latents and columns allows.
    """
    code, operands, latents = selected.code, batch.operands, selected.latents
    rows, own_grad = operands.decoder[latents], _columns(grad, selected.columns).to(operands.x.dtype)
    code_grad = code.products(own_grad, _columns(rows, selected.columns))
    decoder, loss = _per_latent(code, code.values, own_grad, variant, out and out[1]), 0.0
    if (penalty := variant.penalty(selected, len(grad))) is not None:
        code_grad += penalty.by_code
        own_rows, normalisation = batch.weights.decoder[latents], variant.spec.code_normalisation
        factors = norm_gradient(own_rows, variant.widths, normalisation, penalty.by_norm)
        if isinstance(decoder, EntrySums):
            decoder.own = factors
        else:
            add_own_rows(decoder, own_rows, variant.widths, factors)
        loss = penalty.loss
    encoder = _per_latent(code, code_grad, operands.x, variant, out and out[0])
    return _CodeGradients(encoder, code.sums(code_grad), decoder, loss)


def _per_latent(code: ActiveCode, values: Tensor, tokens: Tensor, variant: Variant, out: Tensor | None) -> RowGradient:
    if out is not None:
        return code.per_latent(values, tokens, out)
    assert isinstance(code, EntryCode)
    return EntrySums(code.order, values, tokens, variant.widths)


def _stacked(tensors: list[Tensor], dim: int = 0) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)


def _sum(tensors: list[Tensor]) -> Tensor:
    first, *others = tensors
    for other in others:
        first += other
    return first


def _columns(rows: Tensor, columns: slice) -> Tensor:
    return rows[:, columns].contiguous()


def _activity(selected: list[Selected]) -> tuple[Tensor, Tensor]:
    """Which latents fired, [latent], and the number of active entries.

    A decoupled code has an entry for each model; each counts half.
    """
    active = [(each.code.values > 0).to(each.code.values.dtype) for each in selected]
    counts = torch.stack([each.code.sums(ones) for each, ones in zip(selected, active, strict=True)])
    return counts.sum(0) > 0, counts.sum(dtype=torch.float64) / len(selected)


def _add_auxiliary(gradients: Gradients, batch: Batch, variant: Variant, error: Tensor, dead: Dead) -> Tensor:
    """Adds the auxiliary loss's gradients in place and returns the loss, both weighted."""
    own, operands = dead.latents, batch.operands
    code = (batch.pre[:, own] + batch.weights.b_enc[own]).relu_()
    norms, rows = variant.norms(batch.weights.decoder)[own], operands.decoder[own]
    found = auxiliary_loss(code, norms, rows, operands.x, error, dead.num_taken, variant.ranks, dead.num_all)
    if len(own):
        add_rows(gradients.encoder, own, found.encoder, dead.weight)
        gradients.b_enc.index_add_(0, own, found.b_enc, alpha=dead.weight)
        add_rows(gradients.decoder, own, found.decoder, dead.weight)
    return dead.weight * found.loss
