"""How far a whole job is by the weights of its stages (`crosscope_proto.stages`), and how long it still takes.

The weights say where a job stands, so that its bar never goes back, and are corrected by nothing. The seconds left are
measured: see Shares. Knows nothing about Redis.
"""

import time
from collections.abc import Callable, Sequence

_LEAST_SHARE, _LEAST_S = 0.002, 1.0
"""Of a stage that must have passed before its speed is taken for one."""


class Shares:
    """How far a job is, stage by stage. Not safe across threads: the Reporter asks it under its own lock."""

    def __init__(
        self, stages: Sequence[tuple[str, float]], done: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`done` is the share that earlier attempts have reported."""
        whole = sum(weight for _, weight in stages) or 1.0
        self._weights = {stage: weight / whole for stage, weight in stages}
        self._main = max(range(len(stages)), key=lambda index: stages[index][1], default=0)
        self._order = [stage for stage, _ in stages]
        self._clock = clock
        self._stage, self._began, self._from = "", 0.0, 0.0
        self.total = done
        """Share of the whole job that is done; never falls."""
        self.eta_s = 0.0
        """Estimated seconds until the job ends; 0 where not known."""

    def at(self, stage: str, fraction: float) -> None:
        """Takes in that `fraction` of `stage` is done.

        The stage's own speed, measured since it began in this attempt, says how long its rest takes, and by their
        weights how long the stages behind it do. Before the heaviest stage nothing is known of the job's speed.
        """
        if stage not in self._weights:
            return  # a notice, which counts nothing
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
