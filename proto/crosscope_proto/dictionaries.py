"""The dictionaries that a recipe can train: a class each, with its own fields and no others (math §2).

A class also says what other parts must know about its dictionary, so that nobody compares names. Knows no training: the
worker has a file of the variant's name for that.
"""

import dataclasses
import itertools
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.dataclasses import dataclass

from crosscope_proto.specs import Count, Positive, Share

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)

Reads = Literal["both", "difference", "base", "chat"]
"""What a dictionary reads and reconstructs: both models, chat less base, or one model alone."""
CoupledNormalisation = Literal["crosscoder", "sae", "mixed", "none"]
Normalisation = Literal["crosscoder", "sae", "mixed", "none", "decoupled"]


@dataclass(config=_STRICT, kw_only=True, frozen=True)
class DictionarySpec:
    """The fields and the facts that every dictionary has."""

    reads: ClassVar[Reads] = "both"
    """What the dictionary reads and reconstructs."""
    calibrates: ClassVar[bool] = False
    """Whether thresholds are measured when training has ended, on a sample of the training tokens."""
    revives: ClassVar[bool] = False
    """Whether the auxiliary loss revives dead latents."""
    anneals: ClassVar[str]
    """Name of the field that changes during training.sparsity_warmup_steps."""
    decouples: ClassVar[bool] = False
    """Whether each model can select its own latents (code normalisation decoupled)."""

    variant: str
    """The name of the dictionary and of its training objective (math §2)."""
    num_latents: Annotated[int, Field(ge=1, le=2**31 - 1)]
    """Number of latents."""
    squared: bool = False
    """Whether the norm of the reconstruction error is squared in the loss."""
    code_normalisation: Normalisation = "crosscoder"
    """The factor that turns a latent's code into its scaled activation (math §1). decoupled: each model selects its own
    latents."""

    @property
    def num_apart(self) -> int:
        """Number of latents that are set apart from the rest."""
        return 0

    def width(self, base: int, chat: int) -> int:
        """Width of the vector that it reads and reconstructs, for models of these widths."""
        return chat if self.reads == "difference" else base + chat

    @model_validator(mode="after")
    def _latents_suffice(self) -> Self:
        if self.num_apart > self.num_latents:
            raise ValueError(f"{self.num_apart} latents are set apart, but num_latents is {self.num_latents}")
        self._check()
        return self

    def _check(self) -> None:
        """Raises ValueError if fields contradict each other."""


@dataclass(config=_STRICT, kw_only=True, frozen=True)
class TwoModels(DictionarySpec):
    """A dictionary that reconstructs both models."""

    cross_term: Annotated[float, Field(ge=-1, le=0)] = 0.0
    """Weight lambda of the inner product of the two models' errors (math §2); needs squared: true."""

    def _check(self) -> None:
        super()._check()
        if self.cross_term and not self.squared:
            raise ValueError("cross_term needs squared: true")


@dataclass(config=_STRICT, kw_only=True, frozen=True)
class ChoosesK(DictionarySpec):
    """A dictionary that keeps a fixed number of active latents, k."""

    revives: ClassVar[bool] = True
    calibrates: ClassVar[bool] = True
    anneals: ClassVar[str] = "k"

    k: Count
    """Active latents a token, on average."""

    @property
    def num_choices(self) -> int:
        """Number of latents from which k are chosen."""
        return self.num_latents

    def _check(self) -> None:
        super()._check()
        if self.k > self.num_choices:
            raise ValueError(f"k {self.k} is more than the {self.num_choices} latents that it chooses from")


@dataclass(config=_STRICT, kw_only=True, frozen=True)
class Penalised(DictionarySpec):
    """A dictionary whose code is made sparse by a penalty."""

    anneals: ClassVar[str] = "mu"

    mu: Positive
    """Weight of the sparsity penalty."""


