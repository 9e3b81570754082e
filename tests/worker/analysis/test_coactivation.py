"""Latents that fire together: by hand, and against sets."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from crosscope_worker.analysis import coactivation
from crosscope_worker.analysis.block import Block
from crosscope_worker.analysis.coactivation import CoActivation
from tests.worker.devices import needs_gpu


def strongest(found: CoActivation, num_latents: int, count: int = 10) -> tuple[list[list[int]], list[list[float]]]:
    """The others of each latent and their indices."""
    counts, ids, indices = found.strongest(num_latents, count)
    ends = np.cumsum(counts)[:-1]
    return [each.tolist() for each in np.split(ids, ends)], [each.tolist() for each in np.split(indices, ends)]


def block(active: list[list[int]], keys: np.random.Generator | None = None) -> Block:
    """A block in which token t fires the latents active[t]; tests read nothing else in it but the tokens' keys."""
    entries = sorted((latent, token) for token, latents in enumerate(active) for latent in latents)
    nothing = torch.zeros(0)
    tokens, latents = torch.tensor([token for _, token in entries]), torch.tensor([latent for latent, _ in entries])
    x = torch.zeros(len(active), 2)
    key = torch.from_numpy((keys or np.random.default_rng(0)).random(len(active)))
    return Block(x, x, *[nothing] * 6, key, tokens, latents, nothing, nothing, torch.ones(2, len(entries)))


def test_jaccard_indices_by_hand():
    found = CoActivation()
    found.add(block([[0, 1], [0, 1, 2]]))
    found.add(block([[0, 2], [4]]))
    ids, scores = strongest(found, 5)
    # Tokens of 0: a b c; of 1: a b; of 2: b c; of 4: d.
    assert ids == [[1, 2], [0, 2], [0, 1], [], []]
    assert scores[0] == pytest.approx([2 / 3, 2 / 3])
    assert scores[1] == pytest.approx([2 / 3, 1 / 3])


def test_nothing_that_fires():
    ids, scores = strongest(CoActivation(), 2)
    assert ids == scores == [[], []]
    found = CoActivation()
    found.add(block([[1], [1]]))
    assert strongest(found, 2)[0] == [[], []]


@pytest.mark.parametrize("most_empty", [0, 8], ids=["sorted", "counted"])
@pytest.mark.parametrize("chunk_bytes", [1, 8 * 80 * 7, 1 << 20])
def test_equals_sets_of_tokens(monkeypatch: pytest.MonkeyPatch, chunk_bytes: int, most_empty: int):
    monkeypatch.setattr(coactivation, "scratch_bytes", lambda *_: chunk_bytes)
    monkeypatch.setattr(coactivation, "MOST_EMPTY", most_empty)
    rng = np.random.default_rng(0)
    active = [sorted(set(rng.integers(0, 40, rng.integers(0, 9)).tolist())) for _ in range(300)]
    found = CoActivation()
    for start in range(0, 300, 70):
        found.add(block(active[start : start + 70]))
    ids, scores = strongest(found, 41, count=3)
    tokens = [{t for t, latents in enumerate(active) if latent in latents} for latent in range(41)]
    for latent, own in enumerate(tokens):
        index = {j: len(own & t) / len(own | t) for j, t in enumerate(tokens) if j != latent and own & t}
        expected = sorted(index, key=lambda j: (-index[j], j))[:3]
        assert ids[latent] == expected
        assert scores[latent] == pytest.approx([index[j] for j in expected])


def test_a_chunk_expands_no_more_partners_than_it_may(monkeypatch: pytest.MonkeyPatch):
    limit = 400
    monkeypatch.setattr(coactivation, "scratch_bytes", lambda *_: limit * coactivation.PAIR_BYTES)
    expanded: list[int] = []
    pairs = coactivation._Sample._pairs

    def watched(sample: coactivation._Sample, first: int, last: int) -> torch.Tensor:
        made = pairs(sample, first, last)
        expanded.append(len(made))
        return made

    monkeypatch.setattr(coactivation._Sample, "_pairs", watched)
    rng = np.random.default_rng(2)
    active = [sorted({0, *rng.integers(0, 40, rng.integers(0, 9)).tolist()}) for _ in range(300)]
    found = CoActivation()
    found.add(block(active))
    found.strongest(41)
    all_of_0, *others = expanded
    assert all_of_0 == sum(map(len, active)) > limit, "latent 0 has more than a chunk takes"
    assert 2 < len(others) < 39
    assert max(others) <= limit


def test_a_sample_holds_what_it_says():
    found = CoActivation(sample_entries=200)
    keys = np.random.default_rng(0)
    for _ in range(20):
        found.add(block([[0, 1, 2]] * 50, keys))
    parts = (found._keys, found._tokens, found._latents)
    assert 0 < found._num_entries <= 200
    assert sum(each.nbytes for part in parts for each in part) == 24 * found._num_entries


def test_a_bounded_sample_says_nearly_the_same():
    rng = np.random.default_rng(1)
    active = [[0, 1] if rng.random() < 0.4 else [0, 2] for _ in range(20_000)]
    found = CoActivation(sample_entries=4000)
    for start in range(0, 20_000, 500):
        found.add(block(active[start : start + 500], rng))
    assert 1000 <= found._num_entries <= 4000
    ids, scores = strongest(found, 3)
    assert ids[0] == [2, 1]
    assert scores[0] == pytest.approx([0.6, 0.4], abs=0.05)


@pytest.mark.gpu
@needs_gpu
def test_a_gpu_finds_what_a_cpu_finds():
    rng = np.random.default_rng(3)
    active = [sorted(set(rng.integers(0, 3000, 40).tolist())) for _ in range(2000)]
    found = CoActivation(), CoActivation()
    own = block(active)
    found[0].add(own)
    found[1].add(replace(own, tokens=own.tokens.cuda(), latents=own.latents.cuda()))
    for one, other in zip(*(each.strongest(3000) for each in found), strict=True):
        assert np.array_equal(one, other)
