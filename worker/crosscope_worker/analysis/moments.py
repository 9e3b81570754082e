"""Sums per latent over the held-out tokens, and the first statistics that follow from them.

Memory: `(4 + 8) · shards + bins + roles + data sets + 2` eight-byte numbers a latent, for instance 220 MB for 73 728
latents, 20 shards and 2 data sets (a sixth more for a decoupled code), and ROW_SUM_BYTES of scratch; independent of the
number of tokens.

Knows nothing about decoder geometry beyond the rows that it gets; coefficients and their errors are in scaling.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crosscope_proto.job_disk import HISTOGRAM_BINS
from crosscope_proto.roles import BASE, CHAT, NUM_ROLES, TEMPLATE_ROLES
from crosscope_worker.analysis.block import Block, row_sums
from crosscope_worker.dictionary.crosscoder import Crosscoder

Floats = NDArray[np.float64]

_LOWEST, _HIGHEST = -6, 8
"""Decades of scaled activation that the histogram resolves; values outside fall into the outermost bins."""
_ADDED = (
    "num_tokens", "sums", "kept", "products", "repeats", "num_repeats", "num_texts", "role_mass", "dataset_mass",
    "histogram",
)  # fmt: skip
"""Names of the sums that are added where two passes are merged."""


@dataclass(frozen=True)
class ShardSums:
    """Sums over the tokens of each shard (math §4), or, without the shard axis, over all of them."""

    num_tokens: Floats
    """[shard]."""
    count: Floats
    """[shard, latent] active tokens."""
    scaled: Floats
    """[shard, latent] `sum_i a_ij`."""
    code: Floats
    """[shard, latent] `sum_i f_ij`."""
    code_squared: Floats
    """[shard, latent] C, `sum_i f_ij²`."""
    code_kept: Floats
    """[shard, model, latent] `sum_i f_ij²` over the tokens at which the model's reconstruction has the latent; equal to
    C unless the code is decoupled."""
    activation: Floats
    """[shard, direction, model, latent] P, `sum_i f_ij <x_i^m, v_j>`; NaN where the models' widths differ."""
    error: Floats
    """[shard, direction, model, latent] P - R, `sum_i f_ij <e_i^m, v_j>`. It is summed directly because it is small
    against both. NaN in a dictionary of differences."""

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return len(self.num_tokens)

    def total(self) -> "ShardSums":
        """The sums over all shards."""
        return ShardSums(*(getattr(self, name).sum(axis=0) for name in self.__dataclass_fields__))

    def without(self, shard: int, total: "ShardSums") -> "ShardSums":
        """The sums over all shards but one."""
        return ShardSums(*(getattr(total, name) - getattr(self, name)[shard] for name in self.__dataclass_fields__))


