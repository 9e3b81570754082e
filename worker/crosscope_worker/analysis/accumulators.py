"""The accumulators of one pass over the activations: sums, and data kept for later. Knows no formula."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Self

import torch

from crosscope_proto.limits import CHAT_ONLY_ABOVE
from crosscope_proto.specs import AnalysisSpec
from crosscope_worker.analysis.block import Block
from crosscope_worker.analysis.coactivation import CoActivation
from crosscope_worker.analysis.geometry import geometry
from crosscope_worker.analysis.intake import Intake
from crosscope_worker.analysis.moments import Moments, ShardSums
from crosscope_worker.analysis.quality import Quality
from crosscope_worker.analysis.store import Store
from crosscope_worker.analysis.uselessness import ChatOnlySums
from crosscope_worker.dictionary.crosscoder import Crosscoder


@dataclass(frozen=True, eq=False)
class Accumulators:
    """The accumulators that a pass fills, block by block. `close` removes their temporary file.

    The store works on the host, in a thread of its own, while the next block is encoded.
    """

    moments: Moments
    quality: Quality
    chat_only: ChatOnlySums
    coactivation: CoActivation
    store: Store
    """Complete after `settle`."""
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "store"))
    _adding: "list[Future[None]]" = field(default_factory=list)

    @classmethod
    def of(cls, crosscoder: Crosscoder, spec: AnalysisSpec, num_datasets: int) -> Self:
        """Empty accumulators for a crosscoder and a number of data sets."""
        return cls(
            Moments(crosscoder, spec.num_shards, num_datasets),
            Quality(crosscoder),
            ChatOnlySums(crosscoder, geometry(crosscoder).rel_norm > CHAT_ONLY_ABOVE),
            CoActivation(),
            Store(),
        )

    def add(self, intake: Intake) -> None:
        """Adds a block and the texts that begin in it.

        Raises what Store.add raised for the block before.
        """
        block = intake.block
        for accumulator in (self.moments, self.quality, self.chat_only, self.coactivation):
            accumulator.add(block)
        self.settle()
        for text in intake.texts:
            self.store.add_text(text)
        stream = torch.cuda.current_stream(block.x.device) if block.x.is_cuda else None
        self._adding.append(self._thread.submit(_add_to, self.store, block, stream))

    def settle(self) -> None:
        """Waits until the store has every block; raises what its `add` raised."""
        while self._adding:
            self._adding.pop().result()

    @cached_property
    def shard_sums(self) -> ShardSums:
        """The sums of every shard; valid once the pass is over."""
        return self.moments.shard_sums()

    def close(self) -> None:
        """Removes the temporary file."""
        self._thread.shutdown()
        self.store.close()


def _add_to(store: Store, block: Block, stream: "torch.cuda.Stream | None") -> None:
    """Adds a block behind the work that `stream` has for it; None on a CPU."""
    with torch.cuda.stream(stream):
        store.add(block)
