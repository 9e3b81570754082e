"""The accumulators of one pass over the activations: sums, and data kept for later. Knows no formula."""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

from crosscope_proto.limits import CHAT_ONLY_ABOVE
from crosscope_proto.specs import AnalysisSpec
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
    """The accumulators that a pass fills, block by block. `close` removes their temporary file."""

    moments: Moments
    quality: Quality
    chat_only: ChatOnlySums
    coactivation: CoActivation
    store: Store

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
        """Adds a block and the texts that begin in it."""
        for text in intake.texts:
            self.store.add_text(text)
        for accumulator in (self.moments, self.quality, self.chat_only, self.coactivation, self.store):
            accumulator.add(intake.block)

    @cached_property
    def shard_sums(self) -> ShardSums:
        """The sums of every shard; valid once the pass is over."""
        return self.moments.shard_sums()

    def close(self) -> None:
        """Removes the temporary file."""
        self.store.close()