class Moments:
    """Accumulates the sums, block by block. Sums of several passes over different texts merge."""

    def __init__(self, crosscoder: Crosscoder, num_shards: int, num_datasets: int) -> None:
        latents, device = crosscoder.num_latents, crosscoder.device

        def zeros(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self._crosscoder = crosscoder
        self._num_tokens = zeros(num_shards)
        self._sums = zeros(4, num_shards, latents)
        self._kept = zeros(2, num_shards, latents) if crosscoder.keep.decoupled else None
        self._products = zeros(2, num_shards, 2, 2, latents)
        if not crosscoder.streams.reconstructs:  # no model has a reconstruction of its own
            self._products[1] = torch.nan
        if crosscoder.d_model[BASE] != crosscoder.d_model[CHAT]:
            self._products[:, :, BASE, CHAT] = self._products[:, :, CHAT, BASE] = torch.nan
        self._max = zeros(latents, dtype=torch.float32)
        self._repeats = zeros(latents)
        self._num_repeats = zeros(dtype=torch.int64)
        self._num_texts = zeros(latents)
        self._role_mass = zeros(latents, NUM_ROLES)
        self._dataset_mass = zeros(latents, num_datasets)
        self._edges = torch.logspace(_LOWEST, _HIGHEST, HISTOGRAM_BINS + 1, dtype=torch.float64, device=device)
        self._histogram = zeros(latents, len(self._edges) - 1, dtype=torch.int64)

    def add(self, block: Block) -> None:
        """Adds the tokens of a block."""
        shard, latents, scaled = block.shard[block.tokens], block.latents, block.scaled.double()
        raw = block.values.double()
        self._num_tokens += torch.bincount(block.shard, minlength=len(self._num_tokens))
        for sums, values in zip(self._sums, (torch.ones_like(raw), scaled, raw, raw * raw), strict=True):
            _add_at(sums, shard, latents, values)
        if self._kept is not None:
            for model in (BASE, CHAT):
                _add_at(self._kept[model], shard, latents, raw * raw * block.kept[model])
        self._num_repeats += block.repeats.sum()
        self._repeats.index_add_(0, latents, block.repeats[block.tokens].double())
        self._num_texts += torch.bincount(_once_a_text(block), minlength=len(self._num_texts))
        self._max.scatter_reduce_(0, latents, block.scaled, "amax")
        _add_at(self._role_mass, latents, block.role[block.tokens], scaled)
        _add_at(self._dataset_mass, latents, block.dataset[block.tokens], scaled)
        bins = (torch.bucketize(scaled, self._edges, right=True) - 1).clamp_(0, self._histogram.shape[1] - 1)
        _add_at(self._histogram, latents, bins, torch.ones_like(bins))
        self._add_products(block)

    def state(self) -> dict[str, Tensor]:
        """All sums by name."""
        return {name: sums for name in (*_ADDED, "max") if (sums := getattr(self, f"_{name}")) is not None}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from a saved state of the same crosscoder, number of shards and of data sets."""
        for name, sums in state.items():
            getattr(self, f"_{name}").copy_(sums)

    def merge(self, other: "Moments") -> None:
        """Adds the sums over other texts."""
        for name in _ADDED:
            if (sums := getattr(self, f"_{name}")) is not None:
                sums += getattr(other, f"_{name}")
        torch.maximum(self._max, other._max, out=self._max)

    def _add_products(self, block: Block) -> None:
        crosscoder, both = self._crosscoder, block.x.shape[1]
        dense = torch.cat([block.x, block.error], dim=1)
        shard_of = block.shard[block.tokens]
        for shard in torch.unique(shard_of).tolist():
            for latents, sums in row_sums(block, dense, shard_of == shard):
                directions = [crosscoder.decoder(direction)[latents] for direction in (BASE, CHAT)]
                for target, offset in enumerate((0, both)):
                    products = self._products[target, shard]
                    self._add_inner_products(products, latents, sums[:, offset : offset + both], directions)

    def _add_inner_products(self, products: Tensor, latents: Tensor, sums: Tensor, directions: list[Tensor]) -> None:
        """`products: [direction, model, latent]` of one target and shard; `sums: [row, both]`."""
        crosscoder = self._crosscoder
        same_width = crosscoder.d_model[BASE] == crosscoder.d_model[CHAT]
        for model in (BASE, CHAT):
            model_sums = sums[:, crosscoder.model_slice(model)]
            for direction in (BASE, CHAT):
                if same_width or direction == model:
                    products[direction, model, latents] += _row_products(model_sums, directions[direction])

    def shard_sums(self) -> ShardSums:
        """The sums of the shards that have tokens."""
        used = self._num_tokens > 0
        count, scaled, code, code_squared = (sums[used].cpu().numpy() for sums in self._sums)
        activation, error = (products[used].cpu().numpy() for products in self._products)
        num_tokens = self._num_tokens[used].cpu().numpy()
        both = torch.stack([self._sums[3]] * 2) if self._kept is None else self._kept
        kept = both[:, used].transpose(0, 1).cpu().numpy()
        return ShardSums(num_tokens, count, scaled, code, code_squared, kept, activation, error)

    def largest(self) -> NDArray[np.float32]:
        """Largest scaled activation, [latent]; 0 where it never fired."""
        return self._max.cpu().numpy()

    def repeat_share(self) -> float:
        """Share of all tokens that repeat an earlier text."""
        return int(self._num_repeats) / max(1.0, float(self._num_tokens.sum()))

    def repeat_shares(self) -> Floats:
        """Share of its active tokens that repeat an earlier text, [latent]; NaN where it never fired."""
        return (self._repeats / self._sums[0].sum(dim=0)).cpu().numpy()

    def num_texts(self) -> Floats:
        """Number of texts in which it fired on a token that repeats no earlier text, [latent]."""
        return self._num_texts.cpu().numpy()

    def role_shares(self) -> Floats:
        """Share of activation mass by TokenRole, [latent, role]; NaN where it never fired."""
        return _shares(self._role_mass)

    def dataset_shares(self) -> Floats:
        """Share of activation mass by data set, [latent, dataset]; NaN where it never fired."""
        return _shares(self._dataset_mass)

    def template_share(self) -> Floats:
        """Share of activation mass on tokens that the template adds, [latent]; NaN where it never fired."""
        return self.role_shares()[:, sorted(TEMPLATE_ROLES)].sum(axis=1)

    def histogram(self) -> tuple[NDArray[np.uint32], tuple[float, ...]]:
        """Active tokens by scaled activation, [latent, bin], and the bins' edges, cut to the bins in use."""
        used = self._histogram.sum(dim=0).nonzero().squeeze(1)
        first, last = (int(used[0]), int(used[-1])) if len(used) else (0, 0)
        counts = self._histogram[:, first : last + 1].cpu().numpy().astype(np.uint32)
        return counts, tuple(self._edges[first : last + 2].tolist())


def _row_products(sums: Tensor, rows: Tensor) -> Tensor:
    """`<sums_j, rows_j>: [row]` float64."""
    if sums.is_cuda:  # vecdot is a matrix product, which TF32 would round.
        return (sums * rows).sum(1, dtype=torch.float64)
    return torch.linalg.vecdot(sums, rows).double()


def _once_a_text(block: Block) -> Tensor:
    """Each latent once for every text in which it fires on a token that repeats no earlier text, int64."""
    own = ~block.repeats[block.tokens]
    latents, texts = block.latents[own], block.text[block.tokens[own]]
    # Entries are ordered by latent, then by text.
    is_first = torch.ones(len(latents), dtype=torch.bool, device=latents.device)
    is_first[1:] = (latents[1:] != latents[:-1]) | (texts[1:] != texts[:-1])
    return latents[is_first]


def _add_at(table: Tensor, rows: Tensor, columns: Tensor, values: Tensor) -> None:
    table.view(-1).index_add_(0, rows * table.shape[1] + columns, values)


def _shares(mass: Tensor) -> Floats:
    return (mass / mass.sum(dim=1, keepdim=True)).cpu().numpy()
