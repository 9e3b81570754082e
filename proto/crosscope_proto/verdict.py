"""The rule that judges what a latent's class claims, from the figures that were measured (math §6).

`judged` takes numbers or whole columns: it compares and combines with <, &, | and ^ alone, which mean the same for
both. `judge` adds the reasons of one latent. Knows no table and no message.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from struct import pack, unpack
from typing import Any, Final, NamedTuple

from crosscope_proto import limits
from crosscope_proto.artefacts import LatentClass
from crosscope_proto.causal_columns import CAUSAL_EFFECTS, CAUSAL_GROUPS, causal_column
from crosscope_proto.scaling_columns import beta_column


class Verdict(StrEnum):
    """What the measurements say of the claim that a latent's class makes, best first."""

    SUPPORTED = "supported"
    WEAK = "weak"
    """The measurements leave it open, or something else speaks against it."""
    CONTRADICTED = "contradicted"
    TOO_FEW = "too_few"
    """It fired in too few texts to be judged."""
    NOT_JUDGED = "not_judged"
    """Its class claims nothing, or nothing was measured that could tell."""


class SpecificTo(StrEnum):
    """The model that a latent is specific to by its measurements, whatever its class."""

    CHAT = "chat"
    """Base lacks its chat row, and chat does not lack its base row."""
    BASE = "base"
    """Chat lacks its base row, and base does not lack its chat row."""
    EACH = "each"
    """Each model lacks the other's row: where it fires, the two models write different things."""


_CLASSES, _VERDICTS, _SPECIFIC_TO = [None, *LatentClass], [None, *Verdict], [None, *SpecificTo]
"""Words by their numbers."""
_GAPS = {
    causal_column(effect, group): f"{CAUSAL_EFFECTS[effect][0]}{ending}"
    for effect in ("ablation_gap", "transplant_gap")
    for group, (ending, _) in CAUSAL_GROUPS.items()
}
"""Labels of the effects on the gap between the models, by column."""
FIGURES: Final = (
    *("latent_class", "rel_norm", "num_active", "num_texts", "beta_ratio", "beta_ratio_se"),
    *(f"{prefix}nu_{target}{end}" for prefix in ("", "mirror_") for target in ("err", "rec") for end in ("", "_se")),
    *(beta_column(prefix, "act_no_bias", model) for prefix in ("", "mirror_") for model in ("base", "chat")),
    *(f"{gap}{end}" for gap in _GAPS for end in ("", "_se")),
)
"""Columns that `judged` reads."""


def _stored(limit: float) -> float:
    """A limit as a column of float32 stores it, so that a figure at its limit is neither below nor above it."""
    return unpack("f", pack("f", limit))[0]


_NU_LIMITS = {"err": _stored(limits.MAX_NU_ERR), "rec": _stored(limits.MAX_NU_REC)}
_DIFFERENCE_RATIO, _MAX_ACTIVATION_RATIO = _stored(limits.DIFFERENCE_RATIO), _stored(limits.MAX_ACTIVATION_RATIO)


@dataclass(frozen=True)
class Judgement:
    """A verdict and its reasons. As a text it is one phrase."""

    verdict: Verdict
    specific_to: SpecificTo | None
    """None if the figures show it of neither model."""
    reasons: tuple[str, ...]
    """Short phrases with the numbers that decided, then remarks."""

    @property
    def short(self) -> str:
        """The verdict for a cell of a table, and in brackets the model that the latent is specific to."""
        return f"{self.verdict} ({self.specific_to})" if self.specific_to else str(self.verdict)

    def __str__(self) -> str:
        said = ", ".join(self.reasons)
        if self.verdict is Verdict.TOO_FEW and said:
            return said
        return ": ".join(filter(None, (self.verdict.replace("_", " "), said)))


class _Row(NamedTuple):
    """What is known of one decoder row in the other model: truth values, or columns of them."""

    known: Any
    """Whether both ν are defined."""
    absent: Any
    """Whether the other model lacks it: both ν are below their limits by more than their errors."""
    present: Any
    """Whether the other model has it: a ν is above its limit by more than its error."""
    doubted: Any
    """Whether more of the other model's activation lies along it than our flag allows."""


