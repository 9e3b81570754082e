"""What processes of a cluster do in tests; files in the task's folder ask for more."""

import os
import signal
import time
from pathlib import Path

import torch

from crosscope_worker.disk import write_whole
from crosscope_worker.ranks import Ranks
from crosscope_worker.recipes.parts import PartTask
from crosscope_worker.recipes.ranks import RankTask
from crosscope_worker.work import CHECKPOINTS, Progress


def sums_up(task: RankTask, ranks: Ranks, device: str, progress: Progress) -> None:
    """Takes steps, of which each rank notes its process and the last; the checkpoint is one of step 2.

    At a file `kill-RANK` that rank kills itself at step 3, once. Then rank 1 fails there, but for a file `go-on`.
    """
    folder = Path(task.folder)
    (folder / CHECKPOINTS / "step-000000002").mkdir(parents=True, exist_ok=True)
    for step in range(1000):
        total = int(ranks.sum(torch.tensor([ranks.rank + step])))
        progress("train", step / 1000, f"on {device}" if step == 0 else "", step=step)
        write_whole(folder / f"rank-{ranks.rank}", f"{os.getpid()} {step} {total}")  # it may be killed in between
        if step == 3:
            _die_once(folder / f"kill-{ranks.rank}")
            if ranks.rank == 1 and not (folder / "go-on").exists():
                error = ValueError("chats.jsonl, line 7: the turns do not alternate")
                error.add_note("Half of it is kept.")
                raise error
        time.sleep(0.05)


def notes_part(task: PartTask, device: str) -> None:
    """Notes its process; at a file `kill-PART` it kills itself, once; at `fail-PART` it fails; at `wait` it waits."""
    folder = Path(task.folder)
    with (folder / f"{task.part:03d}").open("a") as notes:
        notes.write(f"{os.getpid()} {device}\n")
    _die_once(folder / f"kill-{task.part}")
    if (folder / f"fail-{task.part}").exists():
        raise ValueError(f"part {task.part} has no texts")
    while (folder / "wait").exists():
        time.sleep(0.05)


def _die_once(path: Path) -> None:
    if path.exists():
        path.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
