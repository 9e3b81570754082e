"""The progress of a whole job by the weights of its stages, and the time that it still takes. The weights are expected
seconds, else the table of `crosscope_proto.stages`.

The weights alone decide the share that is done, so that the progress bar never goes back. The remaining seconds are
measured: see Shares. Knows nothing about Redis.
"""

import time
from collections.abc import Callable, Mapping, Sequence

_LEAST_SHARE, _LEAST_S = 0.002, 1.0
"""Share of a stage that must be done before its speed is trusted."""


def weights(stages: Sequence[tuple[str, float]], seconds: Mapping[str, float]) -> list[tuple[str, float]]:
    """The stages of a kind, weighted by the seconds that each is expected to take; by the table if one is unknown."""
    if any(seconds.get(stage, 0) <= 0 for stage, _ in stages):
        return list(stages)
    return [(stage, seconds[stage]) for stage, _ in stages]


class Shares:
    """The progress of a job, stage by stage. Not thread-safe: the Reporter uses it under its own lock."""

    def __init__(
        self, stages: Sequence[tuple[str, float]], done: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`done` is the share of the job that earlier attempts reported."""
        whole = sum(weight for _, weight in stages) or 1.0
        self._weights = {stage: weight / whole for stage, weight in stages}
        self._main = max(range(len(stages)), key=lambda index: stages[index][1], default=0)
        self._order = [stage for stage, _ in stages]
        self._clock = clock
        self._stage, self._began, self._from = "", 0.0, 0.0
        self.total = done
        """Share of the whole job that is done; never falls."""
        self.eta_s = 0.0
        """Estimated seconds until the job ends; 0 if unknown."""

    def at(self, stage: str, fraction: float) -> None:
        """Records that `fraction` of `stage` is done.

        The speed of the stage, measured since its start in this attempt, gives the time for the rest of the stage. The
        weights give the times of the stages after it. Before the heaviest stage the speed of the job is unknown.
        """
        if stage not in self._weights:
            return  # a notice of no stage
        now, index = self._clock(), self._order.index(stage)
        if stage != self._stage:
            self._stage, self._began, self._from = stage, now, fraction
            self.eta_s = 0.0
        weight = self._weights[stage]
        before = sum(self._weights[each] for each in self._order[:index])
        self.total = max(self.total, min(1.0, before + weight * fraction))
        passed, took = fraction - self._from, now - self._began
        if index >= self._main and passed > _LEAST_SHARE and took > _LEAST_S:
            left = 1 - fraction + sum(self._weights[each] for each in self._order[index + 1 :]) / weight
            self.eta_s = left * took / passed
