"""Every score on a few rows whose answer can be worked out by hand. Width 2 per model: rows are (base, chat)."""

import math

import numpy as np
import pytest
import torch

from bench.truth import score
from bench.truth.planted import Kind, Planted, PlantedSpec
from bench.truth.score import Matches, Measured

NAN = math.nan


def planted(*latents: tuple[Kind, list[float]]) -> Planted:
    count = len(latents)
    return Planted(
        PlantedSpec(d_model=2),
        0,
        np.array([str(kind) for kind, _ in latents]),
        torch.tensor([row for _, row in latents]),
        torch.full((count,), 0.1),
        torch.arange(count) == 0,
        torch.where(torch.arange(count) == 1, 0, -1),
    )


def measured(rows: list[list[float]], **columns: list[float]) -> Measured:
    count = len(rows)
    names = ("rel_norm", "nu_err", "nu_rec", "mirror_nu_err", "beta_ratio")
    living = np.array(columns.pop("living", [True] * count), dtype=bool)
    is_supported = np.array(columns.pop("is_supported", [False] * count), dtype=bool)
    values = {name: np.array(columns.get(name, [NAN] * count)) for name in names}
    return Measured(rows=torch.tensor(rows), living=living, is_supported=is_supported, **values)


TRUTH = planted(
    (Kind.SHARED, [1.0, 0.0, 1.0, 0.0]),
    (Kind.WEAK, [0.0, 0.25, 0.0, 1.0]),
    (Kind.BASE_ONLY, [0.6, 0.8, 0.0, 0.0]),
    (Kind.CHAT_ONLY, [0.0, 0.0, 0.6, 0.8]),
)


def test_the_nearest_living_latent():
    learned = measured(
        [[2.0, 0.0, 2.0, 0.0], [1.0, 0.0, 1.0, 0.1], [0.0, 0.0, 0.0, 3.0], [0.0, 0.0, 0.0, 0.0]],
        living=[False, True, True, True],
    )
    found = score.best_matches(TRUTH.rows, learned)
    assert found.latent.tolist()[:2] == [1, 2]
    assert found.cosine[0] == pytest.approx(2 / math.sqrt(2 * 2.01))
    assert found.cosine[1] == pytest.approx(1 / math.sqrt(1 + 1 / 16))
    assert found.cosine[3] == pytest.approx(0.8)
    nothing_lives = measured([[1.0, 0.0, 1.0, 0.0]], living=[False])
    assert score.best_matches(TRUTH.rows, nothing_lives).cosine.tolist() == [-1.0] * 4


def test_recovered_from_a_cosine_of_nine_tenths():
    found = Matches(np.zeros(4, np.int64), np.array([0.9, 0.89, 1.0, -1.0]))
    assert score.recovered(TRUTH, found, TRUTH.rows) == {
        "recovered_all": 0.5,
        "recovered_shared": 1.0,
        "recovered_weak": 0.0,
        "recovered_base_only": 1.0,
        "recovered_chat_only": 0.0,
        "recovered_rare": 1.0,
        "recovered_correlated": 0.0,
    }


@pytest.mark.parametrize(
    ("scores", "positive", "expected"),
    [
        ([1, 2, 3, 4], [0, 0, 1, 1], 1.0),
        ([1, 2, 3, 4], [1, 1, 0, 0], 0.0),
        ([1, 2, 3, 4], [0, 1, 0, 1], 0.75),
        ([1, 1, 1], [1, 0, 0], 0.5),
        ([1, 2, 2, 3], [0, 1, 0, 1], 0.875),  # pairs: 1 + ½ for the first 2, 1 + 1 for 3
        ([NAN, 2, 1, NAN], [1, 1, 0, 0], 1.0),
    ],
)
def test_auroc(scores: list[float], positive: list[int], expected: float):
    assert score.auroc(np.array(scores, float), np.array(positive, bool)) == expected


def test_auroc_needs_both_sides():
    assert math.isnan(score.auroc(np.array([1.0, 2.0]), np.array([True, True])))
    assert math.isnan(score.auroc(np.array([1.0, NAN]), np.array([False, True])))


