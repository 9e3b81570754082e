"""The accumulators of a pass over activations: sums, and data kept for later. Knows no formula.

Passes over different texts merge: in the order of the texts, the result is that of one pass over all of them, up to the
rounding of float64 sums, and it does not depend on which neighbours are merged first.
"""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from crosscope_proto.limits import CHAT_ONLY_ABOVE
from crosscope_proto.specs import AnalysisSpec
from crosscope_worker.analysis.block import Block
from crosscope_worker.analysis.coactivation import CoActivation
from crosscope_worker.analysis.geometry import geometry
from crosscope_worker.analysis.intake import Intake
from crosscope_worker.analysis.moments import Moments, ShardSums
from crosscope_worker.analysis.quality import Limits, Quality
from crosscope_worker.analysis.store import Store
from crosscope_worker.analysis.uselessness import ChatOnlySums
from crosscope_worker.dictionary.crosscoder import Crosscoder

_OF_TENSORS = ("moments", "quality", "chat_only", "coactivation")


@dataclass(frozen=True, eq=False)
class Accumulators:
    """The accumulators that a pass fills, block by block. `close` frees the store's file.

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
    def of(
        cls,
        crosscoder: Crosscoder,
        spec: AnalysisSpec,
        num_datasets: int,
        limits: Limits | None = None,
        store: Store | None = None,
    ) -> Self:
        """Empty accumulators for a crosscoder and a number of data sets.

        `limits`: those of Quality, for a pass that does not begin with the first block. `store`: by default a new one
        with a temporary file.
        """
        return cls(
            Moments(crosscoder, spec.num_shards, num_datasets),
            Quality(crosscoder, limits),
            ChatOnlySums(crosscoder, geometry(crosscoder).rel_norm > CHAT_ONLY_ABOVE),
            CoActivation(crosscoder.device),
            Store() if store is None else store,
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

    def merge(self, other: "Accumulators") -> None:
        """Adds what a pass over the following texts found; nothing is added block by block after that.

        `other` is closed. Memory: both, for a moment.
        """
        for name in (*_OF_TENSORS, "store"):
            getattr(self, name).merge(getattr(other, name))
        other.close()

    def state(self) -> dict[str, Tensor]:
        """Everything but the entries in the store's file, by name."""
        self.settle()
        return {
            f"{part}.{name}": tensor
            for part in (*_OF_TENSORS, "store")
            for name, tensor in getattr(self, part).state().items()
        }

    @classmethod
    def saved(
        cls, state: Mapping[str, Tensor], entries: Path, crosscoder: Crosscoder, spec: AnalysisSpec, num_datasets: int
    ) -> Self:
        """The accumulators that had this state, of the same crosscoder, and a store that wrote its entries to a file.

        Nothing is added to them block by block.
        """
        parts = {
            part: {name.removeprefix(f"{part}."): each for name, each in state.items() if name.startswith(f"{part}.")}
            for part in (*_OF_TENSORS, "store")
        }
        found = cls.of(crosscoder, spec, num_datasets, store=Store.saved(parts["store"], entries))
        for part in _OF_TENSORS:
            getattr(found, part).restore(parts[part])
        return found

    @cached_property
    def shard_sums(self) -> ShardSums:
        """The sums of every shard; valid once the pass is over."""
        return self.moments.shard_sums()

    def close(self) -> None:
        """Frees the store's file."""
        self._thread.shutdown()
        self.store.close()


def _add_to(store: Store, block: Block, stream: "torch.cuda.Stream | None") -> None:
    """Adds a block behind the work that `stream` has for it; None on a CPU."""
    with torch.cuda.stream(stream):
        store.add(block)
