"""The histogram of relative norms, from rows whose norms are known."""

import torch

from crosscope_worker.training.norm_histogram import relative_norm_bins


def test_each_latent_is_in_the_bin_of_its_relative_norm() -> None:
    # Norms of base and chat, and ½((chat - base) / max + 1): 0; 1; ½, on the edge of bins 9 and 10; 0.875; none.
    rows = [[3.0, 4.0, 0.0], [0.0, 0.0, 2.0], [0.0, 5.0, 5.0], [1.0, 0.0, 4.0], [0.0, 0.0, 0.0]]
    bins = relative_norm_bins(torch.tensor(rows), (2, 1)).tolist()
    assert {place: count for place, count in enumerate(bins) if count} == {0: 1, 19: 1, 10: 1, 17: 1}
    assert len(bins) == 20