def test_exclusive_kinds_by_norm_against_all_and_by_nu_against_those_of_both_models():
    learned = measured(
        [[0.0] * 4] * 4,
        rel_norm=[0.5, 0.95, 0.0, 0.9],  # the shrunk weak latent looks more chat-only than the true one
        nu_err=[1.0, 0.25, -50.0, 0.01],
        mirror_nu_err=[1.0, 4.0, 0.0, -50.0],
        beta_ratio=[1.0, 0.25, -9.0, -0.02],
    )
    found = Matches(np.arange(4), np.ones(4))
    assert score.exclusive_aurocs(TRUTH, found, TRUTH.rows, learned) == {
        "auroc_chat_only_rel_norm": pytest.approx(2 / 3),
        "auroc_base_only_rel_norm": 1.0,
        "auroc_chat_only_nu_err": 1.0,
        "auroc_base_only_nu_err": 1.0,
        "auroc_chat_only_ratio": 1.0,
    }


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0]])
def test_latents_without_a_difference_do_not_count_wherever_the_others_lie(order: list[int]):
    differences = torch.tensor([[0.0, 0.0], [0.0, 0.75], [-0.6, -0.8], [0.6, 0.8]])
    rows, ratios = [[0.0, 0.75], [-0.6, -0.8], [0.6, 0.8]], [0.25, -9.0, 0.01]
    learned = measured([rows[i] for i in order], beta_ratio=[ratios[i] for i in order])
    found = score.best_matches(differences, learned)
    assert score.exclusive_aurocs(TRUTH, found, differences, learned)["auroc_chat_only_ratio"] == 1.0


def test_undefined_scores_do_not_count():
    rows = [[0.0, 1.0], [0.6, 0.8]]
    learned = measured(rows, beta_ratio=[0.25, 0.01])
    counts = score.label_counts(score.chat_only_labels(TRUTH, learned), learned)
    assert (counts["labels"], counts["labels_artefact"], counts["artefacts_flagged_ratio"]) == (2, 1, 1)
    assert math.isnan(counts["artefacts_flagged_published"])
    assert math.isnan(counts["genuine_flagged_published"])
    found = Matches(np.array([0, 0, 1, 1]), np.ones(4))
    assert all(math.isnan(value) for value in score.weak_ratio(TRUTH, found, learned).values())


def labelled() -> Measured:
    """Labels: genuine, shrunk weak, half a decoupled shared, a mixture; then one that is not called, and a dead one."""
    return measured(
        [
            [0.0, 0.0, 1.2, 1.6],
            [0.0, 0.0, 0.0, 1.0],
            [0.1, 0.0, 1.0, 0.0],
            [0.0, 0.0, 1.0, -1.0],
            [1.0, 0.0, 1.0, 0.0],
            [0.0, 0.0, 0.6, 0.8],
        ],
        living=[True] * 5 + [False],
        rel_norm=[1.0, 1.0, 0.95, 1.0, 0.5, 1.0],
        nu_err=[0.1, 0.21, NAN, 0.0, 1.0, NAN],
        nu_rec=[0.6, 0.0, 0.4, 0.0, 1.0, NAN],
        beta_ratio=[0.1, 0.1, 0.9, 0.3, 1.0, NAN],
        is_supported=[True, False, True, False, True, False],
    )


def test_causes_of_a_chat_only_label():
    labels = score.chat_only_labels(TRUTH, labelled())
    assert labels.latent.tolist() == [0, 1, 2, 3]
    assert labels.genuine.tolist() == [True, False, False, False]
    assert labels.artefact.tolist() == [False, True, True, False]


def test_what_the_flags_catch():
    assert score.published_flag(labelled()).tolist() == [True, True, False, False, True, False]
    assert score.ratio_flag(labelled()).tolist() == [False, False, True, True, True, False]
    assert score.label_counts(score.chat_only_labels(TRUTH, labelled()), labelled()) == {
        "labels": 4.0,
        "labels_genuine": 1.0,
        "labels_artefact": 2.0,
        "labels_mixture": 1.0,
        "artefacts_flagged_published": 1.0,
        "genuine_flagged_published": 1.0,
        "artefacts_flagged_ratio": 1.0,
        "genuine_flagged_ratio": 0.0,
        "artefacts_supported": 1.0,
        "genuine_supported": 1.0,
        "mixtures_supported": 0.0,
    }


def test_no_label_at_all():
    learned = measured([[1.0, 0.0, 1.0, 0.0]], rel_norm=[0.5], nu_err=[1.0], nu_rec=[1.0], beta_ratio=[1.0])
    assert set(score.label_counts(score.chat_only_labels(TRUTH, learned), learned).values()) == {0.0}


def test_the_weak_ratio():
    truth = planted(*[(Kind.WEAK, [0.0, 0.25, 0.0, 1.0])] * 4, (Kind.SHARED, [1.0, 0.0, 1.0, 0.0]))
    learned = measured([[0.0] * 4] * 5, nu_err=[0.21, 0.29, 0.31, 0.1, 0.25])
    found = Matches(np.arange(5), np.ones(5))
    assert score.weak_ratio(truth, found, learned) == {
        "weak_nu_err_median": pytest.approx(0.25),
        "weak_nu_err_right": 0.5,
    }


def test_the_null_test_counts_living_latents():
    learned = measured([[0.0] * 4] * 5, rel_norm=[0.95, 0.5, 0.05, 0.9, 1.0], living=[True] * 4 + [False])
    assert score.null_shares(learned) == {"null_chat_only": 0.25, "null_base_only": 0.25}
