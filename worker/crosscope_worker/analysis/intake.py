"""From harvests of windows that were cut to encoded blocks. Knows nothing about what is summed.

That every activation is finite is the harvest's promise (`data.harvest.check_finite`).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from crosscope_proto.specs import AnalysisSpec
from crosscope_worker.analysis.block import Block, TokenFacts, encode_block
from crosscope_worker.analysis.cutting import Cut, Cutter
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
    """The blocks of harvests of all windows, which are cut as they come."""
    return intakes(crosscoder, _cut(crosscoder, harvests, spec, datasets), 0)


def _cut(
    crosscoder: Crosscoder, harvests: "Iterable[Harvest]", spec: AnalysisSpec, datasets: Sequence[str]
) -> "Iterator[tuple[Harvest, Cut]]":
    cutter = Cutter(spec, len(datasets), block_tokens(crosscoder))
    for harvest in harvests:
        yield harvest, cutter.cut(harvest.texts, harvest.text.cpu().numpy(), harvest.position.cpu().numpy())
        if cutter.is_full:
            return


def intakes(crosscoder: Crosscoder, harvested: "Iterable[tuple[Harvest, Cut]]", first_token: int) -> Iterator[Intake]:
    """The blocks of some windows; `first_token` is the number of tokens that the analysis reads of earlier windows.

    A token that was cut into a block and that the harvest left out, an outlier, is missing from the block.
    """
    random = np.random.default_rng(0)
    random.bit_generator.advance(first_token)  # type: ignore[attr-defined] - numpy's stubs leave it out
    num_texts, sparsifier, device = 0, crosscoder.sparsifier(), crosscoder.device
    for harvest, cut in harvested:
        keys = np.zeros(len(cut.shard))
        keys[cut.shard >= 0] = random.random(cut.num_tokens)
        lengths = np.array([len(each.ids) for each in harvest.texts], dtype=np.int64)
        text, position = harvest.text.cpu().numpy(), harvest.position.cpu().long()
        role, dataset = harvest.role.cpu().long(), harvest.dataset.cpu().long()
        at = (np.cumsum(lengths) - lengths)[text] + position.numpy()
        wanted = np.flatnonzero(cut.block[text] >= 0)
        edges = np.flatnonzero(np.diff(cut.block[text[wanted]])) + 1
        for keep in np.split(wanted, edges) if len(wanted) else ():
            group, number = np.unique(text[keep], return_inverse=True)
            rows = torch.from_numpy(keep)
            facts = TokenFacts(
                text=torch.from_numpy(number.reshape(-1) + num_texts).to(device),
                position=position[rows].to(device),
                role=role[rows].to(device),
                dataset=dataset[rows].to(device),
                shard=torch.from_numpy(cut.shard[at[keep]]).long().to(device),
                repeats=torch.from_numpy(cut.repeats[at[keep]]).to(device),
                key=torch.from_numpy(keys[at[keep]]).to(device),
            )
            x = harvest.x[rows.to(harvest.x.device)].to(device)
            yield Intake([harvest.texts[each] for each in group], encode_block(crosscoder, x, facts, sparsifier))
            num_texts += len(group)


def block_tokens(crosscoder: Crosscoder) -> int:
    """Tokens at which a block is closed at the latest, by the device and the number of latents alone."""
    if crosscoder.device.type != "cuda":
        return BLOCK_TOKENS
    return max(BLOCK_TOKENS, min(_MOST_CUDA_TOKENS, _CUDA_BLOCK_BYTES // (12 * crosscoder.num_latents)))
