"""What the processes of a training tell the job's process: errors that can be sent, and how it goes on.

Knows neither how ranks are started nor what they do.
"""

import pickle
from pathlib import Path

import torch.distributed as dist

from crosscope_worker.training import newest_step

MAX_STARTS = 4
"""How often the ranks of one job are started, the first time included."""
LINGER_S = 15.0
"""How long a rank that has lost the others waits to be ended: whoever died first is the cause."""


class Elsewhere(Exception):
    """The traceback of an error in another process, for the job's log."""


def starting_again(how: str, checkpoints: Path, start: int) -> str:
    """The sentence for ranks that are started for the `start`-th time, after one of them died: `how`."""
    step = newest_step(checkpoints)
    again = "begins again" if step is None else f"goes on from step {step}"
    return f"{how}; training {again} (start {start} of {MAX_STARTS})"


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


def is_of_the_group(error: Exception) -> bool:
    """Whether a call to the other ranks failed, because one has gone or does not answer."""
    said = str(error)
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and ("gloo" in said or "NCCL" in said))
