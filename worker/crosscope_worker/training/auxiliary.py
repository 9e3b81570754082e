"""The auxiliary loss that revives dead latents, and its gradients (math §2). Pure; knows no other loss."""

from typing import NamedTuple

import torch
from torch import Tensor

from crosscope_worker.ranks import Ranks
from crosscope_worker.training.active_code import product
from crosscope_worker.training.choices import token_choice

_ROUNDING = 8
"""An error is rounding noise if its deviations from its mean are below this multiple of the numbers' resolution."""


class Auxiliary(NamedTuple):
    """The unweighted loss, and its gradients by the dead latents' weights."""

    loss: Tensor
    encoder: Tensor
    """[dead, both]."""
    b_enc: Tensor
    """[dead]."""
    decoder: Tensor
    """[dead, both]."""


def auxiliary_loss(
    code: Tensor, norms: Tensor, rows: Tensor, x: Tensor, error: Tensor, count: int, ranks: Ranks, num_dead: int
) -> Auxiliary:
    """The dead latents' attempt to reconstruct the error of the others.

    For every token, the `count` largest entries of `code: [batch, dead]`, scaled by `norms: [dead]`, reconstruct the
    detached `error: [batch, both]` with `rows: [dead, both]`, without bias. The loss is the squared error of this
    reconstruction, divided by the variance of `error`. Where that variance is rounding noise, as with a single token,
    loss and gradients are 0. `x: [batch, both]` is what the encoder read; `x` and `rows` have the data type in which
    products are made.

    Of several `ranks` each brings its own dead latents, or none, of `num_dead` in all. The largest entries are those of
    all, the reconstruction is their sum, and all return the same loss.

    The work is dense over the dead latents: four products of `batch · both · dead` and a few `[batch, dead]` blocks. So
    a step in which most latents are dead costs about as much as a dense step.
    """
    code = _largest(code, norms, count, ranks, num_dead)
    rest = error - ranks.sum(product(code.to(rows.dtype), rows))
    variance = (error - error.mean(0)).square().sum()
    varies = variance > (_ROUNDING * torch.finfo(error.dtype).eps) ** 2 * error.square().sum()
    share = torch.where(varies, 1 / variance, 0.0)
    grad = (rest * (-2 * share)).to(rows.dtype)
    code_grad = product(grad, rows.T).mul_(code > 0)
    return Auxiliary(
        loss=rest.square().sum() * share,
        encoder=product(code_grad.to(x.dtype).T, x),
        b_enc=code_grad.sum(0),
        decoder=product(code.to(grad.dtype).T, grad),
    )


def _largest(code: Tensor, norms: Tensor, count: int, ranks: Ranks, num_dead: int) -> Tensor:
    """`code` with zeros in place of what is not among its token's `count` largest, scaled by `norms`, of all ranks."""
    if ranks.size > 1:
        return code * token_choice(code * norms, count, num_dead, ranks)
    top = torch.topk(code * norms, min(count, num_dead), dim=1, sorted=False).indices
    return torch.zeros_like(code).scatter_(1, top, code.gather(1, top))
