"""Changes of one model's residual stream by latents of a crosscoder (math §9).

Every change is worked out from both models' unchanged streams, so it does not depend on other changes, which add up.
Knows tensors of tokens; does not know how the models run.
"""

import copy
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

import torch
from torch import Tensor

from crosscope_proto.roles import BASE, CHAT, MODEL_NAMES
from crosscope_worker.dictionary.crosscoder import Crosscoder
from crosscope_worker.dictionary.sparse import SparseCode, flat_indices, sparse_code
from crosscope_worker.dictionary.sparsifier import Sparsifier, code_norms

MAX_AMOUNT = 1000.0
"""Largest amount of an intervention, by size."""


class InterventionError(ValueError):
    """An intervention that cannot be made; the message names the latent or value, and the limit."""


class Action(StrEnum):
    """What is done to a latent's contribution `f D` to the stream."""

    ADD = "add"
    """Adds `amount` times its maximum."""
    SCALE = "scale"
    """Multiplies it by `amount`."""
    SET = "set"
    """Makes it `amount` times its maximum."""
    ABLATE = "ablate"
    """Takes it away."""
    TRANSPLANT = "transplant"
    """Exchanges this model's row for the other's."""
    SWAP_STREAM = "swap_stream"
    """Exchanges the whole stream for the other model's."""


class DecoderRow(StrEnum):
    """Which decoder row is written."""

    OWN = "own"
    OTHER = "other"
    DIFFERENCE = "difference"


class Reach(StrEnum):
    """Which part of the text is changed."""

    ALL = "all"
    PROMPT = "prompt"
    GENERATED = "generated"


@dataclass(frozen=True)
class Intervention:
    """One change; see Intervention in effects.proto for the meaning of every field."""

    latents: tuple[int, ...]
    action: Action
    amount: float = 0.0
    row: DecoderRow = DecoderRow.OWN
    reach: Reach = Reach.ALL
    roles: frozenset[int] = frozenset()
    """TokenRole numbers; empty: all."""
    positions: frozenset[int] = frozenset()
    """Tokens of the text; empty: all."""
    include_left_out: bool = False


@dataclass(frozen=True, eq=False)
class Site:
    """The tokens at which a stream may be changed; tensors are [token], on the device."""

    positions: Tensor
    """int64, in the text."""
    roles: Tensor
    """uint8, TokenRole."""
    is_generated: Tensor
    """bool."""
    left_out: Tensor
    """bool: training leaves such tokens out."""


@dataclass(frozen=True, eq=False)
class Change:
    """What is added to a stream."""

    delta: Tensor
    """[token, d_model] float32, in the model's own scale."""
    changed: Tensor
    """[token] bool: something is added there. Where a latent does not fire, taking it away adds nothing."""
    spared: Tensor
    """[token] bool: an intervention would reach it, but training leaves such tokens out."""


class Codes:
    """The raw code of some tokens, worked out once for every arm that asks."""

    def __init__(self, crosscoder: Crosscoder, sparsifier: Sparsifier, x: Tensor) -> None:
        """x: [token, both] unchanged streams."""
        self._sparsifier = sparsifier
        self._code = crosscoder.pre_activations(x).relu_()

    @functools.cached_property
    def by_models(self) -> tuple[Tensor, Tensor]:
        """The code as each model keeps it, [token, latent], base first."""
        base, chat = self._sparsifier.kept_by_models(self._code)
        return self._code * base, self._code * chat

    def select(self, tokens: Tensor) -> Self:
        """The code of some of the tokens, `tokens: [token]` int64."""
        chosen = copy.copy(self)
        base, chat = self.by_models
        chosen.__dict__["by_models"] = base[tokens], chat[tokens]
        chosen._code = self._code[tokens]
        return chosen

    def sparse(self) -> SparseCode:
        """The entries that at least one model keeps; values are raw."""
        return sparse_code(flat_indices(self._sparsifier.kept(self._code)), self._code)


