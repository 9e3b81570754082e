"""Where a training starts: first weights, and what its first tokens say of scales and biases."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from crosscope_proto.roles import BASE, CHAT
from crosscope_proto.specs import CrosscoderSpec
from crosscope_worker.training.active_code import Weights
from crosscope_worker.training.errors import TrainingError
from crosscope_worker.training.variants import Widths, absent_weights, first_weights

INITIAL_ROW_NORM = 0.4
"""Norm of each model's half of a decoder row at the start."""
_AT_ONCE = 4096
"""Tokens that are measured at once, so that measuring takes little memory beside the buffer."""


def initial_weights(spec: CrosscoderSpec, parts: Widths, seed: int, device: torch.device | str) -> Weights:
    """Random directions, equal for both models where their widths agree; the encoder is the decoder."""
    encoder = first_weights(spec.num_latents, INITIAL_ROW_NORM, parts, seed)
    decoder = encoder.clone()
    absent_weights(spec, parts, encoder, decoder)
    return Weights(
        encoder=encoder.to(device),
        b_enc=torch.zeros(spec.num_latents, device=device),
        decoder=decoder.to(device),
        b_dec=torch.zeros(sum(parts), device=device),
    )


def geometric_median(tokens: Tensor, iterations: int = 50) -> Tensor:
    """The point `[width]` with the smallest sum of distances to `tokens: [token, width]` (Weiszfeld's algorithm)."""
    point = tokens.mean(0)
    for _ in range(iterations):
        weights = 1 / (tokens - point).norm(dim=1, keepdim=True).clamp_min(1e-6)
        point = (weights * tokens).sum(0) / weights.sum()
    return point


def input_scales(tokens: Tensor, d_model: tuple[int, int]) -> tuple[float, float]:
    """Factors that bring each model's `tokens: [token, both]` to a mean squared norm of `d_model`.

    Raises TrainingError for activations that are zero everywhere.
    """
    base, chat = (_mean_square(part.split(_AT_ONCE)) for part in tokens.split(d_model, dim=1))
    if not (base > 0 and chat > 0):
        raise TrainingError("the activations of a model are zero everywhere; is the layer right?")
    return math.sqrt(d_model[BASE] / base), math.sqrt(d_model[CHAT] / chat)


def difference_scale(tokens: Tensor, d_model: tuple[int, int]) -> tuple[float, float]:
    """The factor, for both models, that brings `x^chat - x^base` to a mean squared norm of `d_model`.

    Raises TrainingError where the models' activations are the same.
    """
    pieces = (piece.split(d_model, dim=1) for piece in tokens.split(_AT_ONCE))
    size = _mean_square(chat - base for base, chat in pieces)
    if not size > 0:
        raise TrainingError("the models' activations do not differ; a dictionary of differences has nothing to learn")
    factor = math.sqrt(d_model[BASE] / size)
    return factor, factor


def _mean_square(pieces: Iterable[Tensor]) -> float:
    """The mean of `‖x‖²` over the rows of all `pieces: [token, width]`."""
    total, count = 0.0, 0
    for piece in pieces:
        total += float(piece.double().square().sum())
        count += len(piece)
    return total / count
