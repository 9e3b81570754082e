"""Losses that dictionaries share, and their gradients (math §2). Pure functions of tensors; knows no dictionary."""

import torch
from torch import Tensor

from crosscope_worker.dictionary.streams import Widths


def mean_size(error: Tensor, parts: Widths, *, squared: bool) -> tuple[Tensor, Tensor]:
    """`mean over batch and part of ‖e‖`, or of its square, and its gradient by x_hat in the shape of `error`."""
    count = len(parts) * len(error)
    if squared:
        return error.square().sum(dtype=torch.float64) / count, error * (-2 / count)
    grad, loss = torch.empty_like(error), error.new_zeros((), dtype=torch.float64)
    for e, out in zip(error.split(parts, dim=1), grad.split(parts, dim=1), strict=True):
        norms = e.norm(dim=1, keepdim=True)
        loss += norms.sum(dtype=torch.float64)
        # The gradient of a norm at zero is taken as zero.
        torch.mul(e, (-1 / count) / norms.clamp_min(torch.finfo(e.dtype).tiny), out=out)
    return loss / count, grad


def norm_gradient(decoder: Tensor, parts: Widths, normalisation: str, by_norm: Tensor) -> Tensor:
    """The gradient by the decoder of `sum_j by_norm_j n_j`: factors on the parts of its own rows, [part, latent]."""
    per_model, together = {"crosscoder": (1.0, 0.0), "sae": (0.0, 1.0), "mixed": (0.1, 1.0), "none": (0.0, 0.0)}[
        normalisation
    ]
    tiny = torch.finfo(decoder.dtype).tiny
    norms = torch.stack([part.norm(dim=1).clamp_min(tiny) for part in decoder.split(parts, dim=1)])
    whole = norms.norm(dim=0).clamp_min(tiny)  # the squares of tiny norms are 0
    return by_norm * (per_model / norms + together / whole)


def add_own_rows(gradient: Tensor, weights: Tensor, parts: Widths, factors: Tensor) -> None:
    """Adds `factors: [part, latent]` times the parts of `weights: [latent, width]` to a gradient, in place."""
    for out, rows, own in zip(gradient.split(parts, dim=1), weights.split(parts, dim=1), factors, strict=True):
        out.addcmul_(rows, own[:, None])
