"""The rule of verdicts: every branch and every boundary by hand, and one latent judged as columns are."""

import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crosscope_proto.artefacts import LatentClass
from crosscope_proto.columns import LATENT_COLUMNS
from crosscope_proto.verdict import FIGURES, Judgement, SpecificTo, Verdict, judge, judged

NAN = math.nan
REL_NORMS = {"chat_only": 0.95, "base_only": 0.05, "shared": 0.5, "other": 0.7, "dead": 0.95}
"""A relative norm of each class."""


def latent(latent_class: str = "chat_only", **figures: float) -> dict[str, float]:
    """A latent as a float32 column holds it. Unless said otherwise, no ratio and no effect was measured."""
    found = dict.fromkeys(FIGURES, NAN) | {"num_active": 1000, "num_texts": 200, "rel_norm": REL_NORMS[latent_class]}
    for name, value in figures.items():
        assert name in {*FIGURES, "base_uselessness_single"}
        found[name] = struct.unpack("f", struct.pack("f", value))[0]
    return found | {"latent_class": list(LatentClass).index(LatentClass(latent_class)) + 1}


def nus(err: float, err_se: float, rec: float, rec_se: float, prefix: str = "") -> dict[str, float]:
    names = ("nu_err", "nu_err_se", "nu_rec", "nu_rec_se")
    return {f"{prefix}{name}": value for name, value in zip(names, (err, err_se, rec, rec_se), strict=True)}


ABSENT, PRESENT = nus(0.05, 0.01, 0.12, 0.02), nus(0.95, 0.01, 1.01, 0.02)
MIRROR_ABSENT, MIRROR_PRESENT = (
    {f"mirror_{name}": value for name, value in figures.items()} for figures in (ABSENT, PRESENT)
)


def said(verdict: str, specific_to: str, *reasons: str) -> Judgement:
    return Judgement(Verdict(verdict), SpecificTo(specific_to) if specific_to else None, reasons)


def check(figures: dict[str, float], verdict: str, specific_to: str, *reasons: str) -> None:
    assert judge(figures) == said(verdict, specific_to, *reasons)


def test_a_chat_only_latent_that_base_lacks():
    expected = ("ν err 0.05 ± 0.01 < 0.2", "ν rec 0.12 ± 0.02 < 0.5")
    check(latent(**ABSENT), "supported", "chat", *expected)
    # the base row of a chat-only latent is nearly zero: it is no evidence, whatever it says
    check(latent(**ABSENT, **MIRROR_ABSENT), "supported", "chat", *expected)


def test_a_base_only_latent_is_judged_along_base():
    expected = ("ν err along base 0.05 ± 0.01 < 0.2", "ν rec along base 0.12 ± 0.02 < 0.5")
    check(latent("base_only", **PRESENT, **MIRROR_ABSENT), "supported", "base", *expected)
    contradicted = ("ν err along base 0.95 ± 0.01 > 0.2", "ν rec along base 1.01 ± 0.02 > 0.5")
    check(latent("base_only", **ABSENT, **MIRROR_PRESENT), "contradicted", "", *contradicted)


def test_one_figure_above_its_limit_contradicts():
    check(latent(**nus(0.05, 0.01, 0.51, 0.004)), "contradicted", "", "ν rec 0.51 ± 0.004 > 0.5")
    check(latent(**nus(0.25, 0.01, 0.12, 0.02)), "contradicted", "", "ν err 0.25 ± 0.01 > 0.2")


def test_within_two_errors_of_its_limit_a_figure_decides_nothing():
    check(latent(**nus(0.18, 0.02, 0.1, 0.02)), "weak", "", "ν err 0.18 ± 0.02 within its error of 0.2")
    check(latent(**nus(0.05, 0.01, 0.51, 0.05)), "weak", "", "ν rec 0.51 ± 0.05 within its error of 0.5")
    both = ("ν err 0.21 ± 0.03 within its error of 0.2", "ν rec 0.49 ± 0.02 within its error of 0.5")
    check(latent(**nus(0.21, 0.03, 0.49, 0.02)), "weak", "", *both)
    # Two errors, not one: 0.375 and 0.0625 are numbers of float32, and 0.375 + 2 · 0.0625 is the limit itself.
    check(latent(**nus(0.05, 0.01, 0.375, 0.0625)), "weak", "", "ν rec 0.375 ± 0.062 within its error of 0.5")
    assert judge(latent(**nus(0.05, 0.01, 0.375, 0.0624))).verdict is Verdict.SUPPORTED
    check(latent(**nus(0.05, 0.01, 0.625, 0.0625)), "weak", "", "ν rec 0.625 ± 0.062 within its error of 0.5")
    assert judge(latent(**nus(0.05, 0.01, 0.625, 0.0624))).verdict is Verdict.CONTRADICTED


