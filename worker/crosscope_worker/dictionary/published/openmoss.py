"""The OpenMOSS family (Language-Model-SAEs, Llamascopium): W_E, b_E, W_D, b_D with a head for each model.

The pre-activation is summed over heads with their biases, then each head applies the activation rule to it times its
own decoder norm. For ReLU that is one code for both; for JumpReLU and top-k it is a decoupled code.
"""

import math
from typing import Any

import torch

from crosscope_worker.dictionary.keep import AboveModelThresholds
from crosscope_worker.dictionary.published.axes import per_head_bias, sizes, weight_fields
from crosscope_worker.dictionary.published.files import Files
from crosscope_worker.dictionary.published.rules import BATCH_TOPK, JUMPRELU, RELU, TOPK, Rule, token_k

_KEYS = {"W_E", "b_E", "W_D", "b_D"}
_THRESHOLDS = ("activation_function.log_jumprelu_threshold", "log_jumprelu_threshold")
_AVERAGE_NORM = "dataset_average_activation_norm."
_UNSCALED = (None, "inference", "none")
_PLAUSIBLE = 1e-3, 1e6
"""Average norms of activations lie between these; one that was never set is saved as whatever lay in memory."""


def recognises(files: Files) -> bool:
    """Whether the tensors are this family's."""
    return files.tensors.keys() >= {"W_E", "W_D"} and files.tensors["W_E"].ndim == 3


def fields(files: Files, rule: Rule, input_scale: tuple[float, float] | None) -> dict[str, Any]:
    """The Crosscoder's fields.

    Raises CrosscoderError when the activation rule or the input normalisation is not known, or tensors contradict.
    """
    norms = {name for name in files.tensors if name.startswith(_AVERAGE_NORM)}
    files.check_tensors(_KEYS | norms | set(_THRESHOLDS))
    d_model, latents = sizes(files, "W_E")
    files.check_sizes(d_model=d_model, d_sae=latents, n_heads=2)
    weights = weight_fields(
        W_enc=files.tensor("W_E"),
        b_enc=per_head_bias(files.tensor("b_E", (2, latents))),
        W_dec=files.tensor("W_D", (2, latents, d_model)),
        b_dec=files.tensor("b_D", (2, d_model)),
    )
    return weights | _selection(files, rule, latents) | {"input_scale": _scale(files, d_model, input_scale)}


def _selection(files: Files, rule: Rule, latents: int) -> dict[str, Any]:
    if files.word("sparsity_include_decoder_norm") not in (None, True):
        raise files.error("its configuration says sparsity_include_decoder_norm false: an unknown activation rule")
    threshold = next((name for name in _THRESHOLDS if name in files.tensors), None)
    decoupled = {"code_normalisation": "decoupled"}
    if rule.name == RELU and threshold is None:
        return {"variant": "l1"}
    if rule.name in (TOPK, BATCH_TOPK) and threshold is None:
        return token_k(files, rule, latents, decoupled=True) | decoupled
    if rule.name == JUMPRELU and threshold is not None:
        thresholds = files.tensor(threshold, (latents,), (2, latents)).exp()
        return decoupled | {
            "variant": "jumprelu",
            "keep": AboveModelThresholds(torch.broadcast_to(thresholds, (2, latents)).contiguous()),
        }
    beside = f"with the tensor {threshold}" if threshold else "without thresholds"
    raise files.error(f"{rule.said}, {beside}; known are relu, topk and batchtopk, and jumprelu with thresholds")


def _scale(files: Files, d_model: int, given: tuple[float, float] | None) -> tuple[float, float]:
    norm = files.word("norm_activation")
    if norm in _UNSCALED:
        if given is not None:
            raise files.error(f"its configuration says norm_activation {norm!r}: no scale; leave input_scale out")
        return (1.0, 1.0)
    if norm != "dataset-wise":
        raise files.error(
            f"its configuration says norm_activation {norm!r}, which scales every token by itself; dataset-wise and "
            "inference are known"
        )
    if given is not None:
        return given
    hooks = files.word("hook_points")
    keys = [f"{_AVERAGE_NORM}{hook}" for hook in hooks] if isinstance(hooks, list) else []
    if len(keys) != 2 or any(key not in files.tensors for key in keys):
        raise files.error(
            "its inputs were scaled by the data set's average norms, which the file does not hold; pass "
            "input_scale=(base, chat), each sqrt(d_model) / average norm"
        )
    base, chat = (math.sqrt(d_model) / _average_norm(files, key) for key in keys)
    return base, chat


def _average_norm(files: Files, key: str) -> float:
    """The average norm under a key. Raises CrosscoderError for one that was never set (see _PLAUSIBLE)."""
    if files.tensors[key].numel() != 1:
        raise files.error(f"{key} has shape {tuple(files.tensors[key].shape)}; one number is known")
    value = float(files.tensors[key])
    if not _PLAUSIBLE[0] <= value <= _PLAUSIBLE[1]:
        raise files.error(
            f"{key} is {value:g}, which is no average norm of activations: it was never set; pass "
            "input_scale=(base, chat), each sqrt(d_model) / average norm"
        )
    return value
