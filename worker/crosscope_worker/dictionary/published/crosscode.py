"""The crosscode family: `_W_enc_XiDiL`, `_W_dec_LXoDo` with an axis for models and one for hook points.

Files of two models and one hook point are read. The family's classes choose among unscaled activations.
"""

from typing import Any

import torch
from torch import Tensor

from crosscope_worker.dictionary.keep import AboveThresholds
from crosscope_worker.dictionary.published.axes import weight_fields
from crosscope_worker.dictionary.published.files import Files
from crosscope_worker.dictionary.published.replication import unscaled_selection
from crosscope_worker.dictionary.published.rules import BATCH_TOPK, JUMPRELU, TOPK, Rule

_ENCODER, _DECODER, _BIAS, _DECODER_BIAS = "_W_enc_XiDiL", "_W_dec_LXoDo", "b_enc_L", "_b_dec_XoDo"
_FOLDED = {"is_folded", "folded_scaling_factors_in_Xi", "folded_scaling_factors_out_Xo"}
_THRESHOLDS = tuple(f"{owner}.log_threshold_{axis}" for owner in ("_activation_fn", "activation_fn") for axis in "LH")


def recognises(files: Files) -> bool:
    """Whether the tensors are this family's."""
    return {_ENCODER, _DECODER} <= files.tensors.keys()


def fields(files: Files, rule: Rule, input_scale: tuple[float, float] | None) -> dict[str, Any]:
    """The Crosscoder's fields.

    Raises CrosscoderError for other numbers of models and hook points, for contradictions, and if inputs were scaled
    by factors that the file does not hold.
    """
    files.check_tensors({_ENCODER, _DECODER, _BIAS, _DECODER_BIAS, *_FOLDED, *_THRESHOLDS})
    d_model, latents = _sizes(files)
    files.check_sizes(d_model=d_model, n_latents=latents)
    scale = torch.tensor(_scales(files, input_scale))
    two, axes = (2, 1), files.tensors[_ENCODER].ndim - 2
    models = two[:axes]
    W_enc = files.tensor(_ENCODER).reshape(2, d_model, latents)
    W_dec = files.tensor(_DECODER, (latents, *models, d_model)).reshape(latents, 2, d_model).transpose(0, 1)
    b_dec = _optional(files, _DECODER_BIAS, "use_decoder_bias", (*models, d_model)).reshape(2, d_model)
    weights = weight_fields(
        W_enc=W_enc * scale[:, None, None],
        b_enc=_optional(files, _BIAS, "use_encoder_bias", (latents,)),
        W_dec=W_dec / scale[:, None, None],
        b_dec=b_dec / scale[:, None],
    )
    return weights | _selection(files, rule, latents)


def _sizes(files: Files) -> tuple[int, int]:
    """d_model and the number of latents."""
    shape = tuple(files.tensors[_ENCODER].shape)
    if len(shape) not in (3, 4):
        raise files.error(f"{_ENCODER} has shape {shape}; [2 models, 1 hook point, d_model, latents] is known")
    num_models, hooks = shape[0], shape[1] if len(shape) == 4 else 1
    for said, found, key in ((num_models, 2, "n_models"), (hooks, 1, "n_hookpoints")):
        files.check_sizes(**{key: said})
        if said != found:
            raise files.error(f"it has {num_models} models and {hooks} hook points; 2 models and 1 hook point are read")
    return shape[-2], shape[-1]


def _optional(files: Files, name: str, flag: str, shape: tuple[int, ...]) -> Tensor:
    """A bias, zero where the file has none. Raises CrosscoderError where a configuration says otherwise."""
    said = files.word(flag)
    if said is not None and bool(said) != (name in files.tensors):
        raise files.error(f"its configuration says {flag} {said}, but {name} is {'there' if not said else 'missing'}")
    return files.tensor(name, shape) if name in files.tensors else torch.zeros(shape)


def _scales(files: Files, given: tuple[float, float] | None) -> tuple[float, float]:
    """Factors on the inputs that the weights do not have yet: those given, or 1 where they are folded in already."""
    is_folded = "is_folded" in files.tensors and bool(files.tensor("is_folded", (), (1,)))
    if is_folded:
        if given is not None:
            raise files.error("the scales of its inputs are folded into its weights already; leave input_scale out")
        return (1.0, 1.0)
    if given is None:
        raise files.error(
            "the scales of its inputs are not folded into its weights (is_folded), and the file does not hold them; "
            "pass input_scale=(base, chat), or (1.0, 1.0) if its inputs were not scaled"
        )
    return given


def _selection(files: Files, rule: Rule, latents: int) -> dict[str, Any]:
    threshold = next((name for name in _THRESHOLDS if name in files.tensors), None)
    if rule.name is None and not rule.counts:
        raise files.error(f"{rule.said}; model_cfg.yaml says activation_fn: {{classname: …, cfg: …}}")
    if (rule.name == JUMPRELU) != (threshold is not None):
        beside = f"but the file holds {threshold}" if threshold else "but the file holds no log_threshold"
        raise files.error(f"{rule.said}, {beside}")
    if threshold is not None:
        thresholds = files.tensor(threshold, (latents,)).exp()
        return {"variant": "jumprelu", "code_normalisation": "none", "keep": AboveThresholds(thresholds)}
    if rule.name in (TOPK, BATCH_TOPK):
        files.note(
            "Where a token has fewer than k positive activations, crosscode keeps negative ones too; they are cut."
        )
    return unscaled_selection(files, rule, latents)