@pytest.mark.parametrize(("err", "rec"), [(0.2, 0.1), (0.1, 0.5)])
def test_exactly_at_its_limit_a_figure_is_neither_below_nor_above(err, rec):
    """Also 0.2, which float32 stores as a little more than the double 0.2."""
    found = judge(latent(**nus(err, 0, rec, 0)))
    assert (found.verdict, found.specific_to) == (Verdict.WEAK, None)
    assert len(found.reasons) == 1


def test_a_figure_that_would_be_printed_as_its_limit_has_more_digits():
    check(latent(**nus(0.05, 0.01, 0.5004, 0.0001)), "contradicted", "", "ν rec 0.5004 ± 0.0001 > 0.5")


def test_an_unknown_error_decides_nothing():
    check(latent(**nus(0.05, NAN, 0.12, 0.02)), "weak", "", "ν err 0.05, error unknown")
    check(latent(**nus(0.95, NAN, 0.12, 0.02)), "weak", "", "ν err 0.95, error unknown")


def test_an_undefined_nu_is_not_judged():
    check(latent(), "not_judged", "", "ν is undefined")
    check(latent("base_only", **ABSENT), "not_judged", "", "ν is undefined")
    check(latent("shared"), "not_judged", "", "ν is undefined")


def test_a_large_ratio_of_activations_is_a_doubt_and_no_more():
    ratio = {"beta_act_no_bias_base": 0.4, "beta_act_no_bias_chat": 1.0}
    check(latent(**ABSENT, **ratio), "weak", "chat", "activation ratio 0.4 > 0.15")
    assert judge(latent(**PRESENT, **ratio)).verdict is Verdict.CONTRADICTED
    at_limit = {"beta_act_no_bias_base": 0.15, "beta_act_no_bias_chat": 1.0}
    assert judge(latent(**ABSENT, **at_limit)).verdict is Verdict.SUPPORTED
    mirrored = {"mirror_beta_act_no_bias_chat": 0.3, "mirror_beta_act_no_bias_base": 1.0}
    check(latent("base_only", **MIRROR_ABSENT, **mirrored), "weak", "base", "activation ratio along base 0.3 > 0.15")
    assert judge(latent(**ABSENT, **mirrored)).verdict is Verdict.SUPPORTED
    nothing = {"beta_act_no_bias_base": 0.1, "beta_act_no_bias_chat": 0.0}
    check(latent(**ABSENT, **nothing), "weak", "chat", "activation ratio undefined")


def test_no_causal_effect_beyond_its_error_is_a_doubt():
    none = {"ablation_gap_all": 0.01, "ablation_gap_all_se": 0.006, "transplant_gap_first9": 0.02} | {
        "transplant_gap_first9_se": 0.01
    }  # 0.02 is two errors, not more
    said_ = "no causal effect beyond its error (transplant effect, first 9: 0.02 ± 0.01)"
    check(latent(**ABSENT, **none), "weak", "chat", said_)
    some = none | {"transplant_gap_first9_se": 0.009}
    assert judge(latent(**ABSENT, **some)).verdict is Verdict.SUPPORTED
    apart = none | {"ablation_gap_template": -0.3, "ablation_gap_template_se": 0.1}
    assert judge(latent(**ABSENT, **apart)).verdict is Verdict.SUPPORTED
    assert judge(latent("shared", **PRESENT, **MIRROR_PRESENT, **none)).verdict is Verdict.SUPPORTED


def test_too_few_texts():
    check(latent(**ABSENT, num_texts=9), "too_few", "", "too few texts (9)")
    assert judge(latent(**ABSENT, num_texts=10)).verdict is Verdict.SUPPORTED
    check(latent("other", num_texts=0), "too_few", "", "too few texts (0)")


