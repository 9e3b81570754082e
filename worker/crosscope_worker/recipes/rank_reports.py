"""What the processes of a training tell the job's process: errors that can be sent, and where the training stood.

Knows neither how ranks are started nor what they do.
"""

import pickle
from collections.abc import Mapping, Sequence

import torch.distributed as dist

from crosscope_proto.stages import Stage
from crosscope_worker.work import Progress

MAX_STARTS = 4
"""How often the ranks of one job are started, the first time included."""
LINGER_S = 15.0
"""How long a rank that has lost the others waits to be ended: whoever died first is the cause."""


class Elsewhere(Exception):
    """The traceback of an error in another process, for the job's log."""


class Last:
    """A Progress that remembers where the training stood, so that a sentence can be said there."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._last = Stage.LOAD, 0.0, 0

    def __call__(
        self,
        stage: str,
        fraction: float,
        message: str = "",
        *,
        step: int = 0,
        metrics: Mapping[str, float] | None = None,
        rel_norms: Sequence[int] = (),
    ) -> None:
        """See Progress."""
        self._last = stage, fraction, step
        self._progress(stage, fraction, message, step=step, metrics=metrics, rel_norms=rel_norms)

    def say(self, message: str) -> None:
        """Reports a sentence where the training stood last."""
        stage, fraction, step = self._last
        self._progress(stage, fraction, message, step=step)


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