@dataclass(config=_STRICT, kw_only=True, frozen=True)
class BatchTopK(TwoModels, ChoosesK):
    """Keeps the k · batch largest scaled activations of each batch."""

    decouples: ClassVar[bool] = True
    variant: Literal["batch_topk"] = "batch_topk"


@dataclass(config=_STRICT, kw_only=True, frozen=True)
class TopK(TwoModels, ChoosesK):
    """Keeps the k largest scaled activations of each token, in training and at inference."""

    decouples: ClassVar[bool] = True
    calibrates: ClassVar[bool] = False
    variant: Literal["topk"] = "topk"


@dataclass(config=_STRICT, kw_only=True, frozen=True)
class L1(TwoModels, Penalised):
    """Keeps all positive activations, and has a penalty on the sum of the scaled ones."""

    variant: Literal["l1"] = "l1"
    code_normalisation: CoupledNormalisation = "crosscoder"


@dataclass(config=_STRICT, kw_only=True, frozen=True)
class DesignatedShared(TwoModels, Penalised):
    """L1 in which some latents are designated shared: one decoder row for both models, and a smaller penalty."""

    variant: Literal["designated_shared"] = "designated_shared"
    code_normalisation: CoupledNormalisation = "crosscoder"
    num_shared: Count
    """Number of designated shared latents; they are the first ones."""
    shared_penalty: Share
    """Penalty of the designated shared latents, as a share of mu."""

    @property
    def num_apart(self) -> int:
        """See DictionarySpec."""
        return self.num_shared


@dataclass(config=_STRICT, kw_only=True, frozen=True)
class Dfc(TwoModels, ChoosesK):
    """BatchTopK in which some latents belong to one model: they neither read nor write the other."""

    decouples: ClassVar[bool] = True
    variant: Literal["dfc"] = "dfc"
    num_base_only: Count
    """Number of latents that belong to the base model; they are the first ones."""
    num_chat_only: Count
    """Number of latents that belong to the chat model; they come after those of the base model."""

    @property
    def num_apart(self) -> int:
        """See DictionarySpec."""
        return self.num_base_only + self.num_chat_only


@dataclass(config=_STRICT, kw_only=True, frozen=True)
class Delta(TwoModels, ChoosesK):
    """BatchTopK in which some latents have their own budget, with a further loss on the difference of the models."""

    variant: Literal["delta"] = "delta"
    code_normalisation: CoupledNormalisation = "crosscoder"
    num_delta: Count
    """Number of latents with their own budget, k_delta; they are the first ones. The budget of the others is k."""
    k_delta: Count
    """Active latents a token among those num_delta latents, on average."""
    delta_weight: Positive
    """Weight of the loss on the reconstructed difference, chat less base."""

    @property
    def num_apart(self) -> int:
        """See DictionarySpec."""
        return self.num_delta

    @property
    def num_choices(self) -> int:
        """See ChoosesK."""
        return self.num_latents - self.num_delta

    def _check(self) -> None:
        super()._check()
        if self.k_delta > self.num_delta:
            raise ValueError(f"k_delta {self.k_delta} is more than num_delta {self.num_delta}")


@dataclass(config=_STRICT, kw_only=True, frozen=True)
class DiffSae(ChoosesK):
    """BatchTopK that reads and reconstructs one vector: the chat model's activation less the base model's."""

    reads: ClassVar[Reads] = "difference"
    variant: Literal["diff_sae"] = "diff_sae"
    code_normalisation: CoupledNormalisation = "crosscoder"


@dataclass(config=_STRICT, kw_only=True, frozen=True)
class JumpReLU(TwoModels, Penalised):
    """A threshold that is learnt for each latent, and a penalty on the number of active latents."""

    revives: ClassVar[bool] = True
    variant: Literal["jumprelu"] = "jumprelu"
    code_normalisation: CoupledNormalisation = "crosscoder"
    mu: Positive
    """Weight of the number of active latents of a token in the loss."""
    initial_threshold: Positive = 0.1
    """Threshold of every latent at the first step; a scaled activation."""
    bandwidth: Positive = 0.1
    """Width of the range of scaled activations around its threshold from which a latent learns that threshold. 0.1 is
    the published width, a thousandth of an input's norm, for normalised inputs of 2 304 values in each model. Wider:
    more tokens teach it, less exactly."""


