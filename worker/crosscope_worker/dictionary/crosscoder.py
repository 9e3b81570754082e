"""The crosscoder: one sparse dictionary for the residual streams of two models.

Knows its formulas (math §1, §6) and how a version folder is written; not how it is read again (load.py), how it was
trained or what its latents mean.

Axis `both`: the models' residual streams side by side, base's `d_model` first. `[batch, both]` is the same memory as
`[batch, model, d_model]` where the two widths agree, and lets models of different width through.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import save_file
from torch import Tensor

from crosscope_proto.artefacts import MANIFEST, WEIGHTS, CrosscoderManifest
from crosscope_proto.manifest import manifest_text
from crosscope_proto.roles import BASE, CHAT
from crosscope_worker.dictionary.keep import Selection, code_norms, cuts
from crosscope_worker.dictionary.sparse import SparseCode, decode_pairs, places, sparse_code
from crosscope_worker.disk import whole, write_whole

CODE_NORMALISATIONS = ("crosscoder", "sae", "mixed", "none", "decoupled")
TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec")
OPTIONAL_TENSORS = ("input_mean", "latent_thresholds", "model_thresholds")
DIFFERENCE = "diff_sae"
"""The variant whose input and target are `x^chat - x^base` (math §2)."""
ONE_MODEL = {"base_sae": BASE, "chat_sae": CHAT}
"""Variants that read and reconstruct one model alone: a sparse autoencoder of it (docs/published.md)."""


class CrosscoderError(ValueError):
    """Crosscoder files that cannot be used; the message names the file and what is wrong with it."""


@dataclass
class Crosscoder:
    """A sparse dictionary over both models' activations.

    All methods take `x: [batch, both]` or `[batch, model, d_model]` as the models gave it; the input normaliser
    `(x - input_mean) * input_scale` is applied inside and undone by `decode`.

    A dictionary of differences (variant "diff_sae") is one whose encoder reads base with the opposite sign of chat and
    whose decoder writes nothing for base: what `decode` gives for chat is the reconstruction of `x^chat - x^base`.
    A dictionary of one model (variant "base_sae" or "chat_sae") has zeros in the other model's place.
    """

    W_enc: Tensor
    """[both, latent] float32; in memory latent by latent, as training and gathering want it."""
    b_enc: Tensor
    """[latent]."""
    W_dec: Tensor
    """[latent, both]."""
    b_dec: Tensor
    """[both]."""
    d_model: tuple[int, int]
    variant: str
    code_normalisation: str = "crosscoder"
    threshold: float | None = None
    """Scaled activations above it are kept at inference; None: every positive one (math §2)."""
    input_scale: tuple[float, float] = (1.0, 1.0)
    input_mean: Tensor | None = None
    """[both], in the models' own scale; None: nothing is subtracted."""
    latent_thresholds: Tensor | None = None
    """[latent], instead of `threshold` where latents have different ones."""
    model_thresholds: Tensor | None = None
    """[model, latent], of a decoupled code alone: model m decodes `f_j` where `f_j ‖D_j^m‖` is above it (math §1)."""
    token_k: int | None = None
    """Only so many of a token's largest scaled activations are kept, of a decoupled code by each model for itself."""
    notes: tuple[str, ...] = ()
    """What was assumed, or left out, when it was read from someone else's files; a sentence each."""

    def __post_init__(self) -> None:
        both, num_latents = self.W_enc.shape
        expected = {"b_enc": (num_latents,), "W_dec": (num_latents, both), "b_dec": (both,)}
        for name, shape in expected.items():
            if (found := tuple(getattr(self, name).shape)) != shape:
                raise CrosscoderError(f"{name} has shape {found}, but W_enc {tuple(self.W_enc.shape)} asks for {shape}")
        if sum(self.d_model) != both:
            raise CrosscoderError(f"W_enc reads {both} values a token, but d_model {self.d_model} adds up to another")
        if self.code_normalisation not in CODE_NORMALISATIONS:
            known = ", ".join(CODE_NORMALISATIONS)
            raise CrosscoderError(f"unknown code normalisation {self.code_normalisation!r}; known are {known}")
        if self.input_mean is not None and tuple(self.input_mean.shape) != (both,):
            raise CrosscoderError(f"input_mean has shape {tuple(self.input_mean.shape)}, not ({both},)")
        if (self.code_normalisation == "decoupled") != (self.model_thresholds is not None):
            raise CrosscoderError("a decoupled code, and no other, has thresholds for each model")
        self._check_numbers()
        if self.latent_thresholds is not None:
            if self.threshold is not None or self.model_thresholds is not None:
                raise CrosscoderError("there are thresholds for each latent beside others; only one kind can hold")
            if (found := tuple(self.latent_thresholds.shape)) != (num_latents,):
                raise CrosscoderError(f"latent_thresholds has shape {found}, not ({num_latents},)")
        if self.model_thresholds is not None:
            if self.threshold is not None:
                raise CrosscoderError("a decoupled code has a threshold for each model, not one for both")
            if (found := tuple(self.model_thresholds.shape)) != (2, num_latents):
                raise CrosscoderError(f"model_thresholds has shape {found}, not (2, {num_latents})")

    def _check_numbers(self) -> None:
        if len(self.input_scale) != 2 or not all(math.isfinite(scale) and scale > 0 for scale in self.input_scale):
            raise CrosscoderError(f"input_scale must be two positive, finite numbers, not {self.input_scale}")
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise CrosscoderError(f"threshold must be a finite number, not {self.threshold}")
        if self.token_k is not None:
            if not 0 < self.token_k <= self.num_latents:
                raise CrosscoderError(f"token_k is {self.token_k}, but there are {self.num_latents} latents")
            if self.threshold is not None or self.latent_thresholds is not None:
                raise CrosscoderError("there is a threshold beside token_k; only one of them can hold")

    @property
    def num_latents(self) -> int:
        """Number of latents."""
        return self.W_enc.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.W_enc.device

    @property
    def reconstructs(self) -> tuple[int, ...]:
        """The models whose own activations it reconstructs: both, one, or, of a dictionary of differences, none."""
        if self.variant in ONE_MODEL:
            return (ONE_MODEL[self.variant],)
        return () if self.variant == DIFFERENCE else (BASE, CHAT)

    def to(self, device: torch.device | str) -> Self:
        """The same crosscoder with its weights on another device."""
        return replace(self, **{name: tensor.to(device) for name, tensor in self._tensors().items()})

    def model_slice(self, model: int) -> slice:
        """Where a model's residual stream lies on the axis `both`."""
        return slice(0, self.d_model[BASE]) if model == BASE else slice(self.d_model[BASE], None)

    def decoder(self, model: int) -> Tensor:
        """Decoder rows of one model, [latent, d_model]."""
        return self.W_dec[:, self.model_slice(model)]

    def code_norms(self) -> Tensor:
        """The code normalisation `n: [latent]` (math §1); of a decoupled code where both models keep an entry."""
        return code_norms(self.W_dec, self.d_model, self.code_normalisation)

    def scale_inputs(self, x: Tensor) -> Tensor:
        """`x` as the encoder reads it, [batch, both]: flattened, float32, normalised."""
        x = x.reshape(x.shape[0], -1).to(self.W_enc.dtype)
        x = x if self.input_mean is None else x - self.input_mean
        return scale_inputs(x, self.d_model, self.input_scale)

    def pre_activations(self, x: Tensor) -> Tensor:
        """`sum_m x^m W_enc^m + b_enc`, [batch, latent]."""
        return torch.addmm(self.b_enc, self.scale_inputs(x), self.W_enc)

    def encode(self, x: Tensor) -> Tensor:
        """The raw code `f: [batch, latent]`, sparsified as at inference (math §1, §2).

        Of a decoupled code, the entries that at least one model keeps; `decode` drops for each model what it does not.
        """
        code = self.pre_activations(x).relu_()
        return code * self.selection().kept(code)

    def encode_sparse(self, x: Tensor, selection: Selection | None = None) -> SparseCode:
        """The non-zero entries of `encode(x)`; values are raw, not scaled. `selection` spares working it out."""
        code = self.pre_activations(x).relu_()
        return sparse_code(places((selection or self.selection()).kept(code)), code)

    def scaled(self, x: Tensor) -> Tensor:
        """Scaled activations `a = f n`, [batch, latent] (math §1); summed over the models that keep a decoupled `f`."""
        return self.selection().scaled(self.encode(x))

    def selection(self) -> Selection:
        """What is kept and how it is scaled. Reads the whole decoder; hold on to it where the weights stand still."""
        if self.model_thresholds is None:
            norms = self.code_norms()
            threshold = self.threshold if self.latent_thresholds is None else self.latent_thresholds
            above = torch.zeros_like(norms) if threshold is None else cuts(threshold, norms)
            return Selection(above, norms, token_k=self.token_k)
        base_norm, chat_norm = (self.decoder(model).norm(dim=1) for model in (BASE, CHAT))
        base, chat = cuts(self.model_thresholds[BASE], base_norm), cuts(self.model_thresholds[CHAT], chat_norm)
        parts = (base, chat), (base_norm, chat_norm)
        return Selection(torch.minimum(base, chat), base_norm + chat_norm, *parts, self.token_k)

    def decode(self, code: Tensor, only: Tensor | None = None) -> Tensor:
        """Reconstructions `x_hat: [batch, both]` of a raw code `[batch, latent]`, in the models' own scale.

        With `only: [latent]`, 1 or 0, those latents alone are added up; which entries a model keeps is asked of the
        whole code.
        """
        chosen = code if only is None else code * only
        if self.model_thresholds is None:
            x_hat = torch.addmm(self.b_dec, chosen, self.W_dec)
        else:
            kept = self.selection().kept_by_models(code)
            parts = [(chosen * kept[model]) @ self.decoder(model) for model in (BASE, CHAT)]
            x_hat = torch.cat(parts, dim=1) + self.b_dec
        x_hat = scale_inputs(x_hat, self.d_model, (1 / self.input_scale[BASE], 1 / self.input_scale[CHAT]))
        return x_hat if self.input_mean is None else x_hat + self.input_mean

    def decode_sparse(self, code: SparseCode, kept_by: tuple[Tensor, Tensor]) -> Tensor:
        """What rows and bias add up to, [batch, both], in the crosscoder's input space; see `Selection.kept_by`."""
        if self.model_thresholds is None:
            return decode_pairs(code, self.W_dec) + self.b_dec
        parts = [
            decode_pairs(code._replace(values=code.values * keep), self.decoder(model).contiguous())
            for model, keep in enumerate(kept_by)
        ]
        return torch.cat(parts, dim=1) + self.b_dec

    def _tensors(self) -> dict[str, Tensor]:
        present = {name: getattr(self, name) for name in (*TENSORS, *OPTIONAL_TENSORS)}
        return {name: tensor for name, tensor in present.items() if tensor is not None}

    def save(self, folder: Path, manifest: CrosscoderManifest) -> None:
        """Writes the weights and the manifest into a folder, each whole.

        Raises OSError or SafetensorError, for instance when the disk is full.
        """
        with whole(folder / WEIGHTS) as partial:
            save_file({name: tensor.contiguous().cpu() for name, tensor in self._tensors().items()}, partial)
        write_whole(folder / MANIFEST, manifest_text(manifest))


def scale_inputs(x: Tensor, d_model: tuple[int, int], input_scale: tuple[float, float]) -> Tensor:
    """`x: [batch, both]` with each model's part times its scale."""
    if input_scale == (1.0, 1.0):
        return x
    factors = [x.new_full((width,), scale) for width, scale in zip(d_model, input_scale, strict=True)]
    return x * torch.cat(factors)


def relative_norms(crosscoder: Crosscoder) -> Tensor:
    """`rel_norm: [latent]`, 0 base only to 1 chat only (math §6).

    NaN where both rows are zero, and for dictionaries of differences or of one model, to which it does not apply.
    """
    if len(crosscoder.reconstructs) < 2:
        return torch.full_like(crosscoder.b_enc, torch.nan)
    base, chat = (crosscoder.decoder(model).norm(dim=1) for model in (BASE, CHAT))
    return 0.5 * ((chat - base) / torch.maximum(chat, base) + 1)
