"""Which latents fire together: the largest Jaccard indices between the sets of tokens on which latents fire.

Counted on a uniform sample of the tokens with at most CO_ACTIVE_ENTRIES active entries, whole tokens at a time, on the
device of the blocks. Memory: 24 bytes a sampled entry, about 100 in `strongest`, and there about PAIR_BYTES a pair for
the pairs of a chunk; time grows with the sum of squares of the tokens' active latents.

Knows nothing about decoder rows or strengths of activations.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crosscope_proto.job_disk import CO_ACTIVE_ENTRIES
from crosscope_worker.analysis.block import Block, scratch_bytes
from crosscope_worker.analysis.store import runs
from crosscope_worker.dictionary.sparse import flat_indices

CHUNK_BYTES = 64 << 20
"""Memory for the pairs of a chunk of latents on a CPU."""
PAIR_BYTES = 80
"""Most memory for a pair of entries: their places, the sorted places and their order."""
MOST_EMPTY = 8
"""Pairs are counted in a table of all latents if it has at most this many places a pair, else by sorting them."""
NUM_COACTIVE = 10

_LEVEL_OF_1 = 127 << 3
_LEVELS = 8 * 32
"""Levels of indices down to 2^-32; no sample is so large that one lies below."""

Ints = NDArray[np.int64]


class CoActivation:
    """Collects the sample, block by block. Samples of several passes over different texts merge: which tokens are
    sampled depends on all tokens' keys alone.
    """

    def __init__(self, device: torch.device | str = "cpu", sample_entries: int = CO_ACTIVE_ENTRIES) -> None:
        """`device`: that of the blocks."""
        self._device = device
        self._sample_entries = sample_entries
        self._share = 1.0
        self._keys: list[Tensor] = []
        self._tokens: list[Tensor] = []
        self._latents: list[Tensor] = []
        self._num_tokens = self._num_entries = 0

    def add(self, block: Block) -> None:
        """Adds the tokens of a block."""
        self._add(block.key[block.tokens], block.tokens + self._num_tokens, block.latents)
        self._num_tokens += block.num_tokens

    def state(self) -> dict[str, Tensor]:
        """The sample, and the numbers that it depends on."""
        numbers = {"num_tokens": torch.tensor(self._num_tokens), "share": torch.tensor(self._share).double()}
        entries = {"keys": self._keys, "tokens": self._tokens, "latents": self._latents}
        return numbers | {name: torch.cat(parts) for name, parts in entries.items() if parts}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from a saved state."""
        self._num_tokens, self._share = int(state["num_tokens"]), float(state["share"])
        if "keys" in state:
            self._add(*(state[name].to(self._device) for name in ("keys", "tokens", "latents")))

    def merge(self, other: "CoActivation") -> None:
        """Adds the sample of other tokens, which come behind."""
        share = min(self._share, other._share)
        if share < self._share:
            self._thin(share)
        for keys, tokens, latents in zip(other._keys, other._tokens, other._latents, strict=True):
            self._add(keys, tokens + self._num_tokens, latents)
        self._num_tokens += other._num_tokens

    def _add(self, keys: Tensor, tokens: Tensor, latents: Tensor) -> None:
        """Adds entries with the keys of their tokens, as far as the sample takes them."""
        if self._share < 1:
            kept = keys < self._share
            keys, tokens, latents = keys[kept], tokens[kept], latents[kept]
        self._keys.append(keys)
        self._tokens.append(tokens)
        self._latents.append(latents)
        self._num_entries += len(keys)
        while self._num_entries > self._sample_entries and self._share > 2**-30:
            self._thin(self._share / 2)

    def _thin(self, share: float) -> None:
        """Keeps a share of all tokens, those with the smaller keys, so that the sample stays uniform."""
        self._share = share
        if not self._keys:
            return
        keys, tokens, latents = torch.cat(self._keys), torch.cat(self._tokens), torch.cat(self._latents)
        kept = keys < self._share
        self._keys, self._tokens, self._latents = [keys[kept]], [tokens[kept]], [latents[kept]]
        self._num_entries = len(self._keys[0])

    def strongest(self, num_latents: int, count: int = NUM_COACTIVE) -> tuple[Ints, Ints, NDArray[np.float32]]:
        """For each latent at most `count` others that fire together with it, and their Jaccard indices, largest first.

        Returns (number of others [latent], their ids, their indices), those of latent 0 first. The index of i and j is
        `|T_i ∩ T_j| / |T_i ∪ T_j|`, T being the sampled tokens on which a latent fires. Ties go to the lower id;
        latents that never fire together are left out.
        """
        if not self._num_entries:
            return np.zeros(num_latents, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
        sample = _Sample.of(torch.cat(self._latents), torch.cat(self._tokens), num_latents)
        found = [sample.strongest(first, last, count) for first, last in sample.chunks()]
        rows, ids, indices = (torch.cat(column).cpu() for column in zip(*found, strict=True))
        counts = torch.bincount(rows, minlength=num_latents)
        return counts.numpy(), ids.numpy(), indices.float().numpy()


@dataclass(frozen=True, eq=False)
class _Sample:
    """The sampled entries by latent and by token, on one device."""

    own: Tensor
    """[entry] latents, ascending."""
    token: Tensor
    """[entry] numbers of their tokens, of those that have an entry."""
    partners: Tensor
    """[entry] latents of token 0, then of token 1, …, ascending in each."""
    widths: Tensor
    """[token] number of its entries."""
    sizes: Tensor
    """[latent] number of its entries."""
    num_pairs: Ints
    """[latent] number of pairs of one of its entries with an entry of the same token."""

    @classmethod
    def of(cls, latents: Tensor, tokens: Tensor, num_latents: int) -> Self:
        """Orders entries; `latents, tokens: [entry]`."""
        by_latent = torch.argsort(latents, stable=True)
        own = latents[by_latent]
        _, token, widths = torch.unique(tokens[by_latent], return_inverse=True, return_counts=True)
        sizes = torch.bincount(own, minlength=num_latents)
        num_pairs = torch.zeros_like(sizes).index_add_(0, own, widths[token])
        partners = own[torch.argsort(token, stable=True)]
        return cls(own, token, partners, widths, sizes, num_pairs.cpu().numpy())

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Runs of latents `first, last` whose pairs fit into the scratch memory; a latent with more is alone."""
        return runs(self.num_pairs, scratch_bytes(self.own.device, CHUNK_BYTES) // PAIR_BYTES)

    def strongest(self, first: int, last: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """For the latents of a chunk the `count` largest indices: latents, others and indices, [found] each."""
        num_latents = len(self.sizes)
        places, shared = _counted(self._pairs(first, last), (last - first) * num_latents)
        rows = torch.div(places, num_latents, rounding_mode="floor")
        others = places - rows * num_latents
        index = shared / (self.sizes[first:last][rows] + self.sizes[others] - shared).double()
        index.masked_fill_(rows + first == others, 0.0)
        strong = flat_indices(_may_be_largest(rows, index, last - first, count))
        rows, others, index = rows[strong], others[strong], index[strong]
        # Pairs come by latent, then by other, and stable sorts keep that order among equals.
        order = torch.sort(index, descending=True, stable=True).indices
        order = order[torch.sort(rows[order], stable=True).indices]
        width = torch.bincount(rows, minlength=last - first)
        rank = torch.arange(len(order), device=order.device) - (width.cumsum(0) - width)[rows]
        order = order[rank < count]
        return rows[order] + first, others[order], index[order]

    def _pairs(self, first: int, last: int) -> Tensor:
        """`(i - first) · latents + j` for each pair of entries of one token, i in the chunk, [pair]."""
        begin, end = int(self.sizes[:first].sum()), int(self.sizes[:last].sum())
        own, token = self.own[begin:end], self.token[begin:end]
        widths, total = self.widths[token], int(self.num_pairs[first:last].sum())
        starts = (self.widths.cumsum(0) - self.widths)[token] - (widths.cumsum(0) - widths)
        entries = torch.repeat_interleave(starts, widths, output_size=total)
        entries += torch.arange(total, device=entries.device)
        places = torch.repeat_interleave((own - first) * len(self.sizes), widths, output_size=total)
        return places.add_(self.partners[entries])


def _counted(places: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The distinct numbers below `size` among `places`, ascending, and how often each occurs."""
    if size <= MOST_EMPTY * len(places):
        counts = torch.bincount(places, minlength=size)
        found = flat_indices(counts > 0)
        return found, counts[found]
    return torch.unique_consecutive(places.sort().values, return_counts=True)


def _may_be_largest(rows: Tensor, index: Tensor, num_rows: int, count: int) -> Tensor:
    """Which of some indices may be among the `count` largest of their row, [pair] bool; never one that is 0.

    Only these are sorted. Eight levels a halving tell them apart: numbers order as the bits of their float32 do.
    """
    level = (_LEVEL_OF_1 - (index.float().view(torch.int32) >> 20)).clamp_(0, _LEVELS).long()
    table = torch.bincount(rows * (_LEVELS + 1) + level, minlength=num_rows * (_LEVELS + 1))
    up_to = table.view(num_rows, -1)[:, :-1].cumsum(1)
    last = (up_to < count).sum(1).clamp_max_(_LEVELS - 1)
    return level <= last[rows]
