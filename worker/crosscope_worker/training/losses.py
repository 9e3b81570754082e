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


def add_norm_gradient(gradient: Tensor, decoder: Tensor, d_model: Widths, normalisation: str, by_norm: Tensor) -> None:
    """Adds the gradient by the decoder of `sum_j by_norm_j n_j` to `gradient: [latent, both]`, in place."""
    per_model, together = {"crosscoder": (1.0, 0.0), "sae": (0.0, 1.0), "mixed": (0.1, 1.0), "none": (0.0, 0.0)}[
        normalisation
    ]
    tiny = torch.finfo(decoder.dtype).tiny
    halves = [half.norm(dim=1).clamp_min(tiny) for half in decoder.split(d_model, dim=1)]
    whole = torch.stack(halves).norm(dim=0).clamp_min(tiny)  # the squares of tiny norms are 0
    for out, rows, norms in zip(gradient.split(d_model, dim=1), decoder.split(d_model, dim=1), halves, strict=True):
        out.addcmul_(rows, (by_norm * (per_model / norms + together / whole))[:, None])
