"""What the analysis takes of a stream of texts, and how it cuts that into blocks and shards (math §4).

Here are the budgets per data set, whole texts, and the shards of texts that repeat earlier ones. All of it follows from
the texts and the token policy alone. So it is the same whoever runs the models, in one pass or in parts, and whatever
the models make of a token. Knows no models and no latents.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from crosscope_proto.specs import AnalysisSpec
from crosscope_worker.analysis.repeats import FirstShards, WindowHashes

if TYPE_CHECKING:
    from crosscope_worker.data.texts import Text

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Cut:
    """What becomes of the texts of one window; tokens are those of all its texts, end to end."""

    block: Ints
    """[text] number of its block, ascending; -1 for a text that is not taken."""
    shard: NDArray[np.int16]
    """[token] shard of the jackknife; -1 for a token that the analysis does not read."""
    repeats: NDArray[np.bool_]
    """[token] whether it repeats an earlier text."""

    @property
    def num_tokens(self) -> int:
        """Number of tokens that the analysis reads, outliers included."""
        return int((self.shard >= 0).sum())


class Cutter:
    """Cuts windows of texts, one after the other, until every data set has its even share of `spec.max_tokens`.

    A data set's last text is taken whole, so the share may be exceeded by less than one text. A block is whole texts
    with about `block_tokens` tokens, of one window. Block b belongs to shard `b % spec.num_shards`; a token of it that
    repeats an earlier text belongs to the shard in which that text was first read.
    """

    def __init__(self, spec: AnalysisSpec, num_datasets: int, block_tokens: int) -> None:
        self._left = [max(1, spec.max_tokens // num_datasets)] * num_datasets
        self._block_tokens = min(block_tokens, max(1, spec.max_tokens // spec.num_shards))
        self._num_shards = spec.num_shards
        self._num_blocks = 0
        self._first_shards = FirstShards()

    @property
    def is_full(self) -> bool:
        """Whether every data set has its share."""
        return all(left <= 0 for left in self._left)

    def cut(self, texts: "Sequence[Text]", text: NDArray[np.integer], position: NDArray[np.integer]) -> Cut:
        """Cuts the next window. `text, position: [read token]` are the tokens that may be read, in the texts' order:
        the index of their text and their position in it.
        """
        lengths = np.array([len(each.ids) for each in texts], dtype=np.int64)
        starts = np.cumsum(lengths) - lengths
        block = np.full(len(texts), -1, np.int64)
        shard = np.full(int(lengths.sum()), -1, np.int16)
        repeats = np.zeros(len(shard), np.bool_)
        ends = np.searchsorted(text, np.arange(len(texts) + 1))
        for group in self._groups(texts, np.diff(ends).tolist()):
            own = np.concatenate([np.arange(ends[each], ends[each + 1]) for each in group])
            windows = WindowHashes([texts[each].ids for each in group])
            hashes = windows.before(np.searchsorted(group, text[own]), position[own])
            at = starts[text[own]] + position[own]
            shard[at], repeats[at] = self._first_shards(hashes, self._num_blocks % self._num_shards)
            block[group] = self._num_blocks
            self._num_blocks += 1
        return Cut(block, shard, repeats)

    def _groups(self, texts: "Sequence[Text]", lengths: list[int]) -> Iterator[list[int]]:
        """Indices of texts that are still wanted, a block at a time; takes them from the budget."""
        group: list[int] = []
        size = 0
        for index, (text, length) in enumerate(zip(texts, lengths, strict=True)):
            if length == 0 or self._left[text.dataset] <= 0:
                continue
            self._left[text.dataset] -= length
            group.append(index)
            size += length
            if size >= self._block_tokens:
                yield group
                group, size = [], 0
        if group:
            yield group
