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
from crosscope_worker.dictionary.published.files import Source
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


def recognises(source: Source) -> bool:
    """Whether the tensors are a dictionary of one stream: encoder weights of two axes."""
    names = {"encoder.weight", "decoder.weight"}, {"W_enc", "W_dec"}, {"w_enc", "w_dec"}
    found = next((both for both in names if both <= source.tensors.keys()), None)
    return found is not None and all(source.tensors[name].ndim == 2 for name in found)


def fields(source: Source, rule: Rule, input_scale: tuple[float, float] | None, reads: str) -> dict[str, Any]:
    """The Crosscoder's fields.

    Raises CrosscoderError if `reads` does not say what it was trained on, and for contradictions and unknown rules.
    """
    if reads not in VARIANTS:
        raise source.error(
            "it is a dictionary of one stream of activations; set reads to difference (chat less base), base or chat"
        )
    if input_scale is not None and (reads == "difference" and input_scale[BASE] != input_scale[CHAT]):
        raise source.error(f"a difference has one scale for both models, not {input_scale}")
    factor = None if input_scale is None else input_scale[BASE if reads == "base" else CHAT]
    if reads != "difference":
        other = "chat" if reads == "base" else "base"
        source.note(
            f"It reads {reads} alone: figures of {other}'s reconstruction, relative norms and the causal patch are "
            "undefined."
        )
    if "encoder.weight" in source.tensors:
        if factor is not None:
            raise source.error("this layout holds its input normaliser, or has none; leave input_scale out")
        return _placed(_linear(source, rule), reads)
    return _placed(_lens(source, rule, factor), reads)


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


def _linear(source: Source, rule: Rule) -> _Dictionary:
    """A code `relu(W (x - b_dec) + b)`; for AutoEncoderNew, whose decoder has the bias, `relu(W x + b)`."""
    source.check_tensors(_LINEAR | set(SPARSIFIERS) | set(NORMALISER))
    biases = sorted({"b_dec", "bias", "decoder.bias"} & source.tensors.keys())
    if len(biases) != 1:
        raise source.error(f"it holds {' and '.join(biases) or 'no bias of the decoder'}; one of b_dec, bias is known")
    weight = source.tensor("encoder.weight")
    latents, d_model = weight.shape
    source.check_sizes(activation_dim=d_model, dict_size=latents)
    b_dec = source.tensor(biases[0], (d_model,))
    b_enc = source.tensor("encoder.bias", (latents,))
    if biases[0] != "decoder.bias":
        b_enc = (b_enc.double() - weight.double() @ b_dec.double()).to(torch.float32)
    return _Dictionary(
        W_enc=weight.T,
        b_enc=b_enc,
        W_dec=source.tensor("decoder.weight", (d_model, latents)).T.contiguous(),
        b_dec=b_dec,
        selection=_linear_selection(source, rule, biases[0], latents),
        **_linear_normaliser(source, d_model),
    )


def _linear_selection(source: Source, rule: Rule, bias: str, latents: int) -> dict[str, Any]:
    """A threshold on unscaled activations, the k largest of a token, or ReLU."""
    unscaled = {"code_normalisation": "none"}
    sparsified = sorted(source.tensors.keys() & set(SPARSIFIERS))
    if rule.name == JUMPRELU:
        raise source.error(f"{rule.said}, but the file holds no threshold for each latent")
    if rule.name == RELU and sparsified:
        raise source.error(f"{rule.said}, which has no {' and no '.join(sparsified)}")
    threshold = float(source.tensor("threshold", (), (1,))) if "threshold" in source.tensors else -1.0
    if rule.name != TOPK and (threshold >= 0 or (rule.name == BATCH_TOPK and "threshold" in source.tensors)):
        if "k" in source.tensors:
            count(source, rule, latents)
        if rule.name is None:
            source.note("No configuration says topk or batchtopk: the threshold is taken, as of BatchTopK.")
        if threshold < 0:
            source.note(f"The threshold is {threshold:g}, as before training sets it: every positive code is kept.")
        return unscaled | ({"keep": AboveThreshold(threshold)} if threshold >= 0 else {})
    if sparsified or rule.counts or rule.name in (TOPK, BATCH_TOPK):
        return unscaled | token_k(source, rule, latents)
    if rule.name is None:
        if bias == "b_dec":
            raise source.error(f"{rule.said}, and the file holds no k and no threshold: its rule is unknown")
        source.note(f"{rule.said.capitalize()}: ReLU is assumed, which every class with a tensor {bias} has.")
    return unscaled


