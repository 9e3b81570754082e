"""What the processes of a training tell the job's process: errors that can be sent, and how it goes on.

Knows neither how ranks are started nor what they do.
"""

import pickle
import traceback
from pathlib import Path
from typing import Any

import torch.distributed as dist

from crosscope_worker.training import newest_step
from crosscope_worker.work import RankError

MAX_STARTS = 4
"""How often the ranks of one job are started, the first time included."""
LINGER_S = 15.0
"""How long a rank that has lost the others waits to be ended: whoever died first is the cause."""
CLOSE_S = 5.0
"""How long a rank that has told its error may close what it has open, a checkpoint say, before all ranks are killed."""


class Elsewhere(Exception):
    """The traceback of an error in another process, for the job's log."""


def starting_again(how: str, checkpoints: Path, start: int) -> str:
    """The sentence for ranks that are started for the `start`-th time, after one of them died: `how`."""
    step = newest_step(checkpoints)
    again = "begins again" if step is None else f"goes on from step {step}"
    return f"{how}; training {again} (start {start} of {MAX_STARTS})"


def last_words(error: BaseException) -> tuple[str, Any]:
    """The kind of a rank's last letter, "lost" or "failed", and what it holds. To be called where the error is caught.

    A rank has lost the others if a call to them failed: then the error is that of another rank. A request to exit is an
    error too, since the others would wait for this rank.
    """
    if is_of_the_group(error):
        return "lost", " ".join(str(error).split())[:200]
    told = error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}")
    return "failed", (pickled(told), traceback.format_exc())


def error_of(rank: int, num_ranks: int, what: tuple[bytes, str]) -> RankError:
    """The error of a rank's letter of kind "failed", with its traceback as the cause of the cause."""
    error = pickle.loads(what[0])  # from our own process
    error.__cause__ = Elsewhere(f"in the process of a rank:\n{what[1]}")
    return RankError(rank, num_ranks, error)


def pickled(error: Exception) -> bytes:
    """An error for the job's process; one that cannot be sent is told in words."""
    try:
        sent = pickle.dumps(error)
        pickle.loads(sent)
    except Exception:  # Many ways: what it holds, or how it is made again.
        kind = ValueError if isinstance(error, ValueError) else RuntimeError
        told = kind(str(error) if kind is ValueError else f"{type(error).__name__}: {error}")
        for note in getattr(error, "__notes__", ()):
            told.add_note(note)
        return pickle.dumps(told)
    return sent


def is_of_the_group(error: BaseException) -> bool:
    """Whether a call to the other ranks failed, because one has gone or does not answer."""
    said = str(error)
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and ("gloo" in said or "NCCL" in said))