@dataclass(config=_STRICT, kw_only=True, frozen=True)
class Matryoshka(TwoModels, ChoosesK):
    """BatchTopK whose nested prefixes of latents each reconstruct alone, so that the first latents are general."""

    decouples: ClassVar[bool] = True
    variant: Literal["matryoshka"] = "matryoshka"
    prefixes: Annotated[tuple[Count, ...], Field(max_length=8, validate_default=True)] = ()
    """Sizes of nested prefixes of the latents, ascending, at most eight; the last is num_latents. Unless given, the
    shares of Bussmann et al. 2025: 1/32, 3/32, 7/32, 15/32 and all of num_latents."""

    @field_validator("prefixes", mode="before")
    @classmethod
    def _published_shares(cls, prefixes: object, info: ValidationInfo) -> object:
        if prefixes or "num_latents" not in info.data:
            return prefixes
        return tuple(sorted({max(1, info.data["num_latents"] * share // 32) for share in (1, 3, 7, 15, 32)}))

    def _check(self) -> None:
        super()._check()
        if any(small >= large for small, large in itertools.pairwise(self.prefixes)):
            raise ValueError(f"prefixes {list(self.prefixes)} do not ascend")
        if self.prefixes[-1] != self.num_latents:
            raise ValueError(f"the last of prefixes is {self.prefixes[-1]}, but must be num_latents {self.num_latents}")


Known = BatchTopK | TopK | L1 | DesignatedShared | Dfc | Delta | DiffSae | JumpReLU | Matryoshka
VARIANTS: dict[str, type[DictionarySpec]] = {
    get_args(each.__annotations__["variant"])[0]: each for each in get_args(Known)
}
"""The classes by their variant."""


def _own_fields(value: object) -> object:
    """The mapping without empty fields of other variants.

    Older manifests hold recipes with the fields of every variant. A field of another variant is empty where it is null,
    or where it is 0 and 0 is its default. Raises ValueError that names a field of another variant with a value, or a
    field that is missing.
    """
    if not isinstance(value, dict):
        return value
    variant: object = value.get("variant")
    kind = VARIANTS.get(variant) if isinstance(variant, str) else None
    if kind is None:
        found = f", but is {str(variant)[:80]!r}" if "variant" in value else ""
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}{found}")
    own = {each.name: each for each in dataclasses.fields(kind)}
    needed = [name for name, each in own.items() if each.default is dataclasses.MISSING and name != "num_latents"]
    every = {each.name: each.default for other in VARIANTS.values() for each in dataclasses.fields(other)}
    others = {name: default for name, default in every.items() if name not in own}
    for name in sorted({*needed, *others}):
        stated = value.get(name)
        if name in needed and stated is None:
            raise ValueError(f"{variant} needs {', '.join(needed)}; {name} is missing")
        if name in others and stated is not None and (stated or others[name]):
            raise ValueError(f"{variant} needs {', '.join(needed)} and takes no {name}")
    if value.get("code_normalisation") == "decoupled" and not kind.decouples:
        able = " and ".join(name for name, each in VARIANTS.items() if each.decouples)
        raise ValueError(f"decoupled selects for each model apart; {variant} cannot, {able} can")
    return {name: each for name, each in value.items() if name not in others}


AnyDictionary = Annotated[Annotated[Known, Field(discriminator="variant")], BeforeValidator(_own_fields)]
"""Type of the field `crosscoder` of a recipe."""
_ADAPTER: TypeAdapter[Known] = TypeAdapter(AnyDictionary)


def dictionary(**fields: Any) -> Known:
    """The dictionary with these fields; one is `variant`. Raises pydantic.ValidationError."""
    return _ADAPTER.validate_python(fields)
