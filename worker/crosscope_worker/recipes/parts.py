"""The parts in which the held-out texts of an analysis are measured, as tasks that run wherever both models can.

A part is a run of texts; which texts it has follows from the texts alone (analysis/cutting.py). Its result is a folder
below the job's, there whole or not at all, so a task that is killed runs again alone. Knows no formula.

These are parts of the texts, not the parts of a dictionary (column `part`), and not the shards of the jackknife.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from crosscope_worker.work import Progress


@dataclass(frozen=True)
class PartTask:
    """One part of the texts of one analysis: plain values, which can be pickled and written as JSON (`asdict`)."""

    recipe: dict[str, Any]
    """The job's recipe, as `recipe_dict` gives it."""
    home: str
    """The artefact folder."""
    folder: str
    """The folder of all parts of the analysis, below the job's; the result is a folder in it."""
    part: int
    num_parts: int
    float32: str
    """How float32 products are made, "ieee" or "tf32"."""
    data_roots: tuple[str, ...] = ()
    """Folders besides the home from which the pair may be read."""


class Runner(Protocol):
    """Measures parts by calling `measure_part(task, device, progress)` for each, on any machines that see the home."""

    def __call__(self, tasks: Sequence[PartTask], progress: Progress) -> None:
        """Returns when every task has its result. Parts may be measured in any order, side by side, and again.

        `progress(Stage.ANALYSE, share, message)` is called at least each second, `share` the share of the parts that
        are done. What it raises (Cancelled, LostClaim) ends all tasks and passes through; so does an error of a task,
        as the task raised it. A task that was killed is run again.
        """
        ...
