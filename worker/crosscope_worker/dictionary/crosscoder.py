"""The crosscoder: one sparse dictionary for the residual streams of two models.

Knows its formulas (math §1, §6) and how a version folder is written. Does not know how the folder is read (version.py),
how the crosscoder was trained, or what its latents mean.

Axis `both`: the models' residual streams side by side, base's `d_model` first. `[batch, both]` is the same memory as
`[batch, model, d_model]` where the two widths agree, and it also holds models of different width.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor

from crosscope_proto.artefacts import MANIFEST, WEIGHTS, CrosscoderManifest
from crosscope_proto.dictionaries import Normalisation
from crosscope_proto.manifest import manifest_text
from crosscope_proto.roles import BASE, CHAT
from crosscope_worker.dictionary.errors import CrosscoderError
from crosscope_worker.dictionary.keep import ALL_POSITIVE, Keep, StoredKeep
from crosscope_worker.dictionary.sparse import SparseCode, decode_entries, flat_indices, sparse_code
from crosscope_worker.dictionary.sparsifier import Sparsifier, code_norms
from crosscope_worker.dictionary.streams import BOTH, Streams, model_slice
from crosscope_worker.disk import whole, write_whole

CODE_NORMALISATIONS = get_args(Normalisation)
TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec")


@dataclass
class Crosscoder:
    """A sparse dictionary over both models' activations.

    All methods take `x: [batch, both]` or `[batch, model, d_model]` as the models gave it; the input normaliser
    `(x - input_mean) * input_scale` is applied inside and undone by `decode`.

    `streams` says what it reads. In a dictionary of differences, the encoder reads base with the opposite sign of chat,
    and the decoder writes nothing for base. What `decode` gives for chat is then the reconstruction of
    `x^chat - x^base`. A dictionary of one model has zeros for the other model.
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
    """Its variant's name, for people; nothing depends on it."""
    code_normalisation: str = "crosscoder"
    streams: Streams = BOTH
    """What it reads and reconstructs."""
    keep: Keep = ALL_POSITIVE
    """Which entries of a code are kept at inference (math §2)."""
    input_scale: tuple[float, float] = (1.0, 1.0)
    input_mean: Tensor | None = None
    """[both], in the models' own scale; None: nothing is subtracted."""
    notes: tuple[str, ...] = ()
    """What was assumed or left out when it was read from a published file; a sentence each."""

    def __post_init__(self) -> None:
        both, num_latents = self.W_enc.shape
        expected = {"b_enc": (num_latents,), "W_dec": (num_latents, both), "b_dec": (both,)}
        for name, shape in expected.items():
            if (found := tuple(getattr(self, name).shape)) != shape:
                raise CrosscoderError(f"{name} has shape {found}, but W_enc {tuple(self.W_enc.shape)} asks for {shape}")
        if (total := sum(self.d_model)) != both:
            raise CrosscoderError(f"W_enc reads {both} values a token, but d_model {self.d_model} adds up to {total}")
        if self.code_normalisation not in CODE_NORMALISATIONS:
            known = ", ".join(CODE_NORMALISATIONS)
            raise CrosscoderError(f"unknown code normalisation {self.code_normalisation!r}; known are {known}")
        if self.input_mean is not None and tuple(self.input_mean.shape) != (both,):
            raise CrosscoderError(f"input_mean has shape {tuple(self.input_mean.shape)}, not ({both},)")
        if (self.code_normalisation == "decoupled") != self.keep.decoupled:
            raise CrosscoderError(
                "a decoupled code, and only that, has a rule for each model; this crosscoder's code normalisation is "
                f"{self.code_normalisation}, and it {self.keep.words}"
            )
        if len(self.input_scale) != 2 or not all(math.isfinite(scale) and scale > 0 for scale in self.input_scale):
            raise CrosscoderError(f"input_scale must be two positive, finite numbers, not {self.input_scale}")
        if (problem := self.keep.problem(num_latents)) is not None:
            raise CrosscoderError(problem)

    @property
    def num_latents(self) -> int:
        """Number of latents."""
        return self.W_enc.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.W_enc.device

    def to(self, device: torch.device | str) -> Self:
        """The same crosscoder with its weights on another device."""
        moved = {name: tensor.to(device) for name, tensor in self._weights().items()}
        return replace(self, **moved, keep=self.keep.to(device))

    def only(self, latents: Tensor) -> Self | None:
        """The crosscoder of some latents alone, `latents: [chosen]` int64, which activate there as they do here.

        None if other latents of a token decide what is kept.
        """
        keep = self.keep.only(latents)
        if keep is None:
            return None
        W_enc = self.W_enc.T[latents].T
        return replace(self, W_enc=W_enc, b_enc=self.b_enc[latents], W_dec=self.W_dec[latents], keep=keep)

    def model_slice(self, model: int) -> slice:
        """Where a model's residual stream lies on the axis `both`."""
        return model_slice(model, self.d_model)

    def decoder(self, model: int) -> Tensor:
        """Decoder rows of one model, [latent, d_model]."""
        return self.W_dec[:, self.model_slice(model)]

    def code_norms(self) -> Tensor:
        """The code normalisation `n: [latent]` (math §1); in a decoupled code, of entries that both keep."""
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

        A decoupled code has the entries that at least one model keeps. `decode` drops those that a model does not keep.
        """
        code = self.pre_activations(x).relu_()
        return code * self.sparsifier().kept(code)

    def encode_sparse(self, x: Tensor, sparsifier: Sparsifier | None = None) -> SparseCode:
        """The non-zero entries of `encode(x)`; values are raw, not scaled. A `sparsifier` that is given is used."""
        code = self.pre_activations(x).relu_()
        return sparse_code(flat_indices((sparsifier or self.sparsifier()).kept(code)), code)

    def scaled(self, x: Tensor) -> Tensor:
        """Scaled activations `a = f n`, [batch, latent] (math §1); summed over the models that keep a decoupled `f`."""
        return self.sparsifier().scaled(self.encode(x))

    def sparsifier(self) -> Sparsifier:
        """The rule `keep` for these weights. Reads the whole decoder, so reuse it while the weights do not change."""
        return self.keep.sparsifier(self.W_dec, self.d_model, self.code_normalisation)

    def decode(self, code: Tensor, only: Tensor | None = None) -> Tensor:
        """Reconstructions `x_hat: [batch, both]` of a raw code `[batch, latent]`, in the models' own scale.

        With `only: [latent]`, 1 or 0, only latents with a 1 are added up. The whole code still decides which entries a
        model keeps.
        """
        chosen = code if only is None else code * only
        if not self.keep.decoupled:
            x_hat = torch.addmm(self.b_dec, chosen, self.W_dec)
        else:
            kept = self.sparsifier().kept_by_models(code)
            parts = [(chosen * kept[model]) @ self.decoder(model) for model in (BASE, CHAT)]
            x_hat = torch.cat(parts, dim=1) + self.b_dec
        return self.restored(x_hat)

    def restored(self, x_hat: Tensor) -> Tensor:
        """Reconstructions [batch, both] in the crosscoder's input space, back in the models' own scale."""
        x_hat = scale_inputs(x_hat, self.d_model, (1 / self.input_scale[BASE], 1 / self.input_scale[CHAT]))
        return x_hat if self.input_mean is None else x_hat + self.input_mean

    def decode_sparse(self, code: SparseCode, kept_by: tuple[Tensor, Tensor]) -> Tensor:
        """Decoder rows of a code plus bias, [batch, both], in the crosscoder's input space; `Sparsifier.kept_by`."""
        if not self.keep.decoupled:
            return decode_entries(code, self.W_dec) + self.b_dec
        parts = [
            decode_entries(code._replace(values=code.values * keep), self.decoder(model).contiguous())
            for model, keep in enumerate(kept_by)
        ]
        return torch.cat(parts, dim=1) + self.b_dec

    def _weights(self) -> dict[str, Tensor]:
        present = {name: getattr(self, name) for name in (*TENSORS, "input_mean")}
        return {name: tensor for name, tensor in present.items() if tensor is not None}

    def save(self, folder: Path, manifest: CrosscoderManifest) -> None:
        """Writes the weights and the manifest into a folder, each whole.

        Raises OSError or SafetensorError, for instance when the disk is full.
        """
        tensors = self._weights() | StoredKeep.of(self.keep, self.num_latents).tensors
        with whole(folder / WEIGHTS) as partial:
            save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, partial)
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
    if not crosscoder.streams.compares_rows:
        return torch.full_like(crosscoder.b_enc, torch.nan)
    base, chat = (crosscoder.decoder(model).norm(dim=1) for model in (BASE, CHAT))
    return relative_norm(base, chat)


def relative_norm(base: Tensor, chat: Tensor) -> Tensor:
    """`[latent]`, the relative norm of rows with the norms `base: [latent]` and `chat: [latent]` (math §6).

    NaN where both are zero.
    """
    return 0.5 * ((chat - base) / torch.maximum(chat, base) + 1)
