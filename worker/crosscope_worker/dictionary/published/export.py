"""Writes a crosscoder in the dictionary_learning forks' hub layout: config.json and model.safetensors.

Nothing is approximated: what the layout cannot hold is refused with a sentence. The forks differ in two points
(`DIALECTS`). Dictionaries of the difference, or of one model, become their BatchTopKSAE.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from crosscope_proto.roles import BASE, CHAT
from crosscope_worker.dictionary.crosscoder import Crosscoder, CrosscoderError
from crosscope_worker.dictionary.keep import AboveModelThresholds, AboveThreshold, StoredKeep
from crosscope_worker.dictionary.load import load_crosscoder
from crosscope_worker.dictionary.published.dictionary_learning import (
    BATCH_TOPK_CLASS,
    L1_CLASS,
    NORMALISATIONS,
    normalised_once,
)
from crosscope_worker.dictionary.version import read_manifest
from crosscope_worker.disk import whole_folder

DIALECTS = ("two-scales", "one-scale")
"""two-scales: `dict_class` in config.json, and a scale for each model. one-scale: the fork that refuses both; it has
one number for both models."""
_ONE_STREAM_CLASS = "BatchTopKSAE"


def export_version(version: Path, target: Path, dialect: str = DIALECTS[0]) -> list[str]:
    """Exports a version folder of the artefact; see `export_hub`."""
    recipe = read_manifest(version).recipe.get("crosscoder")
    k = recipe.get("k") if isinstance(recipe, dict) else None
    return export_hub(load_crosscoder(version), target, k if isinstance(k, int) else None, dialect)


def export_hub(crosscoder: Crosscoder, target: Path, k: int | None = None, dialect: str = DIALECTS[0]) -> list[str]:
    """Writes config.json and model.safetensors into the new folder `target`.

    `k` is the mean number of active latents that training aimed at, which the layout stores beside a threshold.
    Returns sentences about what the folder does not say, for whoever reads it. Raises CrosscoderError when the layout
    cannot hold the crosscoder or `target` exists; OSError when it cannot be written.
    """
    if dialect not in DIALECTS:
        raise CrosscoderError(f"unknown dialect {dialect!r}; known are {', '.join(DIALECTS)}")
    is_single = crosscoder.streams.is_single
    tensors, config = _one_stream(crosscoder, k) if is_single else _two_models(crosscoder, k, dialect)
    if dialect == "one-scale":
        del config["dict_class"]
    if target.exists():
        raise CrosscoderError(f"{target} exists; name a new folder")
    with whole_folder(target) as folder:
        plain = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
        save_file(plain, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return _to_know(crosscoder)


def _to_know(crosscoder: Crosscoder) -> list[str]:
    known = ["The folder says nothing of the pair, the layer, the recipe and the analysis."]
    if crosscoder.streams.is_single:
        known.append(f"It does not say that it is a dictionary of {crosscoder.streams.words}; say so beside it.")
    return known


def _is_thresholded(crosscoder: Crosscoder) -> bool:
    return isinstance(crosscoder.keep, AboveThreshold | AboveModelThresholds)


def _two_models(crosscoder: Crosscoder, k: int | None, dialect: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    base, chat = crosscoder.d_model
    if base != chat:
        raise CrosscoderError(f"the hub layout has one width for both models; this crosscoder has {base} and {chat}")
    split = [crosscoder.model_slice(model) for model in (BASE, CHAT)]
    W_enc, b_enc = _encoder(crosscoder)
    number = NORMALISATIONS[crosscoder.code_normalisation.upper()]
    tensors = {
        "encoder.weight": torch.stack([W_enc[part] for part in split]),
        "encoder.bias": b_enc,
        "decoder.weight": torch.stack([crosscoder.W_dec[:, part] for part in split]),
        "decoder.bias": crosscoder.b_dec.reshape(2, base),
        "code_normalization_id": torch.tensor(number, dtype=torch.int64),
    }
    config = {
        "activation_dim": base,
        "dict_size": crosscoder.num_latents,
        "num_layers": 2,
        "code_normalization": crosscoder.code_normalisation.upper(),
        "dict_class": BATCH_TOPK_CLASS if _is_thresholded(crosscoder) else L1_CLASS,
    }
    return tensors | _selection(crosscoder, k) | _normaliser(crosscoder, dialect), config


def _encoder(crosscoder: Crosscoder) -> tuple[Tensor, Tensor]:
    """Encoder weights and bias as the forks apply them: to inputs normalised twice where the code is decoupled."""
    if not crosscoder.keep.decoupled or not _normalises(crosscoder):
        return crosscoder.W_enc, crosscoder.b_enc
    weights = {"W_enc": crosscoder.W_enc, "b_enc": crosscoder.b_enc, "d_model": crosscoder.d_model}
    normaliser = {"input_scale": crosscoder.input_scale, "input_mean": crosscoder.input_mean}
    undone = normalised_once(weights, normaliser)
    return undone["W_enc"], undone["b_enc"]


def _selection(crosscoder: Crosscoder, k: int | None) -> dict[str, Tensor]:
    keep = StoredKeep.of(crosscoder.keep, crosscoder.num_latents)
    if keep.token_k is not None or keep.latent_thresholds is not None:
        raise CrosscoderError(
            f"the hub layout keeps what lies above one threshold; this crosscoder {crosscoder.keep.words}"
        )
    if not _is_thresholded(crosscoder):
        return {}
    if k is None:
        raise CrosscoderError("the hub layout stores k beside a threshold, and this crosscoder's is unknown; pass k")
    return {"k": torch.tensor(k, dtype=torch.int32), "threshold": _threshold(keep)}


def _threshold(keep: StoredKeep) -> Tensor:
    if (thresholds := keep.model_thresholds) is None:
        return torch.tensor(keep.threshold, dtype=torch.float32)
    if not torch.equal(thresholds, thresholds[:, :1].expand_as(thresholds)):
        raise CrosscoderError("the hub layout has one threshold a model; this crosscoder has one for every latent")
    return thresholds[:, 0].clone()


def _one_stream(crosscoder: Crosscoder, k: int | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """As BatchTopKSAE: `relu(W (x - b_dec) + b)`, a threshold on unscaled activations, and decoder rows of norm 1.

    Its codes are scaled activations: rows are divided by the code normalisation, and the encoder is multiplied by it.
    """
    part = crosscoder.streams.columns(crosscoder.d_model)
    (width,) = crosscoder.streams.widths(crosscoder.d_model)
    if not _is_thresholded(crosscoder):
        raise CrosscoderError("a dictionary of one stream is written with a threshold; this one has none")
    norms = crosscoder.code_norms().double()
    if bool((norms == 0).any()):
        raise CrosscoderError(f"{int((norms == 0).sum())} decoder rows are zero, and this layout needs rows of norm 1")
    b_dec = crosscoder.b_dec[part]
    weight = (crosscoder.W_enc[part].double() * norms).T
    bias = crosscoder.b_enc.double() * norms + weight @ b_dec.double()
    tensors = {
        "encoder.weight": weight.to(torch.float32),
        "encoder.bias": bias.to(torch.float32),
        "decoder.weight": (crosscoder.W_dec[:, part].double() / norms[:, None]).T.to(torch.float32),
        "b_dec": b_dec,
    }
    config = {"activation_dim": width, "dict_size": crosscoder.num_latents, "k": k, "dict_class": _ONE_STREAM_CLASS}
    ((model, _),) = crosscoder.streams.figures
    mean = crosscoder.input_mean
    statistics = _statistics(crosscoder.input_scale[model : model + 1], None if mean is None else mean[part], width)
    one = {name: each if name == "target_rms" else each[0] for name, each in statistics.items()}
    return tensors | _selection(crosscoder, k) | one, config


def _normalises(crosscoder: Crosscoder) -> bool:
    return crosscoder.input_mean is not None or crosscoder.input_scale != (1.0, 1.0)


def _normaliser(crosscoder: Crosscoder, dialect: str) -> dict[str, Tensor]:
    """The statistics that give the input normaliser by the layout's formula; empty where there is none."""
    statistics = _statistics(crosscoder.input_scale, crosscoder.input_mean, crosscoder.d_model[BASE])
    if statistics and dialect == "one-scale":
        base, chat = crosscoder.input_scale
        if base != chat:
            raise CrosscoderError(f"the one-scale dialect has one input scale for both models, not {base} and {chat}")
        statistics["activation_global_scale"] = statistics["activation_global_scale"][0]
    return statistics


def _statistics(scales: tuple[float, ...], mean: Tensor | None, width: int) -> dict[str, Tensor]:
    """`activation_mean`, `activation_std` [stream, width], `activation_global_scale` [stream] and `target_rms`.

    Empty for the identity. Only the sum of the variances enters the formula, so all dimensions get the same variance.
    """
    if mean is None and all(scale == 1.0 for scale in scales):
        return {}
    streams = len(scales)
    mean = torch.zeros(streams * width) if mean is None else mean
    scale = torch.tensor(scales, dtype=torch.float64)
    variance = scale.pow(-2) - 1e-8
    if bool((variance <= 0).any()):
        raise CrosscoderError(f"the hub layout cannot hold input scales of 1e4 and more: {scales}")
    std = (variance / width).sqrt()[:, None].expand(streams, width)
    return {
        "target_rms": torch.tensor(1.0),
        "activation_mean": mean.reshape(streams, width),
        "activation_std": std.to(torch.float32),
        "activation_global_scale": scale.to(torch.float32),
    }
