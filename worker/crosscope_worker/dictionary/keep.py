"""The rules by which entries of a code are kept at inference, and how a version folder stores them (math §1, §2).

A `Keep` is a rule as it is stored. For a decoder it becomes a `Sparsifier` (sparsifier.py), which cuts and scales
codes.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from crosscope_proto.roles import BASE, CHAT
from crosscope_worker.dictionary.errors import CrosscoderError
from crosscope_worker.dictionary.sparsifier import OneCode, Sparsifier, TwoCodes, code_norms, cuts, model_norms


class Keep:
    """Every positive entry is kept; subclasses are the other rules."""

    decoupled: ClassVar[bool] = False
    """Whether each model keeps entries of its own, as in a decoupled code and in no other."""
    words: ClassVar[str] = "keeps every positive entry"

    def problem(self, num_latents: int) -> str | None:
        """A sentence if the rule does not fit a dictionary of `num_latents` latents, else None."""
        return None

    def sparsifier(self, W_dec: Tensor, d_model: tuple[int, int], normalisation: str) -> Sparsifier:
        """The rule for the decoder rows `W_dec: [latent, both]` and a code normalisation."""
        norms = code_norms(W_dec, d_model, normalisation)
        return OneCode(torch.zeros_like(norms), norms)

    def to(self, device: torch.device | str) -> Self:
        """The same with its tensors on another device."""
        return self

    def swapped(self) -> "Keep":
        """The rule of the same crosscoder with its models exchanged."""
        return self

    def only(self, latents: Tensor) -> "Keep | None":
        """The rule for some latents alone, [chosen] int64; None if other latents of a token decide, too."""
        return self


ALL_POSITIVE = Keep()


@dataclass(frozen=True)
class AboveThreshold(Keep):
    """Scaled activations above a threshold are kept."""

    threshold: float
    words: ClassVar[str] = "keeps what lies above a threshold"

    def problem(self, num_latents: int) -> str | None:
        """See Keep."""
        finite = abs(self.threshold) < float("inf")
        return None if finite else f"threshold must be a finite number, not {self.threshold}"

    def sparsifier(self, W_dec: Tensor, d_model: tuple[int, int], normalisation: str) -> Sparsifier:
        """See Keep."""
        norms = code_norms(W_dec, d_model, normalisation)
        return OneCode(cuts(self.threshold, norms), norms)


@dataclass(frozen=True, eq=False)
class AboveThresholds(Keep):
    """Scaled activations above their latent's threshold are kept."""

    thresholds: Tensor
    """[latent]."""
    words: ClassVar[str] = "has a threshold for every latent"

    def problem(self, num_latents: int) -> str | None:
        """See Keep."""
        return _wrong_shape("latent_thresholds", self.thresholds, (num_latents,))

    def sparsifier(self, W_dec: Tensor, d_model: tuple[int, int], normalisation: str) -> Sparsifier:
        """See Keep."""
        norms = code_norms(W_dec, d_model, normalisation)
        return OneCode(cuts(self.thresholds, norms), norms)

    def to(self, device: torch.device | str) -> Self:
        """See Keep."""
        return replace(self, thresholds=self.thresholds.to(device))

    def only(self, latents: Tensor) -> Keep:
        """See Keep."""
        return replace(self, thresholds=self.thresholds[latents])


@dataclass(frozen=True, eq=False)
class AboveModelThresholds(Keep):
    """Model m keeps `f_j` where `f_j ‖D_j^m‖` is above its threshold (math §1)."""

    thresholds: Tensor
    """[model, latent]; a negative one keeps every positive entry."""
    decoupled: ClassVar[bool] = True
    words: ClassVar[str] = "has thresholds for each model"

    def problem(self, num_latents: int) -> str | None:
        """See Keep."""
        return _wrong_shape("model_thresholds", self.thresholds, (2, num_latents))

    def sparsifier(self, W_dec: Tensor, d_model: tuple[int, int], normalisation: str) -> Sparsifier:
        """See Keep."""
        norms = model_norms(W_dec, d_model)
        base, chat = (cuts(self.thresholds[model], norms[model]) for model in (BASE, CHAT))
        return TwoCodes((base, chat), norms)

    def to(self, device: torch.device | str) -> Self:
        """See Keep."""
        return replace(self, thresholds=self.thresholds.to(device))

    def swapped(self) -> Keep:
        """See Keep."""
        return replace(self, thresholds=self.thresholds.flip(0))

    def only(self, latents: Tensor) -> Keep:
        """See Keep."""
        return replace(self, thresholds=self.thresholds[:, latents])