def _linear_normaliser(source: Source, d_model: int) -> dict[str, Any]:
    """The input normaliser of one stream, by the formula of the forks' crosscoders."""
    off = [is_off(source, f"activation_{name}") for name in ("mean", "std")]
    if any(off):
        if not all(off):
            raise source.error("only one of activation_mean and activation_std is given; the normaliser needs both")
        return {}
    mean = source.tensor("activation_mean", (d_model,))
    variance = float(source.tensor("activation_std", (d_model,)).double().square().sum())
    scale = target_rms(source) / math.sqrt(variance + 1e-8)
    if "activation_global_scale" in source.tensors:
        stored = float(source.tensor("activation_global_scale", (), (1,)))
        if stored != 1.0 and abs(stored - scale) > 1e-3 * scale:
            raise source.error(f"activation_global_scale is {stored}, but target_rms and activation_std give {scale}")
        scale = scale if stored == 1.0 else stored
    return {"mean": mean, "scale": scale}


def _lens(source: Source, rule: Rule, factor: float | None) -> _Dictionary:
    """`(x - b_dec) W_enc + b_enc`, or `x W_enc + b_enc` where the configuration says so."""
    if "w_enc" in source.tensors:
        # Gemma Scope 2, whose dictionaries read activations as they are.
        source.tensors.update({f"W_{name}": source.tensors.pop(f"w_{name}") for name in ("enc", "dec")})
        centred = False
    else:
        centred = _is_centred(source)
    source.check_tensors(_LENS)
    d_model, latents = source.tensors["W_enc"].shape
    source.check_sizes(d_in=d_model, d_sae=latents)
    _check_lens(source, factor)
    W_enc, b_dec = source.tensor("W_enc"), source.tensor("b_dec", (d_model,))
    b_enc = source.tensor("b_enc", (latents,))
    if centred:
        b_enc = (b_enc.double() - b_dec.double() @ W_enc.double()).to(torch.float32)
    return _Dictionary(
        W_enc,
        b_enc,
        source.tensor("W_dec", (latents, d_model)),
        b_dec,
        _lens_selection(source, rule, latents),
        factor or 1.0,
    )


def _is_centred(source: Source) -> bool:
    """Whether the decoder's bias is subtracted first: SAELens does unless told otherwise."""
    said = source.word("apply_b_dec_to_input")
    if said is None:
        source.note("No configuration says apply_b_dec_to_input: true is assumed, SAELens' own default.")
    return said is None or bool(said)


def _check_lens(source: Source, factor: float | None) -> None:
    normalise = source.word("normalize_activations")
    if normalise in (True, "expected_average_only_in"):
        if factor is None:
            raise source.error(
                "its inputs were scaled to an average norm that the file does not hold; pass the factor in "
                "input_scale, or (1.0, 1.0) if it is folded into the weights"
            )
    elif normalise not in (None, False, "none"):
        raise source.error(
            f"its configuration says normalize_activations {normalise!r}, which scales every token by itself"
        )
    elif factor is not None:
        raise source.error("its configuration scales no inputs; leave input_scale out")
    if (reshape := source.word("reshape_activations")) not in (None, "none"):
        raise source.error(f"its configuration says reshape_activations {reshape!r}: it reads no residual stream")
    if "scaling_factor" in source.tensors and bool((source.tensor("scaling_factor") != 1).any()):
        raise source.error("scaling_factor is not 1 throughout: codes scaled after their selection are not known")


def _lens_selection(source: Source, rule: Rule, latents: int) -> dict[str, Any]:
    """JumpReLU, the k largest of a token, a threshold of BatchTopK, or ReLU; on scaled activations if configured so."""
    normalisation = {"code_normalisation": "crosscoder" if source.word("rescale_acts_by_decoder_norm") else "none"}
    if "threshold" in source.tensors:
        if rule.name in (RELU, TOPK):
            raise source.error(f"{rule.said}, but the file holds thresholds")
        thresholds = source.tensor("threshold", (latents,), (), (1,)).expand(latents).contiguous()
        return normalisation | {"keep": AboveThresholds(thresholds)}
    if rule.name == JUMPRELU:
        raise source.error(f"{rule.said}, but the file holds no threshold")
    if "topk_threshold" in source.tensors and rule.name != TOPK:
        threshold = float(source.tensor("topk_threshold", (), (1,)))
        if threshold > 0:
            return normalisation | {"keep": AboveThreshold(threshold)}
    if rule.name in (TOPK, BATCH_TOPK) or (rule.name is None and rule.counts):
        return normalisation | token_k(source, rule, latents)
    if rule.name is None and "standard" not in [each.value for each in source.said("architecture")]:
        raise source.error(f"{rule.said}, and the file holds no threshold: its rule is unknown")
    return normalisation