class Steering:
    """The interventions of one arm, worked out for one crosscoder and one model."""

    def __init__(
        self,
        crosscoder: Crosscoder,
        maxima: Tensor,
        model: int,
        interventions: Sequence[Intervention],
        sparsifier: Sparsifier | None = None,
    ) -> None:
        """`maxima: [latent]` are largest scaled activations in the analysis, 0 or NaN where a latent never fired.

        A `sparsifier` that is given is used. Raises InterventionError.
        """
        self._crosscoder = crosscoder
        self._model = model
        for each in interventions:
            check_intervention(each, crosscoder, maxima, model)
        check_once(interventions)
        self._parts = [_Part.of(each, crosscoder, maxima, model) for each in interventions]
        self._sparsifier = sparsifier or (crosscoder.sparsifier() if self.needs_code else None)

    @property
    def d_model(self) -> int:
        """The width of the stream that is changed."""
        return self._crosscoder.d_model[self._model]

    @property
    def needs_code(self) -> bool:
        """Whether a change depends on the streams, so that both models must run to the layer."""
        return any(part.intervention.action is not Action.ADD for part in self._parts)

    @functools.cached_property
    def needs_whole_code(self) -> bool:
        """Whether a change depends on the codes of all latents, because they compete for places in a token's code."""
        return any(part.reads_code and part.alone is None for part in self._parts)

    @property
    def positions(self) -> frozenset[int]:
        """Tokens of the text that some intervention names."""
        return frozenset[int]().union(*(part.intervention.positions for part in self._parts))

    @torch.inference_mode()
    def change(self, x: Tensor | None, site: Site, codes: Codes | None = None) -> Change:
        """What to add to the model's stream at the tokens of `site`.

        x: [token, both] unchanged streams; None if nothing `needs_code`. `codes` are those of `x`, if they are known;
        else only the chosen latents' codes are worked out, where these do not depend on others.
        """
        crosscoder = self._crosscoder
        num_tokens = len(site.positions)
        delta = crosscoder.W_dec.new_zeros(num_tokens, self.d_model)
        reached_at_all = torch.zeros(num_tokens, dtype=torch.bool, device=delta.device)
        spared = torch.zeros_like(reached_at_all)
        if codes is None and self.needs_whole_code:
            assert x is not None
            assert self._sparsifier is not None
            codes = Codes(crosscoder, self._sparsifier, x)
        for part in self._parts:
            reached = _reached(part.intervention, site)
            kept = reached if part.intervention.include_left_out else reached & ~site.left_out
            spared |= reached & ~kept
            reached_at_all |= kept
            if kept.any():
                delta += torch.where(kept[:, None], self._added(part, x, codes), 0.0)
        return Change(delta, delta.ne(0).any(dim=1), spared & ~reached_at_all)

    def _added(self, part: "_Part", x: Tensor | None, codes: Codes | None) -> Tensor:
        """What one intervention adds if it reaches every token: [token, d_model], or [d_model] if the same at each."""
        each, own, other = part.intervention, part.own, part.other
        if each.action is Action.ADD:
            amounts = each.amount * part.largest
            return self._along(each.row, amounts, amounts, own, other)
        assert x is not None
        if each.action is Action.SWAP_STREAM:
            return x[:, self._crosscoder.model_slice(1 - self._model)] - x[:, self._crosscoder.model_slice(self._model)]
        kept = part.codes(x, codes)
        f_own, f_other = kept[self._model], kept[1 - self._model]
        if each.action is Action.TRANSPLANT:
            return f_other @ other - f_own @ own
        factor, target = {
            Action.ABLATE: (-1.0, 0.0),
            Action.SCALE: (each.amount - 1, 0.0),
            Action.SET: (-1.0, each.amount),
        }[each.action]
        at = target * part.largest if target else torch.zeros_like(part.largest)
        return self._along(each.row, factor * f_own + at, factor * f_other + at, own, other)

    def _along(self, row: DecoderRow, f_own: Tensor, f_other: Tensor, own: Tensor, other: Tensor) -> Tensor:
        """Amounts [token, chosen latent], as each model keeps them, along the chosen rows."""
        match row:
            case DecoderRow.OWN:
                return f_own @ own
            case DecoderRow.OTHER:
                return f_other @ other
            case DecoderRow.DIFFERENCE:
                sign = 1.0 if self._model == CHAT else -1.0
                return sign * (f_own @ own - f_other @ other)


@dataclass(frozen=True, eq=False)
class _Part:
    """One intervention with what it needs of the crosscoder."""

    intervention: Intervention
    latents: Tensor
    """[chosen latent] int64."""
    largest: Tensor
    """Raw code of each at its maximum, [chosen latent]."""
    own: Tensor
    """Decoder rows of the model that is changed, [chosen latent, d_model], in its own scale."""
    other: Tensor
    """Those of the other model."""
    crosscoder: Crosscoder

    @property
    def reads_code(self) -> bool:
        """Whether what is added depends on codes."""
        return self.intervention.action not in (Action.ADD, Action.SWAP_STREAM)

    @functools.cached_property
    def alone(self) -> tuple[Crosscoder, Sparsifier] | None:
        """The crosscoder of the chosen latents alone; None if other latents decide whether these are kept."""
        some = self.crosscoder.only(self.latents)
        return None if some is None else (some, some.sparsifier())

    def codes(self, x: Tensor, codes: Codes | None) -> tuple[Tensor, Tensor]:
        """The chosen latents' code as each model keeps it, [token, chosen latent], base first."""
        if codes is None:
            assert self.alone is not None
            return Codes(*self.alone, x).by_models
        base, chat = codes.by_models
        return base[:, self.latents], chat[:, self.latents]

    @classmethod
    def of(cls, each: Intervention, crosscoder: Crosscoder, maxima: Tensor, model: int) -> Self:
        latents = torch.tensor(each.latents, dtype=torch.int64, device=crosscoder.device)
        norms = code_norms(crosscoder.W_dec[latents], crosscoder.d_model, crosscoder.code_normalisation)
        own, other = (
            crosscoder.decoder(which)[latents] / crosscoder.input_scale[which] for which in (model, 1 - model)
        )
        largest = (maxima.to(crosscoder.device)[latents] / norms).nan_to_num(nan=0.0, posinf=0.0)
        return cls(each, latents, largest, own, other, crosscoder)


