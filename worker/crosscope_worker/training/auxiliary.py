"""The auxiliary loss that revives dead latents, and its gradients (math §2). Pure; knows no other loss."""

from typing import NamedTuple

import torch
from torch import Tensor

from crosscope_worker.training.active_code import product

_ROUNDING = 8
"""Deviations from the mean of so many times the resolution of numbers are rounding."""


class Auxiliary(NamedTuple):
    """The loss, unweighted, and its gradients by the dead latents' weights."""

    loss: float
    encoder: Tensor
    """[dead, both]."""
    b_enc: Tensor
    """[dead]."""
    decoder: Tensor
    """[dead, both]."""


def auxiliary_loss(code: Tensor, norms: Tensor, rows: Tensor, x: Tensor, error: Tensor, count: int) -> Auxiliary:
    """The dead latents' attempt at what the others leave.

    For every token the `count` largest of `code: [batch, dead]`, scaled by `norms: [dead]`, reconstruct the detached
    `error: [batch, both]` with `rows: [dead, both]`, without bias; the squared error of that is divided by the error's
    variance. Where that is nothing but rounding, as of a single token, loss and gradients are 0. `x: [batch, both]` is
    what the encoder read; it and `rows` are in the data type of products.

    Dense over the dead latents: four products of `batch · both · dead` and a few `[batch, dead]` blocks, so a step with
    most latents dead costs about a dense one.
    """
    top = torch.topk(code * norms, min(count, len(rows)), dim=1, sorted=False).indices
    code = torch.zeros_like(code).scatter_(1, top, code.gather(1, top))
    rest = error - product(code.to(rows.dtype), rows)
    variance = (error - error.mean(0)).square().sum()
    varies = variance > (_ROUNDING * torch.finfo(error.dtype).eps) ** 2 * error.square().sum()
    share = torch.where(varies, 1 / variance, 0.0)
    grad = (rest * (-2 * share)).to(rows.dtype)
    code_grad = product(grad, rows.T).mul_(code > 0)
    return Auxiliary(
        loss=float(rest.square().sum() * share),
        encoder=product(code_grad.to(x.dtype).T, x),
        b_enc=code_grad.sum(0),
        decoder=product(code.to(grad.dtype).T, grad),
    )