@dataclass(frozen=True)
class LargestOfToken(Keep):
    """The k largest scaled activations of a token are kept; ties go to the lower latent."""

    k: int
    words: ClassVar[str] = "keeps k of each token"

    def problem(self, num_latents: int) -> str | None:
        """See Keep."""
        return None if 0 < self.k <= num_latents else f"token_k is {self.k}, but there are {num_latents} latents"

    def sparsifier(self, W_dec: Tensor, d_model: tuple[int, int], normalisation: str) -> Sparsifier:
        """See Keep."""
        norms = code_norms(W_dec, d_model, normalisation)
        return OneCode(torch.zeros_like(norms), norms, self.k)

    def only(self, latents: Tensor) -> None:
        """See Keep."""
        return


@dataclass(frozen=True)
class LargestByModel(LargestOfToken):
    """Each model keeps the k largest of a token for itself, scaled by the norms of its own rows."""

    decoupled: ClassVar[bool] = True

    def sparsifier(self, W_dec: Tensor, d_model: tuple[int, int], normalisation: str) -> Sparsifier:
        """See Keep."""
        norms = model_norms(W_dec, d_model)
        base, chat = (cuts(0.0, each) for each in norms)
        return TwoCodes((base, chat), norms, self.k)


def keep_everything(num_latents: int) -> AboveModelThresholds:
    """The rule of a decoupled code whose models keep every positive entry."""
    return AboveModelThresholds(torch.full((2, num_latents), -1.0))


@dataclass(frozen=True, eq=False)
class StoredKeep:
    """A rule as a version folder has it (crosscoder.json, and tensors beside the weights)."""

    threshold: float | None = None
    token_k: int | None = None
    latent_thresholds: Tensor | None = None
    """[latent]."""
    model_thresholds: Tensor | None = None
    """[model, latent], of a decoupled code."""

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The rule's tensors by their names in the file."""
        named = {"latent_thresholds": self.latent_thresholds, "model_thresholds": self.model_thresholds}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @classmethod
    def of(cls, keep: Keep, num_latents: int) -> Self:
        """How a rule is stored."""
        match keep:
            case AboveThreshold(threshold):
                return cls(threshold=threshold)
            case AboveThresholds(thresholds):
                return cls(latent_thresholds=thresholds)
            case AboveModelThresholds(thresholds):
                return cls(model_thresholds=thresholds)
            case LargestByModel(k):
                return cls(token_k=k, model_thresholds=keep_everything(num_latents).thresholds)
            case LargestOfToken(k):
                return cls(token_k=k)
            case _:
                return cls()

    def rule(self) -> Keep:
        """The rule that is stored. Raises CrosscoderError if two are."""
        if self.token_k is not None:
            below = self.model_thresholds is None or bool((self.model_thresholds <= 0).all())
            if self.threshold is not None or self.latent_thresholds is not None or not below:
                raise CrosscoderError("a threshold is stored beside token_k; keep one of them")
            return LargestOfToken(self.token_k) if self.model_thresholds is None else LargestByModel(self.token_k)
        found: list[Any] = [self.threshold, self.latent_thresholds, self.model_thresholds]
        if sum(each is not None for each in found) > 1:
            raise CrosscoderError("two of threshold, latent_thresholds and model_thresholds are stored; keep one kind")
        if self.latent_thresholds is not None:
            return AboveThresholds(self.latent_thresholds)
        if self.model_thresholds is not None:
            return AboveModelThresholds(self.model_thresholds)
        return ALL_POSITIVE if self.threshold is None else AboveThreshold(self.threshold)


def _wrong_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> str | None:
    found = tuple(tensor.shape)
    return None if found == shape else f"{name} has shape {found}, not {shape}"
