"""A training on several devices: the task of each rank, and the protocol of what launches ranks.

What a rank does is in rank.py, the launcher on one machine in elastic.py. Loads no model.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Protocol, Self

import torch

from crosscope_proto.recipe import CrosscoderRecipe, recipe_dict
from crosscope_worker.ranks import Ranks
from crosscope_worker.training import TrainingError
from crosscope_worker.work import Progress, Workspace

MOST_ON_CPU = 16
"""Most ranks on the CPU, whose cores they share: more only try out what as many devices would do."""
_SOFTWARE = ("crosscope-worker", "torch", "transformers")


@dataclass(frozen=True)
class RankTask:
    """What every rank of a training is told; plain JSON values."""

    recipe: str
    """The recipe as JSON."""
    home: str
    folder: str
    """The job's own folder, which all ranks see."""
    device: str
    """The kind of the devices, "cpu" or "cuda"."""
    data_roots: tuple[str, ...] = ()
    submitted_from: str | None = None
    beat_s: float = 60
    """How long a rank's process may stand still before it counts as hung."""
    silent_s: float = 1800
    """How long ranks wait for each other in one call before they give up."""

    @classmethod
    def of(cls, recipe: CrosscoderRecipe, workspace: Workspace) -> Self:
        """The task of a job's ranks."""
        return cls(
            recipe=json.dumps(recipe_dict(recipe)),
            home=str(workspace.home),
            folder=str(workspace.folder),
            device=torch.device(workspace.device).type,
            data_roots=tuple(map(str, workspace.data_roots)),
            submitted_from=None if workspace.submitted_from is None else str(workspace.submitted_from),
            beat_s=workspace.beat_s,
            silent_s=workspace.silent_s,
        )

    def workspace(self, device: str) -> Workspace:
        """The workspace of one rank, on its device. It publishes nothing."""
        return Workspace(
            home=Path(self.home),
            folder=Path(self.folder),
            fence=_publishes_nothing,
            device=device,
            data_roots=tuple(map(Path, self.data_roots)),
            submitted_from=None if self.submitted_from is None else Path(self.submitted_from),
        )

    def to_json(self) -> str:
        """The task as JSON; `RankTask(**json.loads(...))` is the same again, but for tuples."""
        return json.dumps(asdict(self))


class Launcher(Protocol):
    """What starts the ranks of a training, and starts them again from the newest checkpoint if one dies."""

    def __call__(self, task: RankTask, num_ranks: int, progress: Progress) -> None:
        """Runs `rank.run_rank` in `num_ranks` processes until the training has ended.

        `progress` hears what the first rank reports, and of ranks that died. Raises what the job should end with:
        RankError of the first rank that has an error, TrainingError if ranks die again and again, and what `progress`
        raises. Then no rank is left, or none in a few seconds, whatever the ranks wait for.
        """
        ...


RunRank = Callable[[RankTask, Ranks, str, Progress], None]
"""What a rank does (rank.py): (task, ranks, its device in torch's words, progress)."""


def check_alike(task: RankTask, ranks: Ranks) -> None:
    """Raises TrainingError, on every rank, if a rank runs another version or another recipe than the first."""
    facts = {**{package: version(package) for package in _SOFTWARE}, "recipe": task.recipe}
    first, *others = ranks.everyone(facts)
    for rank, found in enumerate(others, start=1):
        for name, value in found.items():
            if value == first[name]:
                continue
            if name == "recipe":
                raise TrainingError(f"rank {rank} has another recipe than rank 0; start them with the same one")
            raise TrainingError(
                f"rank {rank} has {name} {value} and rank 0 has {first[name]}; install the same version for all ranks"
            )


def num_devices(recipe: CrosscoderRecipe, device: str, there: int) -> int:
    """How many devices a recipe's training takes, of `there` on the job worker's `device`.

    Raises TrainingError if it asks for more than there are.
    """
    wanted = recipe.training.devices
    if torch.device(device).type == "cpu":
        if wanted == "auto":
            return 1
        if wanted > MOST_ON_CPU:
            raise TrainingError(
                f"training.devices is {wanted}, but this job worker runs on the CPU, which at most {MOST_ON_CPU} ranks "
                "share; lower it, or give the job worker CUDA devices"
            )
        return wanted
    if wanted == "auto":
        return max(1, there)
    if wanted > there:
        raise TrainingError(
            f"training.devices is {wanted}, but this job worker has {there} ({device}); lower it to {max(1, there)}, "
            "set it to auto, or give the job worker more (CROSSCOPE_WORKER_DEVICE)"
        )
    return wanted


def devices_there(device: str) -> int:
    """Number of devices of the job worker: all CUDA devices for "cuda", one for "cuda:1"."""
    return torch.cuda.device_count() if device == "cuda" else 1


def _publishes_nothing() -> None:
    raise AssertionError("a rank publishes nothing")
