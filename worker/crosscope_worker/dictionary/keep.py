"""Which entries of a code are kept at inference, and how they are scaled (math §1, §2).

A `Keep` is the rule as it is stored. With the norms of decoder rows it becomes a `Sparsifier`, which cuts and scales
codes. Knows no encoder.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

from crosscope_proto.roles import BASE, CHAT
from crosscope_worker.dictionary.errors import CrosscoderError
from crosscope_worker.dictionary.sparse import SparseCode

ByModel = tuple[Tensor, Tensor]
"""A tensor for base and one for chat."""


class Sparsifier(Protocol):
    """A rule worked out for one decoder. Codes are [batch, latent], as ReLU leaves them unless said otherwise."""

    def kept(self, code: Tensor) -> Tensor:
        """Which entries at least one model keeps, [batch, latent] bool."""
        ...

    def kept_by_models(self, code: Tensor) -> ByModel:
        """Which entries each model's reconstruction has, [batch, latent] bool; the code may be cut to `kept`."""
        ...

    def scaled(self, code: Tensor) -> Tensor:
        """Scaled activations, [batch, latent], of a code that is cut to `kept`."""
        ...

    def scaled_entries(self, code: SparseCode) -> Tensor:
        """Scaled activations of a sparse code's entries, [entry]."""
        ...

    def kept_by(self, code: SparseCode) -> ByModel:
        """Which entries of a sparse code each model's reconstruction has, [entry] bool."""
        ...


@dataclass(frozen=True, eq=False)
class _OneCode:
    """Both models have the same entries."""

    cuts: Tensor
    """[latent]: entries `f_j` above it are kept; never negative."""
    norms: Tensor
    """[latent]: the code normalisation."""
    k: int | None = None
    """How many of a token's largest scaled activations are kept, ties to the lower latent; None: all."""

    def kept(self, code: Tensor) -> Tensor:
        kept = code > self.cuts
        return kept if self.k is None else kept & largest(code * self.norms, self.k)

    def kept_by_models(self, code: Tensor) -> ByModel:
        kept = self.kept(code)
        return kept, kept

    def scaled(self, code: Tensor) -> Tensor:
        return code * self.norms

    def scaled_entries(self, code: SparseCode) -> Tensor:
        return code.values * self.norms[code.latents]

    def kept_by(self, code: SparseCode) -> ByModel:
        both = torch.ones_like(code.values, dtype=torch.bool)
        return both, both


@dataclass(frozen=True, eq=False)
class _TwoCodes:
    """Each model keeps entries of its own: a decoupled code."""

    cuts: ByModel
    """[latent] each, as `_OneCode.cuts`."""
    norms: ByModel
    """[latent] each: norms of the models' decoder rows."""
    k: int | None = None
    """As `_OneCode.k`, for each model by itself."""

    def kept(self, code: Tensor) -> Tensor:
        if self.k is None:
            return code > torch.minimum(*self.cuts)
        base, chat = self.kept_by_models(code)
        return base | chat

    def kept_by_models(self, code: Tensor) -> ByModel:
        base, chat = (code > cuts for cuts in self.cuts)
        if self.k is not None:
            base &= largest(code * self.norms[BASE], self.k)
            chat &= largest(code * self.norms[CHAT], self.k)
        return base, chat

    def scaled(self, code: Tensor) -> Tensor:
        (base, chat), (base_norm, chat_norm) = self.kept_by_models(code), self.norms
        return code * (base * base_norm + chat * chat_norm)

    def scaled_entries(self, code: SparseCode) -> Tensor:
        kept = zip(self.kept_by(code), self.norms, strict=True)
        base, chat = (keep * norms[code.latents] for keep, norms in kept)
        return code.values * (base + chat)

    def kept_by(self, code: SparseCode) -> ByModel:
        base, chat = (code.values > cuts[code.latents] for cuts in self.cuts)
        if self.k is not None:
            for keep, norms in zip((base, chat), self.norms, strict=True):
                keep &= _largest_entries(code, code.values * norms[code.latents], self.k)
        return base, chat


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
        return _OneCode(torch.zeros_like(norms), norms)

    def to(self, device: torch.device | str) -> Self:
        """The same with its tensors on another device."""
        return self

    def swapped(self) -> "Keep":
        """The rule of the same crosscoder with its models exchanged."""
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
        return _OneCode(cuts(self.threshold, norms), norms)


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
        return _OneCode(cuts(self.thresholds, norms), norms)

    def to(self, device: torch.device | str) -> Self:
        """See Keep."""
        return replace(self, thresholds=self.thresholds.to(device))


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
        return _TwoCodes((base, chat), norms)

    def to(self, device: torch.device | str) -> Self:
        """See Keep."""
        return replace(self, thresholds=self.thresholds.to(device))

    def swapped(self) -> Keep:
        """See Keep."""
        return replace(self, thresholds=self.thresholds.flip(0))


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
        return _OneCode(torch.zeros_like(norms), norms, self.k)


