"""Writes a crosscoder in the dictionary_learning forks' hub layout: config.json and model.safetensors.

Lossless for what that layout can hold; what it cannot hold is refused with a sentence, nothing is approximated.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from crosscope_proto.roles import BASE, CHAT
from crosscope_worker.crosscoder import DIFFERENCE, Crosscoder, CrosscoderError, read_manifest
from crosscope_worker.published.dictionary_learning import BATCH_TOPK_CLASS, L1_CLASS, NORMALISATIONS

_SPARSIFIED = "batch_topk"


def export_version(version: Path, target: Path) -> None:
    """Exports a version folder of the artefact; see `export_hub`."""
    recipe = read_manifest(version).recipe.get("crosscoder")
    k = recipe.get("k") if isinstance(recipe, dict) else None
    export_hub(Crosscoder.load(version), target, k if isinstance(k, int) else None)


def export_hub(crosscoder: Crosscoder, target: Path, k: int | None = None) -> None:
    """Writes config.json and model.safetensors into the new folder `target`.

    `k` is the mean number of active latents that training aimed at, which the layout stores of a thresholded code.
    Raises CrosscoderError when the layout cannot hold the crosscoder or `target` exists; OSError when it cannot be
    written.
    """
    tensors, config = _tensors(crosscoder, k), _config(crosscoder)
    try:
        target.mkdir(parents=True)
    except FileExistsError as error:
        raise CrosscoderError(f"{target} exists; name a new folder") from error
    save_file(
        {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, target / "model.safetensors"
    )
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _is_thresholded(crosscoder: Crosscoder) -> bool:
    return crosscoder.threshold is not None or crosscoder.model_thresholds is not None


def _config(crosscoder: Crosscoder) -> dict[str, Any]:
    return {
        "activation_dim": crosscoder.d_model[BASE],
        "dict_size": crosscoder.num_latents,
        "num_layers": 2,
        "code_normalization": crosscoder.code_normalisation.upper(),
        "dict_class": BATCH_TOPK_CLASS if _is_thresholded(crosscoder) else L1_CLASS,
    }


def _tensors(crosscoder: Crosscoder, k: int | None) -> dict[str, Tensor]:
    base, chat = crosscoder.d_model
    if base != chat:
        raise CrosscoderError(f"the hub layout has one width for both models; this crosscoder has {base} and {chat}")
    if crosscoder.latent_thresholds is not None:
        raise CrosscoderError("the hub layout has one threshold; this crosscoder has one for every latent")
    if crosscoder.variant == DIFFERENCE:
        raise CrosscoderError("the hub layout has no dictionaries of differences: it would read as a crosscoder")
    split = [crosscoder.model_slice(model) for model in (BASE, CHAT)]
    number = NORMALISATIONS[crosscoder.code_normalisation.upper()]
    tensors = {
        "encoder.weight": torch.stack([crosscoder.W_enc[part] for part in split]),
        "encoder.bias": crosscoder.b_enc,
        "decoder.weight": torch.stack([crosscoder.W_dec[:, part] for part in split]),
        "decoder.bias": crosscoder.b_dec.reshape(2, base),
        "code_normalization_id": torch.tensor(number, dtype=torch.int64),
    }
    if _is_thresholded(crosscoder):
        if k is None:
            raise CrosscoderError(
                "the hub layout stores k beside a threshold, and this crosscoder's is unknown; pass k"
            )
        tensors |= {"k": torch.tensor(k, dtype=torch.int32), "threshold": _threshold(crosscoder)}
    return tensors | _normaliser(crosscoder)


def _threshold(crosscoder: Crosscoder) -> Tensor:
    if (thresholds := crosscoder.model_thresholds) is None:
        return torch.tensor(crosscoder.threshold, dtype=torch.float32)
    if not torch.equal(thresholds, thresholds[:, :1].expand_as(thresholds)):
        raise CrosscoderError("the hub layout has one threshold a model; this crosscoder has one for every latent")
    return thresholds[:, 0].clone()


def _normaliser(crosscoder: Crosscoder) -> dict[str, Tensor]:
    """The input normaliser, as the statistics that give it by the layout's formula.

    Nothing but the sum of the variances enters the formula, so it lies evenly on the dimensions.
    """
    width = crosscoder.d_model[BASE]
    if crosscoder.input_mean is None and crosscoder.input_scale == (1.0, 1.0):
        return {}
    mean = torch.zeros(2 * width) if crosscoder.input_mean is None else crosscoder.input_mean
    scale = torch.tensor(crosscoder.input_scale, dtype=torch.float64)
    variance = scale.pow(-2) - 1e-8
    if bool((variance <= 0).any()):
        raise CrosscoderError(f"the hub layout cannot hold input scales of 1e4 and more: {crosscoder.input_scale}")
    std = (variance / width).sqrt()[:, None].expand(2, width)
    return {
        "target_rms": torch.tensor(1.0),
        "activation_mean": mean.reshape(2, width),
        "activation_std": std.to(torch.float32),
        "activation_global_scale": scale.to(torch.float32),
    }
