"""The start of a training: initial weights, and the scales and the bias that its first tokens give."""

import math
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from crosscope_worker.dictionary.streams import Streams, Widths
from crosscope_worker.ranks import ALONE, Ranks
from crosscope_worker.training.active_code import Weights
from crosscope_worker.training.errors import TrainingError
from crosscope_worker.training.variants import Variant

INITIAL_ROW_NORM = 0.4
"""Norm of each model's half of a decoder row at the start."""
_AT_ONCE = 4096
"""Tokens that are read at once, so that the scales take little memory beside the buffer."""


def initial_weights(variant: Variant, seed: int, device: torch.device | str) -> Weights:
    """Weights with random decoder directions, equal for both models where their widths agree; the encoder is the
    decoder.
    """
    num_latents = variant.spec.num_latents
    encoder = _directions(num_latents, variant.widths, seed)
    decoder = encoder.clone()
    variant.absent(encoder, decoder)
    return Weights(
        encoder=encoder.to(device),
        b_enc=torch.zeros(num_latents, device=device),
        decoder=decoder.to(device),
        b_dec=torch.zeros(sum(variant.widths), device=device),
    )


def _directions(num_latents: int, widths: Widths, seed: int) -> Tensor:
    """Random rows, [latent, width], each part of norm INITIAL_ROW_NORM; the same in both parts where widths agree."""
    generator = torch.Generator().manual_seed(seed)
    widest = torch.randn(num_latents, max(widths), generator=generator)
    halves = [torch.nn.functional.normalize(widest[:, :width], dim=1) for width in widths]
    return INITIAL_ROW_NORM * torch.cat(halves, 1)


def geometric_median(tokens: Tensor, iterations: int = 50) -> Tensor:
    """The point `[width]` with the smallest sum of distances to `tokens: [token, width]` (Weiszfeld's algorithm)."""
    point = tokens.mean(0)
    for _ in range(iterations):
        weights = 1 / (tokens - point).norm(dim=1, keepdim=True).clamp_min(1e-6)
        point = (weights * tokens).sum(0) / weights.sum()
    return point


def input_scales(
    streams: Streams, held: Sequence[Tensor], d_model: tuple[int, int], ranks: Ranks = ALONE
) -> tuple[float, float]:
    """Factors (base, chat) that bring each part of the dictionary's input to a mean squared norm equal to its width.

    The input is computed from `held`, the first tokens `[token, both]` of each of this rank's streams; sums are added
    up in the order of streams. Raises TrainingError for a part that is zero everywhere.
    """
    widths = streams.widths(d_model)
    of_streams: list[tuple[int, list[float]]] = []
    for tokens in held:
        totals = [0.0] * len(widths)
        for piece in tokens.split(_AT_ONCE) if len(tokens) else ():
            for index, part in enumerate(streams.parts(piece, d_model)):
                totals[index] += float(part.double().square().sum())
        of_streams.append((len(tokens), totals))
    found = list(chain.from_iterable(ranks.everyone(of_streams)))
    number = sum(each for each, _ in found)
    totals = [sum(each) for each in zip(*(each for _, each in found), strict=True)]
    if not all(total > 0 for total in totals):
        raise TrainingError(streams.vanished)
    return streams.scales([math.sqrt(width / (total / number)) for width, total in zip(widths, totals, strict=True)])
