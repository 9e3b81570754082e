"""Which latents fire together: the largest Jaccard indices between the sets of tokens on which latents fire.

Counted on a uniform sample of the tokens with at most SAMPLE_ENTRIES active entries, whole tokens at a time. Memory: 24
bytes a sampled entry, about 100 in `strongest`, and there at most twice CHUNK_BYTES of scratch; time grows with the sum
of squares of the tokens' active latents.

Knows nothing about decoder rows or strengths of activations.
"""

import numpy as np
from numpy.typing import NDArray

from crosscope_worker.analysis.block import Block
from crosscope_worker.analysis.store import ranges, runs

SAMPLE_ENTRIES = 1 << 21
CHUNK_BYTES = 128 << 20
"""Memory for the counts of a chunk of latents; the counted partners take as much again."""
_PARTNER_BYTES = 40
NUM_COACTIVE = 10

Ints = NDArray[np.int64]


class CoActivation:
    """Collects the sample, block by block."""

    def __init__(self, sample_entries: int = SAMPLE_ENTRIES) -> None:
        self._sample_entries = sample_entries
        self._random = np.random.default_rng(0)
        self._share = 1.0
        self._keys: list[NDArray[np.float64]] = []
        self._tokens: list[Ints] = []
        self._latents: list[Ints] = []
        self._num_tokens = self._num_entries = 0

    def add(self, block: Block) -> None:
        """Adds the tokens of a block."""
        tokens = block.tokens.cpu().numpy()
        keys = self._random.random(block.num_tokens)[tokens]
        kept = keys < self._share
        self._keys.append(keys[kept])
        self._tokens.append(tokens[kept] + self._num_tokens)
        self._latents.append(block.latents.cpu().numpy()[kept])
        self._num_tokens += block.num_tokens
        self._num_entries += int(kept.sum())
        while self._num_entries > self._sample_entries and self._share > 2**-30:
            self._halve()

    def _halve(self) -> None:
        """Keeps half of the sampled tokens, those with the smaller keys, so that the sample stays uniform."""
        self._share /= 2
        keys, tokens, latents = np.concatenate(self._keys), np.concatenate(self._tokens), np.concatenate(self._latents)
        kept = keys < self._share
        self._keys, self._tokens, self._latents = [keys[kept]], [tokens[kept]], [latents[kept]]
        self._num_entries = int(kept.sum())

    def strongest(self, num_latents: int, count: int = NUM_COACTIVE) -> tuple[list[Ints], list[NDArray[np.float32]]]:
        """For each latent at most `count` others that fire together with it, and their Jaccard indices, largest first.

        The index of i and j is `|T_i ∩ T_j| / |T_i ∪ T_j|`, T being the sampled tokens on which a latent fires. Ties go
        to the lower id; latents that never fire together are left out.
        """
        tokens, latents = (np.concatenate(each or [np.empty(0, np.int64)]) for each in (self._tokens, self._latents))
        by_token, by_latent = np.argsort(tokens, kind="stable"), np.argsort(latents, kind="stable")
        _, row_of, row_sizes = np.unique(tokens, return_inverse=True, return_counts=True)
        row_starts = np.cumsum(row_sizes) - row_sizes
        sizes = np.bincount(latents, minlength=num_latents)
        starts = np.cumsum(sizes) - sizes
        partners_of = np.bincount(latents, weights=row_sizes[row_of], minlength=num_latents).astype(np.int64)
        ids: list[Ints] = []
        scores: list[NDArray[np.float32]] = []
        for first, last in runs(partners_of, CHUNK_BYTES // _PARTNER_BYTES, CHUNK_BYTES // (8 * num_latents)):
            own = by_latent[starts[first] : starts[last - 1] + sizes[last - 1]]
            rows = row_of[own]
            partners = latents[by_token[ranges(row_starts[rows], row_sizes[rows])]]
            places = np.repeat(latents[own] - first, row_sizes[rows]) * num_latents + partners
            shared = np.bincount(places, minlength=(last - first) * num_latents).reshape(-1, num_latents)
            for latent, together in enumerate(shared, start=first):
                together[latent] = 0
                others = np.flatnonzero(together)
                index = together[others] / (sizes[latent] + sizes[others] - together[others])
                best = np.lexsort((others, -index))[:count]
                ids.append(others[best])
                scores.append(index[best].astype(np.float32))
        return ids, scores