def judged(figures: Mapping[str, Any]) -> tuple[Any, Any]:
    """The numbers of Verdict and of SpecificTo, from 1 in their order; 0 stands for no SpecificTo.

    `figures` holds FIGURES, each a number or a column [latent] of float64; the class is the number of a LatentClass.
    """
    f, chat, base = figures, _row(figures, ""), _row(figures, "mirror_")
    is_dead, is_chat_only, is_base_only, is_shared = (
        f["latent_class"] == _CLASSES.index(each)
        for each in (LatentClass.DEAD, LatentClass.CHAT_ONLY, LatentClass.BASE_ONLY, LatentClass.SHARED)
    )
    few = _is_few(f) & _not(is_dead)
    enough = _not(is_dead | few)
    is_difference = is_chat_only & _is_nan(f["rel_norm"])  # its rows are of one side: there is no relative norm
    # The other model's row is nearly zero in a class of one model, and no evidence.
    only_chat = enough & (chat.absent & _not(is_base_only) | is_difference & _has_small_ratio(f))
    only_base = enough & base.absent & _not(is_chat_only)
    is_specific = only_chat | only_base
    is_doubted = only_chat & _not(is_difference) & chat.doubted | only_base & base.doubted
    is_doubted = is_doubted | is_difference & _has_doubtful_ratio(f)
    holds = is_specific & _not(is_doubted | _has_no_effect(f))

    claims_one = is_chat_only & (chat.known | is_difference) | is_base_only & base.known
    claims = enough & (claims_one | is_shared & (chat.known | base.known) | is_specific)
    contradicted = claims & (is_chat_only & chat.present | is_base_only & base.present | is_shared & is_specific)
    supported = claims & (is_shared & chat.present & base.present | _not(is_shared) & holds)
    numbers = {
        Verdict.SUPPORTED: supported,
        Verdict.WEAK: claims & _not(supported | contradicted),
        Verdict.CONTRADICTED: contradicted,
        Verdict.TOO_FEW: few,
        Verdict.NOT_JUDGED: _not(claims | few),
    }
    verdict = sum(number * numbers[each] for number, each in enumerate(Verdict, 1))
    # chat is 1, base is 2, and each is both
    return verdict, 1 * only_chat + 2 * only_base


def judge(figures: Mapping[str, Any], floor: float = math.inf) -> Judgement:
    """The judgement of one latent, with reasons.

    `figures` holds FIGURES as numbers, and perhaps base_uselessness_single; `floor` is the largest value that the
    analysis could give it (math §5).
    """
    verdict, specific_to = judged(figures)
    return Judgement(_VERDICTS[verdict], _SPECIFIC_TO[specific_to], reasons(figures, verdict, specific_to, floor))


def reasons(figures: Mapping[str, Any], verdict: int, specific_to: int, floor: float = math.inf) -> tuple[str, ...]:
    """The reasons of a latent whose verdict and model are known by their numbers; the rest is that of `judge`."""
    return tuple(_reasons(figures, _VERDICTS[verdict], _SPECIFIC_TO[specific_to], floor))


def _row(f: Mapping[str, Any], prefix: str) -> _Row:
    own, other = ("base", "chat") if prefix else ("chat", "base")
    err, rec = (f"{prefix}nu_err", _NU_LIMITS["err"]), (f"{prefix}nu_rec", _NU_LIMITS["rec"])
    own_share, other_share = (f[beta_column(prefix, "act_no_bias", model)] for model in (own, other))
    return _Row(
        known=_not(_is_nan(f[err[0]]) | _is_nan(f[rec[0]])),
        absent=_is_below(f, *err) & _is_below(f, *rec),
        present=_is_above(f, *err) | _is_above(f, *rec),
        doubted=other_share > _MAX_ACTIVATION_RATIO * own_share,
    )


def _is_below(f: Mapping[str, Any], name: str, limit: float) -> Any:
    return f[name] + limits.NUM_SE * f[f"{name}_se"] < limit


def _is_above(f: Mapping[str, Any], name: str, limit: float) -> Any:
    return f[name] - limits.NUM_SE * f[f"{name}_se"] > limit


