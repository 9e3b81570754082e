"""From a stream of harvests to blocks: budgets per data set, whole texts and shards.

Knows nothing about latents. That every activation is finite is the harvest's promise (`data.harvest.check_finite`).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from crosscope_proto.specs import AnalysisSpec
from crosscope_worker.analysis.block import Block, TokenFacts, encode_block
from crosscope_worker.analysis.repeats import FirstShards, WindowHashes
from crosscope_worker.dictionary.crosscoder import Crosscoder

if TYPE_CHECKING:
    from crosscope_worker.data.harvest import Harvest
    from crosscope_worker.data.texts import Text

BLOCK_TOKENS = 1024
"""Tokens at which a block is closed; a longer text makes a longer block. Encoding takes about `12 · latents` bytes a
token: 900 MB for 73 728 latents."""
_MOST_CUDA_TOKENS = 8192
_CUDA_BLOCK_BYTES = 3 << 30
"""Memory for encoding a block on a GPU, where a block costs launches and waits besides its tokens."""


@dataclass(frozen=True)
class Intake:
    """One block and the texts that begin in it."""

    texts: "list[Text]"
    block: Block


def blocks(
    crosscoder: Crosscoder, harvests: "Iterable[Harvest]", spec: AnalysisSpec, datasets: Sequence[str]
) -> Iterator[Intake]:
    """Blocks of whole texts until every data set has its even share of `spec.max_tokens`.

    A data set's last text is taken whole, so the share may be exceeded by less than one text. Block b belongs to shard
    `b % spec.num_shards`; a token of it that repeats an earlier text belongs to the shard in which that text was first
    read (math §4).
    """
    budget = [max(1, spec.max_tokens // len(datasets))] * len(datasets)
    block_tokens = min(_block_tokens(crosscoder), max(1, spec.max_tokens // spec.num_shards))
    num_texts = num_blocks = 0
    first_shards, sparsifier = FirstShards(), crosscoder.sparsifier()
    for harvest in harvests:
        x = harvest.x
        text = harvest.text.cpu().long()
        lengths = torch.bincount(text, minlength=len(harvest.texts)).tolist()
        for group in _groups(harvest.texts, lengths, budget, block_tokens):
            wanted = torch.tensor(group, dtype=torch.int64)
            number = torch.full((len(harvest.texts),), -1, dtype=torch.int64)
            number[wanted] = torch.arange(num_texts, num_texts + len(group))
            keep = (number[text] >= 0).nonzero().squeeze(1)
            position = _column(harvest.position, keep)
            windows = WindowHashes([harvest.texts[each].ids for each in group])
            local = number[text[keep]] - num_texts
            shard, repeats = first_shards(windows.before(local.numpy(), position.numpy()), num_blocks % spec.num_shards)
            facts = TokenFacts(
                text=number[text[keep]].to(crosscoder.device),
                position=position.to(crosscoder.device),
                role=_column(harvest.role, keep).to(crosscoder.device),
                dataset=_column(harvest.dataset, keep).to(crosscoder.device),
                shard=torch.from_numpy(shard).long().to(crosscoder.device),
                repeats=torch.from_numpy(repeats).to(crosscoder.device),
            )
            block = encode_block(crosscoder, x[keep.to(x.device)].to(crosscoder.device), facts, sparsifier)
            yield Intake([harvest.texts[each] for each in group], block)
            num_texts, num_blocks = num_texts + len(group), num_blocks + 1
        if all(left <= 0 for left in budget):
            return


def _block_tokens(crosscoder: Crosscoder) -> int:
    """Tokens at which a block is closed at the latest, by the device and the number of latents alone."""
    if crosscoder.device.type != "cuda":
        return BLOCK_TOKENS
    return max(BLOCK_TOKENS, min(_MOST_CUDA_TOKENS, _CUDA_BLOCK_BYTES // (12 * crosscoder.num_latents)))


def _groups(texts: "Sequence[Text]", lengths: list[int], budget: list[int], block_tokens: int) -> Iterator[list[int]]:
    """Indices of texts that are still wanted, in groups of about `block_tokens` tokens; updates the budget in place."""
    group: list[int] = []
    size = 0
    for index, (text, length) in enumerate(zip(texts, lengths, strict=True)):
        if length == 0 or budget[text.dataset] <= 0:
            continue
        budget[text.dataset] -= length
        group.append(index)
        size += length
        if size >= block_tokens:
            yield group
            group, size = [], 0
    if group:
        yield group


def _column(values: Tensor, keep: Tensor) -> Tensor:
    return values.cpu().long()[keep]
