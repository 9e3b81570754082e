"""Turns weights with a model axis, as the families store them, into weights along the axis `both`."""

from typing import Any

from torch import Tensor

from crosscope_worker.dictionary.published.files import Files


def sizes(files: Files, name: str) -> tuple[int, int]:
    """d_model and the number of latents, from the encoder's weights `name: [2, d_model, latent]`.

    Raises CrosscoderError when there are not two models.
    """
    shape = tuple(files.tensors[name].shape)
    if len(shape) != 3:
        raise files.error(f"{name} has shape {shape}; [2, d_model, latents] is known")
    if shape[0] != 2:
        raise files.error(f"{name} has shape {shape}, of {shape[0]} models or layers; a pair has 2")
    return shape[1], shape[2]


def weight_fields(W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor) -> dict[str, Any]:
    """A Crosscoder's weights and d_model.

    `W_enc: [2, d_model, latent]`, `b_enc: [latent]`, `W_dec: [2, latent, d_model]`, `b_dec: [2, d_model]`.
    """
    models, d_model, latents = W_enc.shape
    both = models * d_model
    return {
        "W_enc": W_enc.reshape(both, latents).T.contiguous().T,
        "b_enc": b_enc.contiguous(),
        "W_dec": W_dec.transpose(0, 1).reshape(latents, both).contiguous(),
        "b_dec": b_dec.reshape(both),
        "d_model": (d_model, d_model),
    }


def per_head_bias(bias: Tensor) -> Tensor:
    """An encoder bias [latent], or [2, latent] whose sum over models enters the code."""
    return bias.sum(dim=0) if bias.ndim == 2 else bias