def test_versions_that_did_not_count_texts_are_judged_by_tokens():
    check(latent(**ABSENT, num_texts=NAN, num_active=29), "too_few", "", "too few tokens (29)")
    assert judge(latent(**ABSENT, num_texts=NAN, num_active=30)).verdict is Verdict.SUPPORTED


def test_a_dead_latent_is_not_judged():
    check(latent("dead", num_active=0, num_texts=0), "not_judged", "", "it never fired")
    check(latent("dead", **ABSENT), "not_judged", "", "it never fired")


def test_a_shared_latent_is_supported_where_each_model_has_the_others_row():
    expected = ("ν err 0.95 ± 0.01 > 0.2", "ν err along base 0.95 ± 0.01 > 0.2")
    check(latent("shared", **PRESENT, **MIRROR_PRESENT), "supported", "", *expected)
    hidden = nus(0.05, 0.01, 0.9, 0.02)  # other latents carry it in base: base has it all the same
    expected = ("ν rec 0.9 ± 0.02 > 0.5", "ν err along base 0.95 ± 0.01 > 0.2")
    check(latent("shared", **hidden, **MIRROR_PRESENT), "supported", "", *expected)


def test_a_shared_latent_that_a_model_lacks_is_contradicted():
    expected = "base lacks its chat row (ν err 0.05 ± 0.01 < 0.2, ν rec 0.12 ± 0.02 < 0.5)"
    check(latent("shared", **ABSENT, **MIRROR_PRESENT), "contradicted", "chat", expected)
    mirrored = "chat lacks its base row (ν err along base 0.05 ± 0.01 < 0.2, ν rec along base 0.12 ± 0.02 < 0.5)"
    check(latent("shared", **PRESENT, **MIRROR_ABSENT), "contradicted", "base", mirrored)
    check(latent("shared", **ABSENT, **MIRROR_ABSENT), "contradicted", "each", expected, mirrored)


def test_a_shared_latent_that_is_left_open_is_weak():
    expected = ("ν err 0.18 ± 0.05 within its error of 0.2", "ν rec 0.3 ± 0.02 < 0.5")
    check(latent("shared", **nus(0.18, 0.05, 0.3, 0.02), **MIRROR_PRESENT), "weak", "", *expected)


def test_class_other_claims_nothing_but_may_be_specific():
    nothing = "its class claims nothing, and neither model is shown to lack a row of it"
    check(latent("other", **PRESENT, **MIRROR_PRESENT), "not_judged", "", nothing)
    along_chat = ("ν err 0.05 ± 0.01 < 0.2", "ν rec 0.12 ± 0.02 < 0.5")
    along_base = ("ν err along base 0.05 ± 0.01 < 0.2", "ν rec along base 0.12 ± 0.02 < 0.5")
    check(latent("other", **ABSENT, **MIRROR_PRESENT), "supported", "chat", *along_chat)
    check(latent("other", **PRESENT, **MIRROR_ABSENT), "supported", "base", *along_base)
    check(latent("other", **ABSENT, **MIRROR_ABSENT), "supported", "each", *along_chat, *along_base)
    doubtful = {"mirror_beta_act_no_bias_chat": 0.3, "mirror_beta_act_no_bias_base": 1.0}
    each = latent("other", **ABSENT, **MIRROR_ABSENT, **doubtful)
    check(each, "weak", "each", "activation ratio along base 0.3 > 0.15")


def test_a_row_that_is_nearly_zero_is_no_evidence():
    """Chat's in class base_only, and base's in class chat_only."""
    undecided = ("ν err along base 0.18 ± 0.05 within its error of 0.2",)
    open_ = nus(0.18, 0.05, 0.1, 0.02, "mirror_")
    check(latent("base_only", **ABSENT, **open_), "weak", "", *undecided)
    check(latent("other", **ABSENT, **open_), "supported", "chat", "ν err 0.05 ± 0.01 < 0.2", "ν rec 0.12 ± 0.02 < 0.5")
    mirrored = ("ν err 0.18 ± 0.05 within its error of 0.2",)
    check(latent("chat_only", **nus(0.18, 0.05, 0.1, 0.02), **MIRROR_ABSENT), "weak", "", *mirrored)