def _is_few(f: Mapping[str, Any]) -> Any:
    not_counted = _is_nan(f["num_texts"])
    return (f["num_texts"] < limits.MIN_TEXTS) | not_counted & (f["num_active"] < limits.MIN_ACTIVE)


def _has_small_ratio(f: Mapping[str, Any]) -> Any:
    return _is_below(f, "beta_ratio", _DIFFERENCE_RATIO) & _is_above(f, "beta_ratio", -_DIFFERENCE_RATIO)


def _has_doubtful_ratio(f: Mapping[str, Any]) -> Any:
    return f["beta_ratio"] > _MAX_ACTIVATION_RATIO


def _has_no_effect(f: Mapping[str, Any]) -> Any:
    """Whether causal effects were measured, and none differs from 0 by more than its error."""
    measured = differs = False
    for gap in _GAPS:
        measured = measured | _not(_is_nan(f[f"{gap}_se"]))
        differs = differs | _is_below(f, gap, 0.0) | _is_above(f, gap, 0.0)
    return measured & _not(differs)


def _is_nan(values: Any) -> Any:
    return values != values


def _not(truth: Any) -> Any:
    return truth ^ True


def _reasons(f: Mapping[str, Any], verdict: Verdict, specific_to: SpecificTo | None, floor: float) -> Iterator[str]:
    latent_class = _CLASSES[f["latent_class"]]
    if verdict is Verdict.NOT_JUDGED:
        yield _why_not(f, latent_class)
    elif verdict is Verdict.TOO_FEW:
        texts = f["num_texts"]
        yield f"too few tokens ({f['num_active']:.0f})" if _is_nan(texts) else f"too few texts ({texts:.0f})"
    elif latent_class is LatentClass.CHAT_ONLY and _is_nan(f["rel_norm"]):
        yield from _of_difference(f, verdict)
        yield from _without_effect(f)
    elif latent_class is LatentClass.SHARED:
        yield from _of_shared(f, verdict, specific_to)
    else:
        prefixes = _prefixes(latent_class, specific_to)
        yield from _of_one(f, verdict, prefixes)
        yield from _at_border(f, latent_class)
        if "" in prefixes:
            yield from _at_floor(f, floor)


def _why_not(f: Mapping[str, Any], latent_class: LatentClass) -> str:
    if latent_class is LatentClass.DEAD:
        return "it never fired"
    if _is_nan(f["rel_norm"]):
        return "its dictionary has rows of one side only, and its class claims nothing"
    if latent_class is LatentClass.OTHER:
        return "its class claims nothing, and neither model is shown to lack a row of it"
    return "ν is undefined"


def _prefixes(latent_class: LatentClass, specific_to: SpecificTo | None) -> tuple[str, ...]:
    """The rows that the reasons are about, by the prefix of their columns."""
    if latent_class is LatentClass.CHAT_ONLY or specific_to is SpecificTo.CHAT:
        return ("",)
    return ("mirror_",) if latent_class is LatentClass.BASE_ONLY or specific_to is SpecificTo.BASE else ("", "mirror_")


def _of_one(f: Mapping[str, Any], verdict: Verdict, prefixes: tuple[str, ...]) -> Iterator[str]:
    """What is said of rows that the other model is claimed to lack."""
    for prefix in prefixes:
        for name, limit in _nus(prefix):
            decided = {Verdict.SUPPORTED: True, Verdict.CONTRADICTED: _is_above(f, name, limit)}
            if decided.get(verdict, not _is_below(f, name, limit)):
                yield _against(f, name, limit)
    if verdict is Verdict.WEAK:
        for prefix in prefixes:
            yield from _with_much_activation(f, prefix)
        yield from _without_effect(f)


def _of_shared(f: Mapping[str, Any], verdict: Verdict, specific_to: SpecificTo | None) -> Iterator[str]:
    """What is said of two rows that both models are claimed to have."""
    for prefix, model, other in (("", "chat", "base"), ("mirror_", "base", "chat")):
        figures = list(_nus(prefix))
        if verdict is Verdict.CONTRADICTED and specific_to in (SpecificTo(model), SpecificTo.EACH):
            said = [_against(f, name, limit) for name, limit in figures]
            yield f"{other} lacks its {model} row ({', '.join(said)})"
        elif verdict is Verdict.SUPPORTED:
            yield next(_against(f, name, limit) for name, limit in figures if _is_above(f, name, limit))
        elif verdict is Verdict.WEAK and not _row(f, prefix).present:
            yield from (_against(f, name, limit) for name, limit in figures)