@dataclass(frozen=True)
class LargestByModel(LargestOfToken):
    """Each model keeps the k largest of a token for itself, scaled by the norms of its own rows."""

    decoupled: ClassVar[bool] = True

    def sparsifier(self, W_dec: Tensor, d_model: tuple[int, int], normalisation: str) -> Sparsifier:
        """See Keep."""
        norms = model_norms(W_dec, d_model)
        base, chat = (cuts(0.0, each) for each in norms)
        return _TwoCodes((base, chat), norms, self.k)


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


def model_norms(W_dec: Tensor, d_model: tuple[int, int]) -> ByModel:
    """Norms of the models' halves of the decoder rows `W_dec: [latent, both]`, [latent] each."""
    return W_dec[:, : d_model[BASE]].norm(dim=1), W_dec[:, d_model[BASE] :].norm(dim=1)


def code_norms(W_dec: Tensor, d_model: tuple[int, ...], normalisation: str) -> Tensor:
    """The code normalisation `n: [latent]` of `W_dec: [latent, both]` (math §1); `both` may be one part alone."""
    base, chat = W_dec[:, : d_model[BASE]].norm(dim=1), W_dec[:, d_model[BASE] :].norm(dim=1)
    match normalisation:
        case "crosscoder" | "decoupled":
            return base + chat
        case "sae":
            return torch.hypot(base, chat)
        case "mixed":
            return torch.hypot(base, chat) + 0.1 * (base + chat)
        case _:
            return torch.ones_like(base)


def cuts(threshold: float | Tensor, norms: Tensor) -> Tensor:
    """The values [latent] above which `f n > threshold`. Never negative; infinite where the norm is 0."""
    return torch.where(norms > 0, threshold / norms, torch.inf).clamp_min_(0.0)


def largest(scaled: Tensor, k: int) -> Tensor:
    """A mask of the `k` largest positive entries of each row of `scaled: [batch, latent]`.

    Ties go to the entry further left. So a row keeps exactly `k` entries, or all its positive ones if there are fewer.
    """
    if k >= scaled.shape[1]:
        return scaled > 0
    smallest = scaled.topk(k, dim=1, sorted=False).values.amin(dim=1, keepdim=True).clamp_min_(0.0)
    keep = (scaled >= smallest) & (scaled > 0)
    crowded = (keep.sum(dim=1) > k).nonzero().squeeze(1)
    if len(crowded):
        rows, least = scaled[crowded], smallest[crowded]
        ties = rows == least
        room = k - (rows > least).sum(dim=1, keepdim=True)
        keep[crowded] = (rows > least) | (ties & (ties.cumsum(dim=1) <= room))
    return keep


def _largest_entries(code: SparseCode, scaled: Tensor, k: int) -> Tensor:
    """The same for the entries of a sparse code with scaled activations `scaled: [entry]`; returns [entry] bool."""
    # Entries come by token, then by latent, and stable sorts keep that order among equals.
    order = torch.argsort(scaled, descending=True, stable=True)
    order = order[torch.argsort(code.tokens[order], stable=True)]
    rank = torch.arange(len(order), device=order.device) - code.row_starts()[code.tokens[order]]
    keep = torch.empty_like(scaled, dtype=torch.bool)
    keep[order] = rank < k
    return keep & (scaled > 0)
