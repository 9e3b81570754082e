"""Behaviour detectors: thresholds by hand, against brute force, and a planted detector through the whole analysis."""

import numpy as np
import pytest
import torch

from crosscope_proto.roles import TokenRole
from crosscope_worker.analysis import HeldOut, analyse
from crosscope_worker.analysis.behaviours import assistant_turns, best_detector
from crosscope_worker.data.harvest import Harvest
from crosscope_worker.data.texts import TaggedBehaviour, Text
from crosscope_worker.work import silent


def detector(entries, num_positive, num_negative):
    latent, value, positive = (np.array(column) for column in zip(*entries, strict=True))
    return best_detector(latent, value.astype(float), positive.astype(bool), num_positive, num_negative)


def test_threshold_by_hand():
    """Latent 3 says yes at 4, 5 and no at 1, 4.5: at 2.5 recall 1, false rate 1/4; above 4.5 recall 1/2, none."""
    found = detector([(3, 4.0, 1), (3, 5.0, 1), (3, 1.0, 0), (3, 4.5, 0)], 2, 4)
    assert (found.latent, found.threshold, found.recall, found.false_rate) == (3, 2.5, 1.0, 0.25)


def test_occurrences_without_activation_count_against_recall():
    found = detector([(7, 2.0, 1)], 4, 4)
    assert (found.threshold, found.recall, found.false_rate) == (1.0, 0.25, 0.0)


def test_equal_values_fall_on_the_same_side():
    found = detector([(0, 2.0, 1), (0, 2.0, 0), (0, 2.0, 1)], 2, 1)
    assert (found.recall, found.false_rate) == (1.0, 1.0)


def test_no_latent_fires():
    none = np.empty(0)
    assert best_detector(none.astype(np.int64), none, none.astype(bool), 3, 3) is None


@pytest.mark.parametrize("seed", range(20))
def test_best_detector_equals_brute_force(seed):
    rng = np.random.default_rng(seed)
    num_positive, num_negative, num_latents = rng.integers(1, 9), rng.integers(1, 9), 5
    scores = rng.integers(0, 4, (num_positive + num_negative, num_latents)).astype(float)
    is_positive = np.arange(num_positive + num_negative) < num_positive
    spans, latents = np.nonzero(scores)
    found = best_detector(latents, scores[spans, latents], is_positive[spans], int(num_positive), int(num_negative))
    best = max(
        (scores[is_positive, j] > t).mean() - (scores[~is_positive, j] > t).mean()
        for j in np.unique(latents)
        for t in scores[scores[:, j] > 0, j] - 0.5
    )
    assert found.recall - found.false_rate == pytest.approx(best)
    yes = scores[:, found.latent] > found.threshold
    assert (yes[is_positive].mean(), yes[~is_positive].mean()) == (found.recall, found.false_rate)


def test_assistant_turns():
    a, h = TokenRole.ASSISTANT, TokenRole.HEADER
    assert assistant_turns(np.array([a, a, h, h, a], np.uint8)) == [(0, 2), (4, 5)]
    assert assistant_turns(np.array([h, h], np.uint8)) == []


def conversations(world, skip_header=False):
    """Two turns a text; "greets" in the second turn of every other text. Latent 1 reads it at the decision token,
    latent 2 within its second token; both also fire at the wrong places a little, latent 0 everywhere.
    """
    crosscoder = world.crosscoder
    crosscoder.W_enc = torch.zeros_like(crosscoder.W_enc)
    crosscoder.W_enc[[0, 1, 2], [0, 1, 2]] = 1.0
    crosscoder.b_enc = torch.zeros(crosscoder.num_latents)
    roles = np.array([2, 3, 7, 7, 4, 3, 7, 7, 7, 4], np.uint8)
    texts, x, positions = [], [], []
    for number in range(10):
        tagged = number % 2 == 0
        behaviours = (TaggedBehaviour("greets", 5, 6, 8),) if tagged else ()
        texts.append(Text(1, np.array([2, 3, 10 + number, 4, 5, 3, 30, 31, 32, 5]), roles, behaviours))
        rows = torch.zeros(10, 10)
        rows[:, 0] = 1.0
        rows[1, 1] = 0.5  # a decision token without the behaviour
        rows[5, 1] = 4.0 if tagged else 0.0
        rows[8, 1] = 1.0 if tagged else 0.0  # just beyond the behaviour's span
        rows[7, 2] = 3.0 if tagged else 1.0
        keep = [p for p in range(1, 10) if not (skip_header and p == 5)]
        x.append(rows[keep])
        positions.append(torch.tensor(keep))
    document = Text(0, np.array([9, 9, 9]), np.array([7, 7, 7], np.uint8))  # untagged set: not a negative
    texts.append(document)
    x.append(torch.ones(3, 10))
    positions.append(torch.arange(3))
    lengths = torch.tensor([len(each) for each in positions])
    index = torch.arange(len(texts)).repeat_interleave(lengths)
    position = torch.cat(positions)
    dataset = torch.tensor([text.dataset for text in texts], dtype=torch.uint8)[index]
    world.harvests = [Harvest(texts, torch.cat(x), index, position, torch.ones(len(index), dtype=torch.uint8), dataset)]
    return world


def table(world, tokenizer):
    analysis = analyse(world.crosscoder, HeldOut(world.harvests, world.datasets, tokenizer), world.spec, silent)
    return {row["place"]: row for row in analysis.behaviours.to_pylist()}


def test_planted_detectors_are_found(make_world, tokenizer):
    world = conversations(make_world(num_latents=5, threshold=None, input_scale=(1.0, 1.0)))
    norms = world.crosscoder.code_norms()
    rows = table(world, tokenizer)
    assert rows.keys() == {"decision", "within"}
    for place, latent, middle in (("decision", 1, 2.25), ("within", 2, 2.0)):
        row = rows[place]
        assert (row["behaviour"], row["latent"], row["recall"], row["false_rate"]) == ("greets", latent, 1.0, 0.0)
        assert row["threshold"] == pytest.approx(middle * float(norms[latent]), rel=1e-3)
        assert (row["num_positive"], row["num_negative"]) == (5, 15)


def test_a_decision_token_that_the_policy_drops_counts_as_zero(make_world, tokenizer):
    world = make_world(num_latents=5, threshold=None, input_scale=(1.0, 1.0))
    rows = table(conversations(world, skip_header=True), tokenizer)
    assert rows["decision"]["recall"] - rows["decision"]["false_rate"] <= 0
    assert rows["within"]["recall"] == 1.0


def test_untagged_data_has_no_table(make_world, tokenizer):
    world = make_world()
    for harvest in world.harvests:
        harvest.texts[:] = [Text(text.dataset, text.ids, text.roles) for text in harvest.texts]
    assert table(world, tokenizer) == {}
