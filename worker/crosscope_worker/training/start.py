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
from crosscope_worker.training.held import Held
from crosscope_worker.training.variants import Variant

INITIAL_ROW_NORM = 0.4
"""Norm of each model's half of a decoder row at the start."""
_DRAWN = 1024
"""Latents whose initial rows are drawn at once, a multiple of 16, so that they take little memory beside the own."""
_AT_ONCE = 4096
"""Tokens that are read at once, so that the scales take little memory beside the buffer."""


def initial_weights(variant: Variant, seed: int, device: torch.device | str) -> Weights:
    """The held rows of weights with random decoder directions, equal for both models where their widths agree; the
    encoder is the decoder.
    """
    encoder = _directions(variant.held, variant.widths, seed)
    decoder = encoder.clone()
    variant.absent(encoder, decoder)
    return Weights(
        encoder=encoder.to(device),
        b_enc=torch.zeros(len(encoder), device=device),
        decoder=decoder.to(device),
        b_dec=torch.zeros(sum(variant.widths), device=device),
    )


def _directions(held: Held, widths: Widths, seed: int) -> Tensor:
    """Random rows, [latent held, width], each part of norm INITIAL_ROW_NORM; the same in both parts where widths agree.

    Every rank draws the numbers of all latents, a piece after the other, and keeps those of its own.
    """
    generator, own = torch.Generator().manual_seed(seed), held.latents
    widest, drawn = torch.empty(len(held), max(widths)), 0
    for count in _pieces(held.num_latents):
        piece = torch.randn(count, max(widths), generator=generator)
        first, last = max(drawn, own.start), min(drawn + count, own.stop)
        if first < last:
            widest[first - own.start : last - own.start] = piece[first - drawn : last - drawn]
        drawn += count
    halves = [torch.nn.functional.normalize(widest[:, :width], dim=1) for width in widths]
    return INITIAL_ROW_NORM * torch.cat(halves, 1)


def _pieces(num_latents: int) -> list[int]:
    """Numbers of latents that are drawn at once.

    Torch draws normal numbers in blocks of 16, of which the last overlaps the one before where they do not fit. So
    pieces of whole blocks, and one with what remains, hold the numbers of a single draw.
    """
    pieces = [_DRAWN] * max(1, num_latents // _DRAWN)
    return [*pieces[:-1], num_latents - _DRAWN * (len(pieces) - 1)]


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
