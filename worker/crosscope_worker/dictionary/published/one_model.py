"""Dictionaries of one stream of activations, used for diffing: of the difference of two models, or of one of them.

Two layouts: encoder.* and decoder.* of dictionary_learning, and W_enc, W_dec of SAELens (in small letters of Gemma
Scope 2). No file says what the stream was; the caller says it.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crosscope_proto.roles import BASE, CHAT
from crosscope_worker.dictionary.keep import AboveThreshold, AboveThresholds
from crosscope_worker.dictionary.published.dictionary_learning import NORMALISER, SPARSIFIERS, is_off, target_rms
from crosscope_worker.dictionary.published.files import Files
from crosscope_worker.dictionary.published.rules import BATCH_TOPK, JUMPRELU, RELU, TOPK, Rule, count, token_k
from crosscope_worker.dictionary.streams import STREAMS

_LINEAR = {"encoder.weight", "encoder.bias", "decoder.weight", "b_dec", "bias", "decoder.bias"}
_LENS = {"W_enc", "b_enc", "W_dec", "b_dec", "threshold", "topk_threshold", "scaling_factor"}
VARIANTS = {"difference": "diff_sae", "base": "base_sae", "chat": "chat_sae"}
"""What a dictionary was trained on, and what it is called here."""


@dataclass(frozen=True, eq=False)
class _Dictionary:
    """The code `relu(x W_enc + b_enc)`, what is kept of it, and `f W_dec + b_dec`; `x` are normalised activations."""

    W_enc: Tensor
    """[d_model, latent]."""
    b_enc: Tensor
    W_dec: Tensor
    """[latent, d_model]."""
    b_dec: Tensor
    selection: dict[str, Any]
    scale: float = 1.0
    mean: Tensor | None = None


def recognises(files: Files) -> bool:
    """Whether the tensors are a dictionary of one stream: encoder weights of two axes."""
    names = {"encoder.weight", "decoder.weight"}, {"W_enc", "W_dec"}, {"w_enc", "w_dec"}
    found = next((both for both in names if both <= files.tensors.keys()), None)
    return found is not None and all(files.tensors[name].ndim == 2 for name in found)


def fields(files: Files, rule: Rule, input_scale: tuple[float, float] | None, reads: str) -> dict[str, Any]:
    """The Crosscoder's fields.

    Raises CrosscoderError if `reads` does not say what it was trained on, and for contradictions and unknown rules.
    """
    if reads not in VARIANTS:
        raise files.error(
            "it is a dictionary of one stream of activations; set reads to difference (chat less base), base or chat"
        )
    if input_scale is not None and (reads == "difference" and input_scale[BASE] != input_scale[CHAT]):
        raise files.error(f"a difference has one scale for both models, not {input_scale}")
    factor = None if input_scale is None else input_scale[BASE if reads == "base" else CHAT]
    if reads != "difference":
        other = "chat" if reads == "base" else "base"
        files.note(
            f"It reads {reads} alone: figures of {other}'s reconstruction, relative norms and the causal patch are "
            "undefined."
        )
    if "encoder.weight" in files.tensors:
        if factor is not None:
            raise files.error("this layout holds its input normaliser, or has none; leave input_scale out")
        return _placed(_linear(files, rule), reads)
    return _placed(_lens(files, rule, factor), reads)


def _placed(one: _Dictionary, reads: str) -> dict[str, Any]:
    """The dictionary on the axis `both`: zeros in the place of what it does not read."""
    streams = STREAMS[reads]
    return one.selection | {
        "W_enc": streams.place_encoder(one.W_enc.T).contiguous().T,
        "b_enc": one.b_enc,
        "W_dec": streams.place_decoder(one.W_dec),
        "b_dec": streams.place_decoder(one.b_dec),
        "d_model": (len(one.b_dec), len(one.b_dec)),
        "variant": VARIANTS[reads],
        "streams": streams,
        "input_scale": streams.scales((one.scale,)),
        "input_mean": None if one.mean is None else streams.place_decoder(one.mean),
    }


def _linear(files: Files, rule: Rule) -> _Dictionary:
    """A code `relu(W (x - b_dec) + b)`; for AutoEncoderNew, whose decoder has the bias, `relu(W x + b)`."""
    files.check_tensors(_LINEAR | set(SPARSIFIERS) | set(NORMALISER))
    biases = sorted({"b_dec", "bias", "decoder.bias"} & files.tensors.keys())
    if len(biases) != 1:
        raise files.error(f"it holds {' and '.join(biases) or 'no bias of the decoder'}; one of b_dec, bias is known")
    weight = files.tensor("encoder.weight")
    latents, d_model = weight.shape
    files.check_sizes(activation_dim=d_model, dict_size=latents)
    b_dec = files.tensor(biases[0], (d_model,))
    b_enc = files.tensor("encoder.bias", (latents,))
    if biases[0] != "decoder.bias":
        b_enc = (b_enc.double() - weight.double() @ b_dec.double()).to(torch.float32)
    return _Dictionary(
        W_enc=weight.T,
        b_enc=b_enc,
        W_dec=files.tensor("decoder.weight", (d_model, latents)).T.contiguous(),
        b_dec=b_dec,
        selection=_linear_selection(files, rule, biases[0], latents),
        **_linear_normaliser(files, d_model),
    )


def _linear_selection(files: Files, rule: Rule, bias: str, latents: int) -> dict[str, Any]:
    """A threshold on unscaled activations, the k largest of a token, or ReLU."""
    unscaled = {"code_normalisation": "none"}
    sparsified = sorted(files.tensors.keys() & set(SPARSIFIERS))
    if rule.name == JUMPRELU:
        raise files.error(f"{rule.said}, but the file holds no threshold for each latent")
    if rule.name == RELU and sparsified:
        raise files.error(f"{rule.said}, which has no {' and no '.join(sparsified)}")
    threshold = float(files.tensor("threshold", (), (1,))) if "threshold" in files.tensors else -1.0
    if rule.name != TOPK and (threshold >= 0 or (rule.name == BATCH_TOPK and "threshold" in files.tensors)):
        if "k" in files.tensors:
            count(files, rule, latents)
        if rule.name is None:
            files.note("No configuration says topk or batchtopk: the threshold is taken, as of BatchTopK.")
        if threshold < 0:
            files.note(f"The threshold is {threshold:g}, as before training sets it: every positive code is kept.")
        return unscaled | ({"keep": AboveThreshold(threshold)} if threshold >= 0 else {})
    if sparsified or rule.counts or rule.name in (TOPK, BATCH_TOPK):
        return unscaled | token_k(files, rule, latents)
    if rule.name is None:
        if bias == "b_dec":
            raise files.error(f"{rule.said}, and the file holds no k and no threshold: its rule is unknown")
        files.note(f"{rule.said.capitalize()}: ReLU is assumed, which every class with a tensor {bias} has.")
    return unscaled


def _linear_normaliser(files: Files, d_model: int) -> dict[str, Any]:
    """The input normaliser of one stream, by the formula of the forks' crosscoders."""
    off = [is_off(files, f"activation_{name}") for name in ("mean", "std")]
    if any(off):
        if not all(off):
            raise files.error("only one of activation_mean and activation_std is given; the normaliser needs both")
        return {}
    mean = files.tensor("activation_mean", (d_model,))
    variance = float(files.tensor("activation_std", (d_model,)).double().square().sum())
    scale = target_rms(files) / math.sqrt(variance + 1e-8)
    if "activation_global_scale" in files.tensors:
        stored = float(files.tensor("activation_global_scale", (), (1,)))
        if stored != 1.0 and abs(stored - scale) > 1e-3 * scale:
            raise files.error(f"activation_global_scale is {stored}, but target_rms and activation_std give {scale}")
        scale = scale if stored == 1.0 else stored
    return {"mean": mean, "scale": scale}


