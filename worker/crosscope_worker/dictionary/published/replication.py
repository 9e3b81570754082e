"""The family of crosscoder-model-diff-replication and Crosscoders: W_dec has its model axis in the middle.

Their inputs were multiplied by a scale per model that no file holds; it is folded into the weights. Files of an RL
tool-use sweep (arXiv 2606.26474) have the same tensors, and read activations as they are.
"""

from typing import Any

import torch
from torch import Tensor

from crosscope_worker.dictionary.published.axes import sizes, weight_fields
from crosscope_worker.dictionary.published.files import Files
from crosscope_worker.dictionary.published.rules import BATCH_TOPK, JUMPRELU, RELU, TOPK, Rule, token_k

_KEYS = {"W_enc", "b_enc", "W_dec", "b_dec"}
_MASKS = {"enc_mask", "dec_mask"}
_PUBLIC_CFG = {"model_name": {"gemma-2-2b", "google/gemma-2-2b"}, "d_in": {2304}, "dict_size": {16384}}
_PUBLIC_SITE = "blocks.14.hook_resid_pre"
_PUBLIC_SCALES = (0.2758961493232058, 0.24422852496546169)


def recognises(files: Files) -> bool:
    """Whether the tensors are this family's."""
    return {"W_enc", "W_dec"} <= files.tensors.keys() and files.tensors["W_dec"].ndim == 3


def fields(files: Files, rule: Rule, input_scale: tuple[float, float] | None) -> dict[str, Any]:
    """The Crosscoder's fields; the code is a ReLU or the k largest of a token, on unscaled activations.

    Raises CrosscoderError when tensors are missing, unknown or contradictory, or the scales are not known.
    """
    files.check_tensors(_KEYS | _MASKS)
    d_model, latents = sizes(files, "W_enc")
    files.check_sizes(d_in=d_model, activation_dim=d_model, dict_size=latents, n_models=2)
    W_dec = files.tensor("W_dec", (latents, 2, d_model))
    selection = None
    if _is_sweep(files, rule):
        W_dec = _masked(files, W_dec, latents)
        _say_about_the_sweep(files, input_scale)
        input_scale = (1.0, 1.0)
        if rule.name in (RELU, JUMPRELU):
            raise files.error(f"{rule.said}, but files of this sweep keep the k largest of each token")
        selection = token_k(files, rule, latents) | {"code_normalisation": "none"}
    scale = torch.tensor(_scales(files, input_scale))
    weights = weight_fields(
        W_enc=files.tensor("W_enc") * scale[:, None, None],
        b_enc=files.tensor("b_enc", (latents,)),
        W_dec=W_dec.transpose(0, 1) / scale[:, None, None],
        b_dec=files.tensor("b_dec", (2, d_model)) / scale[:, None],
    )
    return weights | (selection or unscaled_selection(files, rule, latents))


def unscaled_selection(files: Files, rule: Rule, latents: int) -> dict[str, Any]:
    """Variant and inference rule of files whose classes choose among unscaled activations: ReLU or top-k.

    ReLU is assumed, and noted, where no configuration says a rule.
    """
    if rule.name == JUMPRELU:
        raise files.error(f"{rule.said}, but the file holds no threshold for each latent")
    if rule.name in (TOPK, BATCH_TOPK) or (rule.name is None and rule.counts):
        return token_k(files, rule, latents) | {"code_normalisation": "none"}
    if rule.name != RELU:
        files.note("No configuration says an activation rule: ReLU is assumed, which files of this layout had.")
    return {"variant": "l1"}


def public_scales(files: Files) -> tuple[float, float] | None:
    """The input scales (base, chat) of the public gemma-2-2b file, if the configurations are its cfg.

    They must say the model and the site, and all that they say must agree.
    """
    site = files.word("hook_point") or files.word("site")
    if site != _PUBLIC_SITE or files.word("model_name") is None:
        return None
    agree = all(each.value in allowed for key, allowed in _PUBLIC_CFG.items() for each in files.said(key))
    return _PUBLIC_SCALES if agree else None


def _scales(files: Files, given: tuple[float, float] | None) -> tuple[float, float]:
    if (scales := given or public_scales(files)) is None:
        raise files.error(
            "its inputs were multiplied by a scale for each model that the file does not hold; pass them as "
            "input_scale=(base, chat), or (1.0, 1.0) if its inputs were not scaled"
        )
    if not all(scale > 0 for scale in scales):
        raise files.error(f"input_scale must be two positive numbers, not {scales}")
    return scales


def _is_sweep(files: Files, rule: Rule) -> bool:
    has_parts = bool(files.said("n_a", "n_b")) or bool(_MASKS & files.tensors.keys())
    return has_parts or (bool(rule.counts) and bool(files.said("activation_dim")))


def _masked(files: Files, W_dec: Tensor, latents: int) -> Tensor:
    """`W_dec: [latent, 2, d_model]` times its mask; a note says how much of the encoder its own mask covers."""
    if "enc_mask" in files.tensors:
        masked = files.tensor("enc_mask", (2, latents)) == 0
        if hidden := int((files.tensor("W_enc").abs().amax(dim=1) * masked > 0).sum()):
            files.note(
                f"enc_mask covers {hidden} encoder columns that are not zero; it was not applied, as in the evaluation "
                "of these files."
            )
    if "dec_mask" not in files.tensors:
        return W_dec
    return W_dec * files.tensor("dec_mask", (latents, 2))[:, :, None]


def _say_about_the_sweep(files: Files, input_scale: tuple[float, float] | None) -> None:
    if input_scale is not None:
        raise files.error("files of this sweep read activations as they are; leave input_scale out")
    if not files.swap:
        files.note(
            "Model 0 of files of this sweep is the fine-tuned one, and is read as base; give swap to read it as chat."
        )
    files.note(
        "The card of these files speaks of z-scored inputs; their statistics are in no file, and their evaluation "
        "feeds activations as they are, as is done here."
    )
