"""The statistics of a contrast, against values worked out by hand and against plain loops."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosscope_server.contrast import NUM_SHUFFLES, Scores, aucs, contrast, standard_errors


def scores_of(dense: np.ndarray) -> Scores:
    """From [prompt, latent], all >= 0."""
    rows = [(np.flatnonzero(row).astype(np.uint32), row[row > 0].astype(np.float32)) for row in dense]
    return Scores.of(rows)


def plain_auc(first: np.ndarray, second: np.ndarray) -> float:
    wins = sum((a > b) + (a == b) / 2 for a in first for b in second)
    return wins / (len(first) * len(second))


def random_scores(seed: int, num_prompts: int, num_latents: int, density: float = 0.3) -> np.ndarray:
    """Scores that nothing tells apart, with many ties."""
    random = np.random.default_rng(seed)
    return random.integers(1, 6, (num_prompts, num_latents)) * (random.random((num_prompts, num_latents)) < density)


def test_auc_and_its_error_with_ties_by_hand() -> None:
    dense = np.array([[3], [0], [2], [0], [0], [2], [0], [0], [0], [0]])
    is_first = np.arange(10) < 5
    # 3 wins five times; each 0 ties with four; 2 wins four times and ties once: 5 + 3 * 2 + 4.5 of 25.
    ((_, auc),) = aucs(scores_of(dense), is_first[None])
    assert auc.tolist() == [[0.62]]
    # Shares won: [1, .4, .9, .4, .4] and [.7, .3, .3, .3, .3]; variances .092 and .032, each over 5.
    assert standard_errors(dense.astype(float), is_first) == pytest.approx([math.sqrt(0.0248)])
    found = contrast(scores_of(dense), is_first, 5, 0)
    (entry,) = found.entries
    assert (entry.latent, entry.auc) == (0, pytest.approx(0.62))
    assert (entry.mean_first, entry.mean_second) == (1.0, pytest.approx(0.4))


@given(st.integers(0, 2**32 - 1), st.integers(2, 9), st.integers(2, 9))
def test_aucs_equal_those_of_plain_loops(seed: int, num_first: int, num_second: int) -> None:
    dense = random_scores(seed, num_first + num_second, 4)
    scores = scores_of(dense)
    random = np.random.default_rng(seed)
    labels = np.stack([random.permutation(np.arange(len(dense)) < num_first) for _ in range(3)])
    for _, values in aucs(scores, labels):
        for label, row in zip(labels, values, strict=True):
            for latent, auc in zip(scores.latents, row, strict=True):
                assert auc == pytest.approx(plain_auc(dense[label, latent], dense[~label, latent]), abs=1e-12)


def test_part_of_the_prompts_has_the_scores_of_that_part() -> None:
    dense = random_scores(1, 12, 5)
    part = np.arange(12) % 3 != 0
    scores = scores_of(dense).among(part)
    assert scores.columns(np.arange(5)).tolist() == dense[part].tolist()


def test_a_planted_latent_is_found_and_holds_on_prompts_left_aside() -> None:
    dense = random_scores(2, 40, 300)
    is_first = np.arange(40) % 2 == 0
    dense[:, 77] = np.where(is_first, 9, 0)
    found = contrast(scores_of(dense), is_first, 3, seed=5)
    best = found.entries[0]
    assert (best.latent, best.auc, best.auc_se) == (77, 1.0, 0.0)
    assert (best.mean_first, best.mean_second) == (9, 0)
    assert best.p_value == 1 / (NUM_SHUFFLES + 1)
    assert (found.held_out_auc, found.held_out_auc_se) == (1.0, 0.0)
    assert found.shuffled_auc == pytest.approx(0.5, abs=0.02)
    assert (len(found.entries), found.num_latents) == (3, 300)
    dense[:, 77] = np.where(is_first, 0, 9)
    falling = contrast(scores_of(dense), is_first, 3, seed=5)
    assert (falling.entries[0].auc, falling.held_out_auc) == (0.0, 1.0), "a latent of the second set tells as much"


def test_nothing_is_found_where_nothing_is() -> None:
    """The best of 400 latents looks telling on 40 prompts; neither p nor the prompts left aside believe it."""
    is_first = np.arange(40) < 20
    found = [contrast(scores_of(random_scores(seed, 40, 400)), is_first, 1, seed) for seed in range(20)]
    smallest = [each.entries[0].p_value for each in found]
    assert min(abs(each.entries[0].auc - 0.5) for each in found) > 0.18
    assert sum(p <= 0.05 for p in smallest) <= 3
    assert 0.3 < np.mean(smallest) < 0.7, "p is uniform"
    assert np.mean([each.held_out_auc for each in found]) == pytest.approx(0.5, abs=0.06)
    assert np.mean([each.shuffled_auc for each in found]) == pytest.approx(0.5, abs=0.01)


def test_equal_seeds_give_equal_results_and_others_do_not() -> None:
    scores, is_first = scores_of(random_scores(3, 30, 50)), np.arange(30) < 15
    one, same, other = (contrast(scores, is_first, 5, seed) for seed in (1, 1, 2))
    assert one == same
    assert [entry.auc for entry in one.entries] == [entry.auc for entry in other.entries]
    assert (one.held_out_auc, one.shuffled_auc) != (other.held_out_auc, other.shuffled_auc)


def test_silence() -> None:
    found = contrast(scores_of(np.zeros((10, 3))), np.arange(10) < 5, 5, 0)
    assert (found.entries, found.num_latents) == ([], 0)
    assert math.isnan(found.held_out_auc)
