"""Latents that fire together: by hand, and against sets."""

import numpy as np
import pytest
import torch

from crosscope_worker.analysis import coactivation
from crosscope_worker.analysis.block import Block
from crosscope_worker.analysis.coactivation import CoActivation
from crosscope_worker.analysis.store import ranges


def block(active: list[list[int]]) -> Block:
    """A block in which token t fires the latents active[t]; tests read nothing else in it."""
    entries = sorted((latent, token) for token, latents in enumerate(active) for latent in latents)
    nothing = torch.zeros(0)
    tokens, latents = torch.tensor([token for _, token in entries]), torch.tensor([latent for latent, _ in entries])
    x = torch.zeros(len(active), 2)
    return Block(x, x, *[nothing] * 6, tokens, latents, nothing, nothing, torch.ones(2, len(entries)))


def test_jaccard_indices_by_hand():
    found = CoActivation()
    found.add(block([[0, 1], [0, 1, 2]]))
    found.add(block([[0, 2], [4]]))
    ids, scores = found.strongest(5)
    # Tokens of 0: a b c; of 1: a b; of 2: b c; of 4: d.
    assert [each.tolist() for each in ids] == [[1, 2], [0, 2], [0, 1], [], []]
    assert scores[0].tolist() == pytest.approx([2 / 3, 2 / 3])
    assert scores[1].tolist() == pytest.approx([2 / 3, 1 / 3])


@pytest.mark.parametrize("chunk_bytes", [1, 8 * 40 * 7, 1 << 20])
def test_equals_sets_of_tokens(monkeypatch: pytest.MonkeyPatch, chunk_bytes: int):
    monkeypatch.setattr(coactivation, "CHUNK_BYTES", chunk_bytes)
    rng = np.random.default_rng(0)
    active = [sorted(set(rng.integers(0, 40, rng.integers(0, 9)).tolist())) for _ in range(300)]
    found = CoActivation()
    for start in range(0, 300, 70):
        found.add(block(active[start : start + 70]))
    ids, scores = found.strongest(41, count=3)
    tokens = [{t for t, latents in enumerate(active) if latent in latents} for latent in range(41)]
    for latent, own in enumerate(tokens):
        index = {j: len(own & t) / len(own | t) for j, t in enumerate(tokens) if j != latent and own & t}
        expected = sorted(index, key=lambda j: (-index[j], j))[:3]
        assert ids[latent].tolist() == expected
        assert scores[latent].tolist() == pytest.approx([index[j] for j in expected])


def test_a_chunk_expands_no_more_partners_than_it_may(monkeypatch: pytest.MonkeyPatch):
    limit = 400
    monkeypatch.setattr(coactivation, "CHUNK_BYTES", limit * coactivation._PARTNER_BYTES)
    expanded = []

    def watched(start: np.ndarray, length: np.ndarray) -> np.ndarray:
        expanded.append((len(length), int(length.sum())))
        return ranges(start, length)

    monkeypatch.setattr(coactivation, "ranges", watched)
    rng = np.random.default_rng(2)
    active = [sorted({0, *rng.integers(0, 40, rng.integers(0, 9)).tolist()}) for _ in range(300)]
    found = CoActivation()
    found.add(block(active))
    found.strongest(41)
    (alone, all_of_0), *others = expanded
    assert (alone, all_of_0) == (300, sum(map(len, active))), "latent 0 has more than a chunk takes"
    assert 2 < len(others) < 39
    assert max(partners for _, partners in others) <= limit


def test_a_sample_holds_what_it_says():
    found = CoActivation(sample_entries=200)
    for _ in range(20):
        found.add(block([[0, 1, 2]] * 50))
    parts = (found._keys, found._tokens, found._latents)
    assert 0 < found._num_entries <= 200
    assert sum(each.nbytes for part in parts for each in part) == 24 * found._num_entries


def test_a_bounded_sample_says_nearly_the_same():
    rng = np.random.default_rng(1)
    active = [[0, 1] if rng.random() < 0.4 else [0, 2] for _ in range(20_000)]
    found = CoActivation(sample_entries=4000)
    for start in range(0, 20_000, 500):
        found.add(block(active[start : start + 500]))
    assert 1000 <= found._num_entries <= 4000
    ids, scores = found.strongest(3)
    assert ids[0].tolist() == [2, 1]
    assert scores[0].tolist() == pytest.approx([0.6, 0.4], abs=0.05)