def _reached(each: Intervention, site: Site) -> Tensor:
    """[token] bool: whether the intervention means the token, left out or not."""
    reached = torch.ones_like(site.is_generated)
    if each.reach is not Reach.ALL:
        reached = site.is_generated if each.reach is Reach.GENERATED else ~site.is_generated
    for values, wanted in ((site.roles, each.roles), (site.positions, each.positions)):
        if wanted:
            reached = reached & torch.isin(values, torch.tensor(sorted(wanted), device=values.device).to(values.dtype))
    return reached


def check_rows(crosscoder: Crosscoder, model: int, action: Action, row: DecoderRow = DecoderRow.OWN) -> None:
    """Raises InterventionError if the crosscoder has no rows for an action on `model`, or none that fit into it."""
    crosses = action in (Action.TRANSPLANT, Action.SWAP_STREAM) or row is not DecoderRow.OWN
    if crosses and crosscoder.d_model[BASE] != crosscoder.d_model[CHAT]:
        widths = " and ".join(f"{width} ({name})" for name, width in zip(MODEL_NAMES, crosscoder.d_model, strict=True))
        raise InterventionError(f"the models' streams have widths {widths}, so nothing of one fits into the other")
    if action is Action.SWAP_STREAM or crosscoder.streams.compares_rows:
        return
    has_rows = crosscoder.streams.reconstructs or (CHAT,)
    read = crosscoder.streams.words
    if action is Action.TRANSPLANT or row is DecoderRow.DIFFERENCE:
        if not crosscoder.streams.patches:
            raise InterventionError(
                f"this crosscoder reads {read}, so it has no rows of two models to exchange or compare; change the "
                f"{MODEL_NAMES[has_rows[0]]} model along its own row"
            )
        return
    written = model if row is DecoderRow.OWN else 1 - model
    if written not in has_rows:
        way_out = "along the other model's row" if row is DecoderRow.OWN else "along its own row"
        raise InterventionError(
            f"this crosscoder reads {read}, so its rows of the {MODEL_NAMES[written]} model are zero; change the "
            f"{MODEL_NAMES[model]} model {way_out}"
        )


def check_intervention(each: Intervention, crosscoder: Crosscoder, maxima: Tensor, model: int) -> None:
    """Raises InterventionError if `model` cannot be changed like this by the crosscoder. See Steering."""
    if not math.isfinite(each.amount) or abs(each.amount) > MAX_AMOUNT:
        raise InterventionError(f"amount {each.amount} must be a number from {-MAX_AMOUNT:g} to {MAX_AMOUNT:g}")
    check_rows(crosscoder, model, each.action, each.row)
    if (each.action is Action.SWAP_STREAM) != (not each.latents):
        raise InterventionError("swap_stream takes no latents, and every other action takes at least one")
    if unknown := [latent for latent in each.latents if not 0 <= latent < crosscoder.num_latents]:
        raise InterventionError(f"there is no latent {unknown[0]}; this crosscoder has {crosscoder.num_latents}")
    if each.action in (Action.ADD, Action.SET) and each.amount:
        silent = [latent for latent in each.latents if not float(maxima[latent]) > 0]
        if silent:
            raise InterventionError(
                f"latent {silent[0]} never fired in the analysis, so it has no maximum to measure an amount in"
            )


def check_once(interventions: Sequence[Intervention]) -> None:
    """Raises InterventionError for a latent whose contribution two interventions exchange: which one holds is open."""
    seen: dict[int, list[Reach]] = {}
    for each in interventions:
        if each.action is Action.ADD:
            continue
        for latent in each.latents:
            for reach in seen.setdefault(latent, []):
                if Reach.ALL in (reach, each.reach) or reach is each.reach:
                    raise InterventionError(
                        f"two interventions change the contribution of latent {latent}; give it one, or let one reach "
                        "the prompt and the other what is generated"
                    )
            seen[latent].append(each.reach)
