"""Runs the parts of an analysis on a Ray cluster, from a job's process, which loads no Ray itself."""

import pickle
from collections.abc import Callable, Sequence
from typing import Any

from crosscope_proto.stages import Stage
from crosscope_worker.cluster.driver import Driver
from crosscope_worker.cluster.measuring import measure_with_kept
from crosscope_worker.recipes.parts import PartTask
from crosscope_worker.recipes.rank_reports import MAX_STARTS, Elsewhere
from crosscope_worker.work import Progress

_MEASURE = "crosscope_worker.cluster.parts:measure_parts"


class RayRunner:
    """A Runner (recipes/parts.py) on a Ray cluster, to which each run connects anew."""

    def __init__(self, address: str, measure: Callable[[PartTask, str], None] = measure_with_kept) -> None:
        self._address, self._measure = address, measure

    def __call__(self, tasks: Sequence[PartTask], progress: Progress) -> None:
        """See Runner. Raises ClusterError if the cluster cannot be used, or if a task dies again and again."""
        done: set[int] = set()

        def say(message: str = "") -> None:
            progress(Stage.ANALYSE, len(done) / len(tasks), message)

        def hear(told: tuple[str, Any]) -> None:
            kind, what = told
            if kind == "failed":
                raise pickle.loads(what[0]) from Elsewhere(f"in the process of a part:\n{what[1]}")
            if kind == "done":
                done.add(what.part)
                say(f"{len(done)} of {len(tasks)} parts of the held-out texts measured")
            elif kind == "again":
                task, how, start = what
                say(
                    f"part {task.part + 1} of {task.num_parts} of the held-out texts {how} on the Ray cluster; it is "
                    f"measured again (start {start} of {MAX_STARTS})"
                )
            else:
                say(what)

        with Driver(self._address) as driver:
            driver.ask(_MEASURE, (self._measure, list(tasks)), hear, say)
