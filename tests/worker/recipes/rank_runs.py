"""What ranks do in tests of the launcher, in the place of `run_rank`. Imported by real processes of ranks."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path

import psutil
import torch
from fixtures_training import PlantedSource, make_recipe
from torch import Tensor

from crosscope_worker.ranks import Ranks
from crosscope_worker.recipes.ranks import RankTask
from crosscope_worker.training import train_together
from crosscope_worker.work import Progress


class Refused(ValueError):
    """Cannot be made again from its text, like `data.chats.RefusedText`."""

    def __init__(self, place: str, sentence: str) -> None:
        super().__init__(f"{place}: {sentence}")


def _started(task: RankTask, ranks: Ranks) -> int:
    """Leaves this rank's process id, and says how many times it was started before."""
    before = len(list(Path(task.folder).glob(f"start-{ranks.rank}-*")))
    (Path(task.folder) / f"start-{ranks.rank}-{before}").write_text(str(os.getpid()))
    return before


def dies_then_hangs(task: RankTask, ranks: Ranks, device: str, progress: Progress) -> None:
    """Rank 1 is killed at the first start and stopped at the second; the third ends well."""
    start = _started(task, ranks)
    checkpoint = Path(task.folder) / "checkpoints" / "step-000000400"
    progress("train", 0.1, "at work", step=399)
    ranks.sum(torch.ones(1))
    if start == 0 and ranks.rank == 0:
        checkpoint.mkdir(parents=True)
        (checkpoint.parent / ".partial-step-000000401").mkdir()
    ranks.sum(torch.ones(1))
    if ranks.rank == 1 and start < 2:
        os.kill(os.getpid(), (signal.SIGKILL, signal.SIGSTOP)[start])
    total = ranks.sum(torch.tensor([ranks.rank + 1.0]))
    listening = [each.laddr.ip for each in psutil.Process().net_connections("inet") if each.status == "LISTEN"]
    found = {"sum": float(total), "device": device, "threads": torch.get_num_threads(), "listening": listening}
    (Path(task.folder) / f"found-{ranks.rank}.json").write_text(json.dumps(found))
    progress("train", 1.0, "done", step=500, metrics={"loss": 0.5}, rel_norms=[1, 2])


def refuses(task: RankTask, ranks: Ranks, device: str, progress: Progress) -> None:
    """A training of four streams, in the middle of which rank 1 meets a text that it refuses; closing never ends."""
    _started(task, ranks)
    recipe = make_recipe(batch_size=64, checkpoint_every=4)
    sources = [_Reading(Path(task.folder) / "refused", ranks.rank == 1 and number == 0) for number in range(2)]
    with torch.no_grad():
        train_together(recipe, sources, (8, 8), Path(task.folder) / "checkpoints", progress, device, ranks)


class _Reading(PlantedSource):
    """A source that never closes, as if a thread of it waited for a device that waits for other ranks."""

    def __init__(self, refused: Path, refuses: bool) -> None:
        """`refused`: written when it `refuses` its tenth block."""
        super().__init__()
        self._refused, self._refuses = refused, refuses

    def blocks(self) -> Generator[Tensor]:
        try:
            for number, block in enumerate(super().blocks()):
                if self._refuses and number == 10:
                    error = Refused("chats.jsonl, line 7", "the turns do not alternate")
                    error.add_note("Half of it is kept.")
                    self._refused.write_text("")
                    raise error
                yield block
        finally:
            if not self._refuses:
                threading.Event().wait()


def exits(task: RankTask, ranks: Ranks, device: str, progress: Progress) -> None:
    """Rank 1 leaves without a word at the first start, and by Python's own way at the second."""
    start = _started(task, ranks)
    ranks.sum(torch.ones(1))
    if ranks.rank == 1 and start == 0:
        os._exit(0)
    if ranks.rank == 1 and start == 1:
        sys.exit(0)
    ranks.sum(torch.ones(1))


def waits(task: RankTask, ranks: Ranks, device: str, progress: Progress) -> None:
    """Waits for ever once it has said that it does."""
    _started(task, ranks)
    ranks.sum(torch.ones(1))
    while True:
        progress("train", 0.5, "waiting")
        time.sleep(0.05)
