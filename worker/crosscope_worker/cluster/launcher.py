"""Launches the ranks of a training on a Ray cluster, from a job's process, which loads no Ray itself."""

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from crosscope_proto.recipe import CrosscoderRecipe
from crosscope_proto.stages import Stage
from crosscope_worker.cluster.devices import kind_of, num_ranks
from crosscope_worker.cluster.driver import Driver
from crosscope_worker.phases import Following
from crosscope_worker.recipes.rank import run_rank
from crosscope_worker.recipes.rank_reports import CLOSE_S, MAX_STARTS, error_of, starting_again
from crosscope_worker.recipes.ranks import RankTask, RunRank
from crosscope_worker.training import TrainingError, remove_partial
from crosscope_worker.work import CHECKPOINTS, Progress, RankError, Workspace

_TRAIN = "crosscope_worker.cluster.ranks:train"


def launcher(recipe: CrosscoderRecipe, workspace: Workspace) -> tuple["RayLauncher", int]:
    """What launches the ranks of a training on the workspace's cluster, and how many.

    Raises ClusterError if the cluster does not answer or has not as many devices.
    """
    assert workspace.ray_address is not None
    launching = RayLauncher(workspace.ray_address, run_rank)
    try:
        return launching, num_ranks(recipe.training.devices, launching.driver.nodes)
    except BaseException:
        launching.driver.close()
        raise


class RayLauncher:
    """A Launcher (recipes/ranks.py) of ranks on a Ray cluster: one training, then it has left the cluster."""

    def __init__(self, address: str, run: RunRank) -> None:
        """Connects to the cluster, whose processes import `run` by name. Raises ClusterError."""
        self.driver, self._run = Driver(address), run

    def __call__(self, task: RankTask, num_ranks: int, progress: Progress) -> None:
        """See Launcher."""
        heard = _Heard(task, num_ranks, Following(progress, Stage.LOAD))
        try:
            with self.driver:
                task = replace(task, device=kind_of(self.driver.nodes))
                if not self.driver.ask(_TRAIN, (self._run, task, num_ranks), heard.hear, heard.check):
                    raise TrainingError(f"{heard.how}, at the last of {MAX_STARTS} starts.")
        finally:
            remove_partial(heard.checkpoints)


class _Heard:
    """What the ranks of one training have told."""

    def __init__(self, task: RankTask, num_ranks: int, progress: Following) -> None:
        self.checkpoints = Path(task.folder) / CHECKPOINTS
        self._num_ranks, self._progress = num_ranks, progress
        self._nodes: dict[int, str] = {}
        self._start = 1
        self._error: RankError | None = None
        self._raise_at = math.inf
        self.how = ""
        """How a rank died, if one did and ranks were not started again since."""

    def hear(self, letter: tuple[int, str, Any]) -> None:
        """Takes what a rank tells, or Ray about it. Raises as `check`, and what the progress raises."""
        rank, kind, what = letter
        if kind in ("progress", "moved"):
            positional, named = what
            self._progress(*positional, **named)
        elif kind == "started":
            self._nodes[rank] = what[0]
            if rank == 0 and self.how:
                self._say_again()
        elif kind == "died":
            self._start += 1
            self.how = f"rank {rank} on {self._nodes.get(rank, 'the Ray cluster')} {what}"
        elif kind == "waits":
            self._progress.say(f"{self.how}; {what}" if self.how else what)
        elif kind == "failed" and self._error is None:
            self._error, self._raise_at = error_of(rank, self._num_ranks, what), time.monotonic() + CLOSE_S
        elif kind == "closed":
            self._raise_at = 0.0
        self.check()

    def check(self) -> None:
        """Raises the error of the first rank that has told one, once it has closed what it had open, or soon after."""
        if self._error is not None and time.monotonic() >= self._raise_at:
            raise self._error

    def _say_again(self) -> None:
        self._progress.say(starting_again(self.how, self.checkpoints, self._start))
        self.how = ""
