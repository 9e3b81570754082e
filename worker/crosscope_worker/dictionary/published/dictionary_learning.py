"""The dictionary_learning forks: encoder.* and decoder.* with a model axis, from the hub or a training folder.

A missing key has the default of the forks' lenient loading: CROSSCODER normalisation, no input normaliser. A file whose
parts contradict each other is refused, unless the forks say which part wins.
"""

import math
from typing import Any

import torch

from crosscope_worker.dictionary.keep import AboveModelThresholds, AboveThreshold, keep_everything
from crosscope_worker.dictionary.published.axes import per_head_bias, sizes, weight_fields
from crosscope_worker.dictionary.published.files import Files
from crosscope_worker.dictionary.published.rules import BATCH_TOPK, JUMPRELU, RELU, TOPK, Rule, count, token_k

WEIGHTS = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
NORMALISATIONS = {"CROSSCODER": 1, "SAE": 2, "MIXED": 3, "NONE": 4, "DECOUPLED": 5}
"""The forks' names and ids (math §1); ours are the same in small letters."""
L1_CLASS, BATCH_TOPK_CLASS = "CrossCoder", "BatchTopKCrossCoder"
SPARSIFIERS = ("k", "threshold")
NORMALISER = ("target_rms", "activation_mean", "activation_std", "activation_global_scale")
_EPSILON = 1e-8
_MIXTURE = {"code_normalization_alpha_sae": 1.0, "code_normalization_alpha_cc": 0.1}
_SCALE_TOLERANCE = 1e-3
"""Relative; a stored global scale that is further from the formula belongs to other statistics."""


def recognises(files: Files) -> bool:
    """Whether the tensors are this family's crosscoders; its one-model dictionaries have weights of two axes."""
    return {"encoder.weight", "decoder.weight"} <= files.tensors.keys() and files.tensors["encoder.weight"].ndim == 3


def fields(files: Files, rule: Rule, input_scale: tuple[float, float] | None) -> dict[str, Any]:
    """The Crosscoder's fields.

    Raises CrosscoderError when tensors are missing, unknown or contradictory, or when the configuration asks for
    something unknown.
    """
    if input_scale is not None:
        raise files.error("this layout holds its input normaliser, or has none; leave input_scale out")
    files.check_tensors({*WEIGHTS, *SPARSIFIERS, *NORMALISER, "code_normalization_id"})
    d_model, latents = sizes(files, "encoder.weight")
    files.check_sizes(activation_dim=d_model, dict_size=latents, num_layers=2)
    _check_config(files)
    weights = weight_fields(
        W_enc=files.tensor("encoder.weight"),
        b_enc=per_head_bias(files.tensor("encoder.bias", (latents,), (2, latents))),
        W_dec=files.tensor("decoder.weight", (2, latents, d_model)),
        b_dec=files.tensor("decoder.bias", (2, d_model)),
    )
    normalisation = _normalisation(files)
    options = {"code_normalisation": normalisation.lower()} | _selection(files, rule, normalisation, latents)
    normaliser = _input_normaliser(files, d_model)
    if normalisation == "DECOUPLED" and options["variant"] != "l1" and normaliser:
        weights |= normalised_twice(weights, normaliser)
    return weights | options | normaliser


def _check_config(files: Files) -> None:
    if files.word("keep_relative_variance") not in (None, True):
        raise files.error("config.json says keep_relative_variance false; scales of single dimensions are not known")
    for key in ("latent_processor", "encoder_layers"):
        if (value := files.word(key)) not in (None, [0, 1]):
            raise files.error(f"config.json says {key} {value!r}, which is not known")


def _normalisation(files: Files) -> str:
    """The forks' name of the code normalisation: a configuration's word, else the tensor's, else the trainer's."""
    words = files.said("code_normalization")
    own = [each for each in words if each.key == "code_normalization"]
    if other := [each for each in own if str(each.value).upper() != str(own[0].value).upper()]:
        raise files.error(f"{own[0]} and {other[0]} contradict each other")
    said: object = own[0].value if own else None
    if said is None and "code_normalization_id" in files.tensors:
        number = int(files.tensor("code_normalization_id", (), (1,)))
        names = [name for name, each in NORMALISATIONS.items() if each == number]
        if not names:
            raise files.error(f"code_normalization_id is {number}; known are {NORMALISATIONS}")
        said = names[0]
    said = said if said is not None else next((each.value for each in words), "CROSSCODER")
    name = str(said).upper()
    if name not in NORMALISATIONS:
        raise files.error(f"code_normalization is {said!r}; known are {', '.join(NORMALISATIONS)}")
    other = {key: value for key, known in _MIXTURE.items() if (value := files.word(key)) not in (None, known)}
    if name == "MIXED" and other:
        raise files.error(f"config.json mixes code normalisations by {other}; only {_MIXTURE} is known")
    return name


