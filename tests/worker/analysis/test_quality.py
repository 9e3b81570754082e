"""FVE, L0 and outliers with numbers worked out by hand."""

import numpy as np
import pytest
import torch
from torch import Tensor

from crosscope_worker.analysis.block import TokenFacts, encode_block
from crosscope_worker.analysis.quality import Quality
from crosscope_worker.dictionary.crosscoder import Crosscoder
from crosscope_worker.dictionary.streams import DIFFERENCE


def measured(x: Tensor, crosscoder: Crosscoder, num_blocks: int = 1) -> dict[str, float]:
    quality = Quality(crosscoder)
    for part in x.chunk(num_blocks):
        index = torch.arange(len(part))
        quality.add(encode_block(crosscoder, part, TokenFacts(index, *[torch.zeros(len(part), dtype=torch.int64)] * 6)))
    return quality.metrics()


def one_latent(**options) -> Crosscoder:
    """Reads the first column and writes it to both models."""
    row = torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    encoder = torch.tensor([[1.0], [0.0], [0.0], [0.0]])
    given = {"W_enc": encoder, "W_dec": row, "b_dec": torch.zeros(4), "variant": "l1"} | options
    return Crosscoder(b_enc=torch.zeros(1), d_model=(2, 2), **given)


X = torch.tensor([[2.0, 0.0, 2.0, 1.0], [4.0, 0.0, 3.0, 1.0], [-3.0, 0.0, 1.0, 1.0]])
"""Reconstructed as 2, 4 and nothing: base's errors are 0, 0 and (-3, 0), chat's (0, 1), (-1, 1) and (1, 1)."""


@pytest.mark.parametrize("num_blocks", [1, 3])
@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.5, 0.5)])
def test_by_hand(num_blocks: int, scale: tuple[float, float]):
    """Base: mean 1, spread 1 + 9 + 16 = 26, error 9. Chat: means 2 and 1, spread 1 + 1 = 2, error 1 + 2 + 2 = 5."""
    figures = measured(X, one_latent(input_scale=scale), num_blocks)
    assert figures["fve_base"] == pytest.approx(1 - 9 / 26)
    assert figures["fve_chat"] == pytest.approx(1 - 5 / 2)
    assert figures["l0"] == pytest.approx(2 / 3)
    assert figures["outlier_share"] == 0
    assert figures["fve_base_inliers"] == pytest.approx(figures["fve_base"])


def test_a_dictionary_of_differences_by_hand():
    """The difference is (0, 1), (-1, 1), (4, 1): mean (1, 1), spread 1 + 4 + 9 = 14. It reads and writes 4 at the last
    token: errors 1, 2 and 1."""
    encoder, row = torch.tensor([[-1.0], [0.0], [1.0], [0.0]]), torch.tensor([[0.0, 0.0, 1.0, 0.0]])
    figures = measured(X, one_latent(W_enc=encoder, W_dec=row, streams=DIFFERENCE))
    assert figures["fve_difference"] == pytest.approx(1 - 4 / 14)
    assert figures["l0"] == pytest.approx(1 / 3)
    assert "fve_base" not in figures


def test_a_token_of_ten_times_the_median_norm_is_an_outlier():
    """Base norms 2, 4, 3 and 31 at one token of four, median 3 (the lower of the middle two)."""
    x = torch.cat([X, torch.tensor([[31.0, 0.0, 2.0, 0.0]])])
    figures = measured(x, one_latent())
    assert figures["outlier_share"] == pytest.approx(1 / 4)
    assert figures["fve_base_inliers"] == pytest.approx(1 - 9 / 26)
    assert figures["fve_base"] == pytest.approx(1 - 9 / ((x[:, 0] - x[:, 0].mean()) ** 2).sum().item())


def test_activations_that_never_change_have_no_share_of_variance():
    figures = measured(torch.ones(5, 4), one_latent())
    assert np.isnan(figures["fve_base"])
    assert np.isnan(figures["fve_chat"])
    assert figures["l0"] == 1