def _lens(files: Files, rule: Rule, factor: float | None) -> _Dictionary:
    """`(x - b_dec) W_enc + b_enc`, or `x W_enc + b_enc` where the configuration says so."""
    if "w_enc" in files.tensors:
        # Gemma Scope 2, whose dictionaries read activations as they are.
        files.tensors.update({f"W_{name}": files.tensors.pop(f"w_{name}") for name in ("enc", "dec")})
        centred = False
    else:
        centred = _is_centred(files)
    files.check_tensors(_LENS)
    d_model, latents = files.tensors["W_enc"].shape
    files.check_sizes(d_in=d_model, d_sae=latents)
    _check_lens(files, factor)
    W_enc, b_dec = files.tensor("W_enc"), files.tensor("b_dec", (d_model,))
    b_enc = files.tensor("b_enc", (latents,))
    if centred:
        b_enc = (b_enc.double() - b_dec.double() @ W_enc.double()).to(torch.float32)
    return _Dictionary(
        W_enc,
        b_enc,
        files.tensor("W_dec", (latents, d_model)),
        b_dec,
        _lens_selection(files, rule, latents),
        factor or 1.0,
    )


def _is_centred(files: Files) -> bool:
    """Whether the decoder's bias is subtracted first: SAELens does unless told otherwise."""
    said = files.word("apply_b_dec_to_input")
    if said is None:
        files.note("No configuration says apply_b_dec_to_input: true is assumed, SAELens' own default.")
    return said is None or bool(said)