def _of_difference(f: Mapping[str, Any], verdict: Verdict) -> Iterator[str]:
    """What is said of a row of a dictionary of differences."""
    figure, limit = _figure(f, "beta_ratio", limits.DIFFERENCE_RATIO), f"{limits.DIFFERENCE_RATIO:g}"
    if _is_nan(f["beta_ratio_se"]):
        yield f"β ratio {figure}, error unknown"
    elif not _has_small_ratio(f):
        yield f"β ratio {figure} within its error of {limit if f['beta_ratio'] > 0 else '−' + limit}"
    elif verdict is Verdict.SUPPORTED or not _has_doubtful_ratio(f):
        yield f"β ratio {figure} within ± {limit}"
    if _has_doubtful_ratio(f):
        yield f"β ratio {figure} > {limits.MAX_ACTIVATION_RATIO:g}"


def _nus(prefix: str) -> Iterator[tuple[str, float]]:
    return ((f"{prefix}nu_{target}", limit) for target, limit in _NU_LIMITS.items())


def _with_much_activation(f: Mapping[str, Any], prefix: str) -> Iterator[str]:
    if _row(f, prefix).doubted:
        own, other = ("base", "chat") if prefix else ("chat", "base")
        own_share, other_share = (f[beta_column(prefix, "act_no_bias", model)] for model in (own, other))
        ratio = f"{other_share / own_share:.3g} > {limits.MAX_ACTIVATION_RATIO:g}" if own_share > 0 else "undefined"
        yield f"activation ratio{' along base' if prefix else ''} {ratio}"


def _without_effect(f: Mapping[str, Any]) -> Iterator[str]:
    if _has_no_effect(f):
        measured = [gap for gap in _GAPS if not _is_nan(f[f"{gap}_se"])]
        largest = max(measured, key=lambda gap: abs(f[gap]))
        yield f"no causal effect beyond its error ({_GAPS[largest]}: {_figure(f, largest)})"


def _at_border(f: Mapping[str, Any], latent_class: LatentClass) -> Iterator[str]:
    border = {LatentClass.CHAT_ONLY: limits.CHAT_ONLY_ABOVE, LatentClass.BASE_ONLY: limits.BASE_ONLY_BELOW}
    if (at := border.get(latent_class)) is not None and abs(f["rel_norm"] - at) <= limits.BORDER_WITHIN:
        yield f"relative norm {f['rel_norm']:.3f} at the border of {at:g}"


def _at_floor(f: Mapping[str, Any], floor: float) -> Iterator[str]:
    uselessness = f.get("base_uselessness_single")
    if uselessness is not None and uselessness >= floor - 1e-3:
        yield f"base uselessness at its floor (≥ {floor:.2f})"


def _against(f: Mapping[str, Any], name: str, limit: float) -> str:
    """A ν beside its limit."""
    where = " along base" if name.startswith("mirror_") else ""
    said = f"ν {name[-3:]}{where} {_figure(f, name, limit)}"
    if _is_nan(f[f"{name}_se"]):
        return f"{said}, error unknown"
    if _is_below(f, name, limit):
        return f"{said} < {limit:.3g}"
    return f"{said} > {limit:.3g}" if _is_above(f, name, limit) else f"{said} within its error of {limit:.3g}"


def _figure(f: Mapping[str, Any], name: str, limit: float = math.nan) -> str:
    """A figure with its error, in as many digits as tell it from the limit, at least 3."""
    value, se = f[name], f[f"{name}_se"]
    digits = next((n for n in range(3, 9) if f"{value:.{n}g}" != f"{limit:.3g}" or value == limit), 9)
    error = "" if _is_nan(se) else f" ± {se:.2g}"
    return f"{value:.{digits}g}{error}".replace("-", "−")
