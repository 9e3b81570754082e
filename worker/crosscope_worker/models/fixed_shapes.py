"""Activations of few tokens, run in a few fixed shapes: a run of a shape is recorded once and then repeated.

To launch a kernel takes the CPU about as long as a small kernel runs, and a prompt takes two thousand kernels. A run
that is recorded as a whole (on CUDA as a graph, graphs.py) is launched once. Padding at the right changes no token
before it. Does not know how a run is recorded.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from crosscope_worker.models.activations import PairActivations

LENGTHS = (16, 32, 64, 128, 256, 512, 1024)
ROWS = (1, 2, 4, 8, 16, 32)
MAX_TOKENS = 2048
"""Tokens of the largest shape, padding included. From about there on, the kernels take longer than their launches."""
MAX_RUNS = 32
"""Runs that are kept; the longest unused goes."""
_SMALL_TOKENS = 512
"""A run of fewer tokens takes hardly less time: it reads all weights. So texts of any length share one."""
_MOST_SPARE = 4 / 3
"""Rows of a larger run for each row that is used."""

log = logging.getLogger(__name__)


class Shape(NamedTuple):
    """Rows of a run, and tokens of each row."""

    rows: int
    pos: int


class Run(NamedTuple):
    """A recorded run of one shape."""

    repeat: Callable[[Tensor], Tensor]
    """Of ids [row, pos] int64 in the CPU's memory: [row, pos, both] float32 on the device, as PairActivations.rows. The
    next repetition of any run writes over it."""
    size_bytes: int
    """Memory that it keeps."""


class CannotRecord(Exception):
    """A run cannot be recorded; the sentence says why."""


Recorder = Callable[[PairActivations, Shape], Run]
"""Records a run of a shape. Raises CannotRecord."""


class FixedShapes:
    """Runs both models of a pair up to a layer on texts of any lengths, in fixed shapes as far as possible."""

    def __init__(self, activations: PairActivations, record: Recorder, max_runs: int = MAX_RUNS) -> None:
        self._activations = activations
        self._record: Recorder | None = record
        self._max_runs = max_runs
        self._runs: OrderedDict[Shape, Run] = OrderedDict()
        """Least recently used first."""

    @property
    def size_bytes(self) -> int:
        """Memory of all recorded runs."""
        return sum(run.size_bytes for run in self._runs.values())

    @torch.inference_mode()
    def __call__(self, texts: Sequence[np.ndarray]) -> Tensor:
        """Activations of the tokens of `texts`, each [pos] int64 ids, one text after the other: [token, both] float32.

        Each text is as if it were alone. Raises PairError for an id that has no embedding in both models.
        """
        lengths = np.array([len(ids) for ids in texts])
        starts = np.cumsum(lengths) - lengths
        device = self._activations.pair.device
        self._activations.check_ids(torch.from_numpy(np.concatenate(texts)))
        x = torch.empty(int(lengths.sum()), sum(self._activations.d_model), device=device)
        for chosen, shape in groups(lengths):
            own = lengths[chosen]
            run = None if shape is None else self._run(shape, own)
            padded = Shape(len(chosen), int(own.max())) if shape is None or run is None else shape
            ids, inside = _padded([texts[index] for index in chosen], padded)
            ranges = [np.arange(start, start + length) for start, length in zip(starts[chosen], own, strict=True)]
            # Sent before the run: a copy from the CPU waits for what the device has begun.
            to, taken = (torch.from_numpy(each).to(device) for each in (np.concatenate(ranges), inside))
            found = self._activations(ids, torch.from_numpy(own)) if run is None else run.repeat(ids)
            x.index_copy_(0, to, found.flatten(0, 1).index_select(0, taken))
        return x

    def _run(self, shape: Shape, lengths: np.ndarray) -> Run | None:
        """The run of a shape, recorded if it is new.

        None for texts that the padding would take into another regime, and once a run could not be recorded.
        """
        if len(set(self._activations.regimes([shape.pos, *lengths.tolist()]))) > 1:
            return None
        if shape not in self._runs and self._record is not None:
            try:
                self._runs[shape] = self._record(self._activations, shape)
            except CannotRecord as error:
                log.warning("runs of prompts are not recorded, and so slower: %s", error)
                self._record = None
                self._runs.clear()
        if shape not in self._runs:
            return None
        self._runs.move_to_end(shape)
        while len(self._runs) > self._max_runs:
            self._runs.popitem(last=False)
        return self._runs[shape]


def groups(lengths: np.ndarray) -> Iterator[tuple[np.ndarray, Shape | None]]:
    """Divides texts of these lengths, [text] int64, into runs: indices of texts, and the shape that they run in.

    Longest texts come first, and lie beside texts of their own length class, so that little is padding; the rows of a
    shape that are left over take shorter ones. None: the texts are too long for any shape.
    """
    left = np.argsort(-lengths, kind="stable")
    while len(left):
        longest = lengths[left[0]]
        pos = next((length for length in LENGTHS if length >= longest), None)
        if pos is None:
            num_texts = int((4 * lengths[left] > 3 * longest).sum())
            yield left[:num_texts], None
            left = left[num_texts:]
            continue
        shape = Shape(_rows(lengths[left], pos), pos)
        yield left[: shape.rows], shape
        left = left[shape.rows :]


def _rows(lengths: np.ndarray, pos: int) -> int:
    """Rows of the next run, of texts with the descending `lengths`, for rows of `pos` tokens."""
    shorter = max((length for length in LENGTHS if length < pos), default=0)
    is_small = len(lengths) * pos <= _SMALL_TOKENS
    wanted = len(lengths) if is_small else int((lengths > shorter).sum())
    fitting = [rows for rows in ROWS if rows * pos <= MAX_TOKENS]
    above = next((rows for rows in fitting if rows >= wanted), fitting[-1])
    if above * pos <= _SMALL_TOKENS or above <= _MOST_SPARE * wanted:
        return above
    return max(rows for rows in fitting if rows <= wanted)


def _padded(texts: Sequence[np.ndarray], shape: Shape) -> tuple[Tensor, np.ndarray]:
    """Rows of `shape` with one text each, [row, pos] int64, and where in them the tokens lie, flat."""
    lengths = np.zeros(shape.rows, dtype=np.int64)
    lengths[: len(texts)] = [len(ids) for ids in texts]
    inside = np.arange(shape.pos) < lengths[:, None]
    ids = np.zeros(shape, dtype=np.int64)
    ids[inside] = np.concatenate(texts)
    return torch.from_numpy(ids), np.flatnonzero(inside)