def _check_lens(files: Files, factor: float | None) -> None:
    normalise = files.word("normalize_activations")
    if normalise in (True, "expected_average_only_in"):
        if factor is None:
            raise files.error(
                "its inputs were scaled to an average norm that the file does not hold; pass the factor in "
                "input_scale, or (1.0, 1.0) if it is folded into the weights"
            )
    elif normalise not in (None, False, "none"):
        raise files.error(
            f"its configuration says normalize_activations {normalise!r}, which scales every token by itself"
        )
    elif factor is not None:
        raise files.error("its configuration scales no inputs; leave input_scale out")
    if (reshape := files.word("reshape_activations")) not in (None, "none"):
        raise files.error(f"its configuration says reshape_activations {reshape!r}: it reads no residual stream")
    if "scaling_factor" in files.tensors and bool((files.tensor("scaling_factor") != 1).any()):
        raise files.error("scaling_factor is not 1 throughout: codes scaled after their selection are not known")


def _lens_selection(files: Files, rule: Rule, latents: int) -> dict[str, Any]:
    """JumpReLU, the k largest of a token, a threshold of BatchTopK, or ReLU; on scaled activations if configured so."""
    normalisation = {"code_normalisation": "crosscoder" if files.word("rescale_acts_by_decoder_norm") else "none"}
    if "threshold" in files.tensors:
        if rule.name in (RELU, TOPK):
            raise files.error(f"{rule.said}, but the file holds thresholds")
        thresholds = files.tensor("threshold", (latents,), (), (1,)).expand(latents).contiguous()
        return normalisation | {"keep": AboveThresholds(thresholds)}
    if rule.name == JUMPRELU:
        raise files.error(f"{rule.said}, but the file holds no threshold")
    if "topk_threshold" in files.tensors and rule.name != TOPK:
        threshold = float(files.tensor("topk_threshold", (), (1,)))
        if threshold > 0:
            return normalisation | {"keep": AboveThreshold(threshold)}
    if rule.name in (TOPK, BATCH_TOPK) or (rule.name is None and rule.counts):
        return normalisation | token_k(files, rule, latents)
    if rule.name is None and "standard" not in [each.value for each in files.said("architecture")]:
        raise files.error(f"{rule.said}, and the file holds no threshold: its rule is unknown")
    return normalisation
