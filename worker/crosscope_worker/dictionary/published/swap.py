"""Exchanges the two models of a crosscoder whose model 0 is the chat model."""

from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from crosscope_worker.dictionary.crosscoder import Crosscoder, CrosscoderError
from crosscope_worker.dictionary.keep import Keep

AnyCrosscoder = TypeVar("AnyCrosscoder", bound=Crosscoder)


def swapped(crosscoder: AnyCrosscoder) -> AnyCrosscoder:
    """The same function of (chat, base) as `crosscoder` is of (base, chat); codes are equal.

    A dictionary of `base - chat` becomes one of `chat - base` with decoder rows of the opposite sign. Raises
    CrosscoderError for a dictionary of one model, which says itself which one it reads.
    """
    is_difference = crosscoder.streams.is_difference
    if crosscoder.streams.is_single and not is_difference:
        raise CrosscoderError("a dictionary of one model has nothing to swap; say which one it reads")
    fields = _difference(crosscoder) if is_difference else _exchanged(crosscoder)
    (base, chat), (base_scale, chat_scale) = crosscoder.d_model, crosscoder.input_scale
    return replace(
        crosscoder,
        **fields,
        W_enc=_halves(crosscoder, crosscoder.W_enc.T, 1).T,
        d_model=(chat, base),
        input_scale=(chat_scale, base_scale),
    )


def _exchanged(crosscoder: Crosscoder) -> dict[str, Tensor | Keep | None]:
    mean = crosscoder.input_mean
    return {
        "W_dec": _halves(crosscoder, crosscoder.W_dec, 1),
        "b_dec": _halves(crosscoder, crosscoder.b_dec, 0),
        "input_mean": None if mean is None else _halves(crosscoder, mean, 0),
        "keep": crosscoder.keep.swapped(),
    }


def _difference(crosscoder: Crosscoder) -> dict[str, Tensor | Keep | None]:
    mean = crosscoder.input_mean
    return {"W_dec": -crosscoder.W_dec, "b_dec": -crosscoder.b_dec, "input_mean": None if mean is None else -mean}


def _halves(crosscoder: Crosscoder, tensor: Tensor, dim: int) -> Tensor:
    """The models' parts along `dim`, which is the axis `both`, in the other order."""
    base, chat = tensor.split(crosscoder.d_model, dim)
    return torch.cat([chat, base], dim)
