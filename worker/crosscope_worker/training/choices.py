"""Which entries of a code are kept where the latents of all ranks compete: those that one rank would keep (math §3).

Each rank sends its candidates, as many as are kept in all at most, and all choose alike. Knows no dictionary and no
loss. One rank sends nothing.
"""

import torch
from torch import Tensor

from crosscope_worker.dictionary.sparse import Largest, batch_topk, rounding, strongest, widened
from crosscope_worker.dictionary.sparsifier import first_of, largest
from crosscope_worker.ranks import Ranks
from crosscope_worker.training.held import Held


def batch_choice(
    pre: Tensor, bias: Tensor, norms: Tensor, count: int, floor: float, latents: slice, held: Held
) -> Largest:
    """The held ones of the `count` largest positive entries of `(pre + bias) * norms` among `latents` of all ranks.

    `pre: [batch, latent held]`, `bias, norms: [latent held]`. As `sparse.batch_topk` where one rank holds all: ties go
    to the lower token, then to the lower latent, and `floor` changes the speed alone. `sure` is that of this rank.
    """
    rows = held.rows(latents)
    if held.ranks.size == 1:
        return batch_topk(pre, bias, norms, count, floor, rows)
    width, whole, first = rows.stop - rows.start, pre.shape[1], held.latents.start + rows.start
    if width != whole:
        pre, bias, norms = pre[:, rows].contiguous(), bias[rows], norms[rows]
    flat, values, every = _candidates(pre, bias, norms, count, floor, first, held)
    sure = torch.ones((), dtype=torch.bool, device=pre.device)
    if floor > 0 and len(every) < count:
        floor = 0.0
        flat, values, every = _candidates(pre, bias, norms, count, floor, first, held)
    smallest = every[:, 0].min() if len(every) else sure.new_zeros((), dtype=torch.float64)
    if len(every) > count:
        keep, smallest = _kept(values, _places(flat, width, first, held), every, count)
        flat = flat[keep]
    if floor > 0 and width:
        sure = smallest > floor + rounding(bias, norms, floor)
    return Largest(widened(flat, width, rows.start, whole), smallest.to(pre.dtype), sure)


def _candidates(
    pre: Tensor, bias: Tensor, norms: Tensor, count: int, floor: float, first: int, held: Held
) -> tuple[Tensor, Tensor, Tensor]:
    """Flat indices and values of this rank's candidates, [entry] each, and those of all ranks: [entry, value | place].

    All are float64, in which places and float32 values are exact.
    """
    flat, values = strongest(pre, bias, norms, count, floor)
    values = values.double()
    places = _places(flat, pre.shape[1], first, held)
    return flat, values, held.ranks.join(torch.stack([values, places], 1))


def _places(flat: Tensor, width: int, first: int, held: Held) -> Tensor:
    """The indices that entries of `[batch, width]` have in a code of all latents, [entry] float64."""
    return widened(flat, width, first, held.num_latents).double()


def _kept(values: Tensor, places: Tensor, every: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Which of `values` at `places` are among the `count` largest of `every: [entry, value | place]`, [entry] bool.

    Also returns the smallest of these. Ties go to the lower place. The host does not wait.
    """
    smallest = every[:, 0].topk(count, sorted=False).values.min()
    room = count - (every[:, 0] > smallest).sum()
    tied = torch.where(every[:, 0] == smallest, every[:, 1], torch.inf).sort().values
    last = tied.take(room - 1)
    return (values > smallest) | ((values == smallest) & (places <= last)), smallest


def token_choice(scaled: Tensor, k: int, num_latents: int, ranks: Ranks) -> Tensor:
    """The held ones of each token's `k` largest positive entries in all ranks' `scaled: [batch, latent held]`, a mask.

    `num_latents` are all that compete. Ties go to the lower latent. As `sparsifier.largest` where one rank holds all.
    """
    if ranks.size == 1:
        return largest(scaled, k)
    if k >= num_latents:
        return scaled > 0
    most = scaled.new_zeros(len(scaled), k)
    width = min(k, scaled.shape[1])
    most[:, :width] = scaled.topk(width, dim=1, sorted=False).values
    every = ranks.stack(most)
    smallest = every.transpose(0, 1).flatten(1).topk(k, dim=1, sorted=False).values.amin(1, keepdim=True)
    above, tied = (found.sum(2) for found in (every > smallest, every == smallest))
    room = k - above.sum(0) - tied[: ranks.rank].sum(0)
    return first_of(scaled, smallest, above[ranks.rank] + room.clamp_min_(0))