def ratio(value: float, se: float, latent_class: str = "chat_only") -> dict[str, float]:
    return latent(latent_class, beta_ratio=value, beta_ratio_se=se, rel_norm=NAN)


def test_a_dictionary_of_differences_is_judged_by_its_ratio():
    check(ratio(0.05, 0.02), "supported", "chat", "β ratio 0.05 ± 0.02 within ± 0.3")
    check(ratio(-0.05, 0.02), "supported", "chat", "β ratio −0.05 ± 0.02 within ± 0.3")
    check(ratio(0.12, 0.1), "weak", "", "β ratio 0.12 ± 0.1 within its error of 0.3")
    check(ratio(-0.2, 0.06), "weak", "", "β ratio −0.2 ± 0.06 within its error of −0.3")
    check(ratio(0.2, 0.01), "weak", "chat", "β ratio 0.2 ± 0.01 > 0.15")
    check(ratio(0.05, NAN), "weak", "", "β ratio 0.05, error unknown")
    check(ratio(0.05, 0.02) | {"num_texts": 3}, "too_few", "", "too few texts (3)")
    # the ratio of activations without bias means nothing there
    biased = {"beta_act_no_bias_base": 0.9, "beta_act_no_bias_chat": 1.0}
    assert judge(ratio(0.05, 0.02) | biased).verdict is Verdict.SUPPORTED


def test_a_dictionary_of_one_model_is_not_judged():
    expected = "its dictionary has rows of one side only, and its class claims nothing"
    check(ratio(0.05, 0.02, "other"), "not_judged", "", expected)


def test_remarks_are_no_reasons_against():
    figures = latent(**ABSENT, base_uselessness_single=11.5129, rel_norm=0.913)
    found = judge(figures, -math.log(1e-5))
    assert found.verdict is Verdict.SUPPORTED
    assert found.reasons[2:] == (
        "relative norm 0.913 at the border of 0.9",
        "base uselessness at its floor (≥ 11.51)",
    )
    assert len(judge(figures).reasons) == 3
    assert len(judge(latent(**ABSENT, base_uselessness_single=11.4, rel_norm=0.9201), -math.log(1e-5)).reasons) == 2


def test_a_judgement_is_one_phrase():
    assert str(said("contradicted", "", "ν rec 0.51 > 0.5")) == "contradicted: ν rec 0.51 > 0.5"
    assert str(said("not_judged", "", "it never fired")) == "not judged: it never fired"
    assert str(said("too_few", "", "too few tokens (8)")) == "too few tokens (8)"
    assert str(said("supported", "chat")) == "supported"
    assert said("supported", "chat").short == "supported (chat)"
    assert said("too_few", "").short == "too_few"


def test_the_figures_are_columns():
    assert set(FIGURES) <= {column.name for column in LATENT_COLUMNS}


VALUES = st.sampled_from([NAN, -0.4, 0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.45, 0.5, 0.9, 0.95, 1.0])
ERRORS = st.sampled_from([NAN, 0.0, 0.01, 0.1])
COUNTS = st.sampled_from([0.0, 9.0, 10.0, 29.0, 30.0, 500.0])


@st.composite
def latents(draw: st.DrawFn) -> dict[str, float]:
    values = {name: draw(ERRORS if name.endswith("_se") else VALUES) for name in FIGURES}
    counts = {"num_active": draw(COUNTS), "num_texts": draw(st.one_of(COUNTS, st.just(NAN)))}
    return values | counts | {"latent_class": draw(st.integers(1, len(LatentClass)))}


@settings(max_examples=60, deadline=None)
@given(st.lists(latents(), min_size=1, max_size=8))
def test_one_latent_is_judged_as_columns_are(rows: list[dict[str, float]]):
    columns = {name: np.array([row[name] for row in rows]) for name in FIGURES}
    verdicts, specific = judged(columns)
    for row, verdict, specific_to in zip(rows, verdicts, specific, strict=True):
        found = judge(row, -math.log(1e-5))
        assert list(Verdict)[verdict - 1] is found.verdict
        assert [None, *SpecificTo][specific_to] is found.specific_to
        assert found.reasons
