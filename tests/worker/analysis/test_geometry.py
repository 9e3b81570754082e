"""Norms, classes and neighbours of decoder rows."""

import numpy as np
import pytest
import torch

from crosscope_worker.analysis import geometry as module
from crosscope_worker.analysis import largest
from crosscope_worker.analysis.geometry import classes, geometry, inner_products, neighbours
from crosscope_worker.dictionary.crosscoder import Crosscoder


def crosscoder(rows):
    rows = torch.tensor(rows)
    width = rows.shape[1] // 2
    return Crosscoder(
        torch.zeros(2 * width, len(rows)), torch.zeros(len(rows)), rows, torch.zeros(2 * width), (width, width), "l1"
    )


def test_norms_by_hand():
    shape = geometry(crosscoder([[3.0, 4.0, 0.0, 1.0], [0.0, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))
    assert shape.norm_base.tolist() == [5, 0, 0]
    assert shape.norm_chat.tolist() == [1, 2, 0]
    np.testing.assert_allclose(shape.rel_norm, [0.1, 1.0, np.nan], rtol=1e-6)
    np.testing.assert_allclose(shape.cosine, [0.8, np.nan, np.nan], rtol=1e-6)


def test_classes_by_hand():
    rel_norm = np.array([0.95, 0.9, 0.05, 0.5, 0.59, 0.61, np.nan, 0.99])
    active = np.array([1, 1, 1, 1, 1, 1, 1, 0])
    expected = ["chat_only", "other", "base_only", "shared", "shared", "other", "other", "dead"]
    assert classes(rel_norm, active).tolist() == expected


@pytest.mark.parametrize(("num_latents", "chunk"), [(25, 1 << 20), (25, 400), (3, 1)])
def test_neighbours_equal_brute_force(monkeypatch, num_latents, chunk):
    monkeypatch.setattr(largest, "CHUNK_BYTES", chunk)
    rows = torch.randn(num_latents, 6, generator=torch.Generator().manual_seed(0))
    rows[1] = 0
    ids, cosines = neighbours(rows, 10)
    unit = torch.nn.functional.normalize(rows, dim=1)
    everything = unit @ unit.T - 9 * torch.eye(num_latents)
    assert ids.shape == (num_latents, min(10, num_latents - 1))
    for j in range(num_latents):
        assert j not in ids[j].tolist()
        expected = everything[j].sort(descending=True).values[: ids.shape[1]]
        torch.testing.assert_close(cosines[j], expected)
        torch.testing.assert_close(everything[j][ids[j]], expected)


@pytest.mark.parametrize("chunk", [1, 16 * 5 * 3, 1 << 20])
def test_inner_products_equal_whole_float64_ones(monkeypatch, chunk):
    monkeypatch.setattr(module, "CHUNK_BYTES", chunk)
    rows, others = torch.randn(2, 7, 10, generator=torch.Generator().manual_seed(0))[:, :, 2:7]
    torch.testing.assert_close(inner_products(rows, others), (rows.double() * others.double()).sum(1))
    torch.testing.assert_close(inner_products(rows, others[0]), rows.double() @ others[0].double())