def _selection(files: Files, rule: Rule, normalisation: str, latents: int) -> dict[str, Any]:
    """Variant and inference rule: a threshold, the k largest of a token, or ReLU.

    A negative threshold, the forks' value before training sets it, keeps every positive entry.
    """
    is_decoupled = normalisation == "DECOUPLED"
    sparsified = sorted(files.tensors.keys() & set(SPARSIFIERS))
    if rule.name == JUMPRELU:
        raise files.error(f"{rule.said}, but crosscoders of this layout have no threshold for each latent")
    if rule.name == RELU and sparsified:
        raise files.error(f"{rule.said}, which has no {' and no '.join(sparsified)}")
    if "threshold" in files.tensors and rule.name != TOPK:
        if "k" in files.tensors:
            count(files, rule, latents)
        return {"variant": "batch_topk"} | _thresholds(files, is_decoupled, latents)
    if sparsified or rule.counts or rule.name in (TOPK, BATCH_TOPK):
        return token_k(files, rule, latents, decoupled=is_decoupled)
    if rule.name is None:
        files.note(
            "No configuration says an activation rule, and the file holds no k and no threshold: ReLU is assumed, as "
            "crosscoders of this layout are without them."
        )
    return {"variant": "l1"} | ({"keep": keep_everything(latents)} if is_decoupled else {})


def _thresholds(files: Files, is_decoupled: bool, latents: int) -> dict[str, Any]:
    threshold = files.tensor("threshold")
    if is_decoupled and threshold.shape != (2,):
        raise files.error(f"a DECOUPLED code has 2 thresholds, but threshold has shape {tuple(threshold.shape)}")
    if not is_decoupled and threshold.numel() != 1:
        raise files.error(f"threshold has shape {tuple(threshold.shape)}, but only a DECOUPLED code has one a model")
    if bool((threshold < 0).any()):
        files.note(
            f"The threshold is {threshold.tolist()}, as before training sets it: every positive code is kept there, as "
            "in the forks."
        )
    if is_decoupled:
        return {"keep": AboveModelThresholds(threshold[:, None].repeat(1, latents))}
    return {"keep": AboveThreshold(float(threshold))} if threshold >= 0 else {}


def normalised_twice(weights: dict[str, Any], normaliser: dict[str, Any]) -> dict[str, Any]:
    """Encoder weights and bias of a code whose inputs the forks normalise twice, for inputs normalised once.

    With `y = (x - mean) s` the forks encode `(y - mean) s`, in training too, and undo it once.
    """
    scale, mean = _both(weights, normaliser)
    W_enc = weights["W_enc"].double() * scale[:, None]
    b_enc = weights["b_enc"].double() - mean @ W_enc
    return {"W_enc": W_enc.to(torch.float32).T.contiguous().T, "b_enc": b_enc.to(torch.float32)}


def normalised_once(weights: dict[str, Any], normaliser: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `normalised_twice`: weights that encode the same where inputs are normalised twice."""
    scale, mean = _both(weights, normaliser)
    W_enc = weights["W_enc"].double()
    b_enc = weights["b_enc"].double() + mean @ W_enc
    W_enc = (W_enc / scale[:, None]).to(torch.float32)
    return {"W_enc": W_enc.T.contiguous().T, "b_enc": b_enc.to(torch.float32)}


def _both(weights: dict[str, Any], normaliser: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and mean of the normaliser along the axis `both`, float64."""
    scales = [
        torch.full((width,), scale) for width, scale in zip(weights["d_model"], normaliser["input_scale"], strict=True)
    ]
    scale = torch.cat(scales).double()
    mean = normaliser.get("input_mean")
    return scale, torch.zeros_like(scale) if mean is None else mean.double()


def is_off(files: Files, name: str) -> bool:
    """Whether a statistic of the normaliser is missing or NaN throughout, that is, whether there is none.

    Raises CrosscoderError if only a part of it is NaN, for then it is damaged.
    """
    statistic = files.tensors.get(name)
    if statistic is None:
        return True
    nan = torch.isnan(statistic)
    if bool(nan.any()) and not bool(nan.all()):
        raise files.error(f"{name} is NaN in {int(nan.sum())} of {nan.numel()} values; NaN means off only throughout")
    return bool(nan.any())


def _input_normaliser(files: Files, d_model: int) -> dict[str, Any]:
    """`(x - mean) target_rms / sqrt(sum_d std² + 1e-8)`; none where the statistics are missing or NaN."""
    off = [is_off(files, f"activation_{name}") for name in ("mean", "std")]
    if any(off):
        if not all(off):
            raise files.error("only one of activation_mean and activation_std is given; the normaliser needs both")
        return {}
    mean = files.tensor("activation_mean", (2, d_model))
    std = files.tensor("activation_std", (2, d_model)).double()
    target = target_rms(files)
    base, chat = (target / math.sqrt(float(each) + _EPSILON) for each in std.square().sum(dim=1))
    return {"input_mean": mean.reshape(-1), "input_scale": _checked_scale(files, (base, chat))}


def target_rms(files: Files) -> float:
    """The root mean square that the normaliser aims at; 1 where the file is silent."""
    return float(files.tensor("target_rms", (), (1,))) if "target_rms" in files.tensors else 1.0


def _checked_scale(files: Files, formula: tuple[float, float]) -> tuple[float, float]:
    """The formula's scales, unless the file stores its own.

    One fork stores two numbers, which must agree with the formula. The other stores one number for both models, which
    is 1 if none was computed.
    """
    if "activation_global_scale" not in files.tensors:
        return formula
    stored = files.tensor("activation_global_scale", (), (1,), (2,))
    if stored.numel() == 1:
        return formula if float(stored) == 1.0 else (float(stored), float(stored))
    expected = torch.tensor(formula)
    if bool(((stored - expected).abs() > _SCALE_TOLERANCE * expected).any()):
        raise files.error(
            f"activation_global_scale is {stored.tolist()}, but target_rms and activation_std give {list(formula)}"
        )
    base, chat = stored.tolist()
    return base, chat
