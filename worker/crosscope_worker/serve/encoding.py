"""From token ids to sparse codes, for a batch of prompts. Runs on the device's thread; knows no queue and no gRPC."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from crosscope_worker.dictionary.strongest import by_strength
from crosscope_worker.effects.contributions import code_of
from crosscope_worker.effects.subject import Subject
from crosscope_worker.models.fixed_shapes import FixedShapes, Recorder
from crosscope_worker.models.graphs import Graphs

_MIN_PARALLEL_WORK = 1 << 25
"""Tokens times width squared from which more than one CPU thread pays: a product of that size takes one thread about a
millisecond. Below, threads wait for each other at every operation, on cores that the server and the event loop need."""


@dataclass(frozen=True, eq=False)
class PromptCode:
    """The sparse code of one prompt, in compressed rows, strongest latent first within a token."""

    row_starts: np.ndarray
    """[pos + 1] int64"""
    latents: np.ndarray
    """[entry] int64"""
    activations: np.ndarray
    """[entry] float32, scaled"""
    outlying: np.ndarray
    """[pos] bool: the training leaves out such a token because of its norm"""


class Encoder:
    """Encodes prompts with one crosscoder and its pair."""

    def __init__(self, subject: Subject, num_threads: int, record: Recorder | None = None) -> None:
        """A subject with a reading. Uses up to `num_threads` of the CPU, fewer if that is faster.

        `record` makes runs of fixed shapes; by default CUDA graphs where both models lie on one CUDA device.
        """
        assert subject.reading is not None
        self._reading = subject.reading
        self._activations = subject.activations
        self._num_threads = num_threads
        self._device = subject.pair.device
        if record is None and self._device.type == "cuda" and subject.pair.is_together:
            record = Graphs(self._device)
        self._shapes = None if record is None else FixedShapes(self._activations, record)

    @property
    def size_bytes(self) -> int:
        """Memory of the runs that are recorded so far."""
        return 0 if self._shapes is None else self._shapes.size_bytes

    def check(self) -> None:
        """Raises PairError if a model's activations are not those that this encoder reads."""
        self._activations.check()

    def __call__(self, prompts: Sequence[np.ndarray]) -> list[PromptCode]:
        """The codes of `prompts`, each [pos] int64 ids. All tokens are encoded, also those that the training leaves
        out.

        The code of a prompt does not depend on the other prompts.
        """
        size = len(prompts) * max(map(len, prompts))
        if size * max(self._activations.d_model) ** 2 >= _MIN_PARALLEL_WORK:
            return self._codes(prompts)
        torch.set_num_threads(1)
        try:
            return self._codes(prompts)
        finally:
            torch.set_num_threads(self._num_threads)

    @torch.inference_mode()
    def _codes(self, prompts: Sequence[np.ndarray]) -> list[PromptCode]:
        lengths = np.array([len(ids) for ids in prompts])
        positions = torch.from_numpy(np.concatenate([np.arange(length) for length in lengths])).to(self._device)
        x = self._padded(prompts, lengths) if self._shapes is None else self._shapes(prompts)
        code = code_of(self._reading, x)
        outlying = self._reading.outlying(x, positions, self._activations.d_model)
        return _split(lengths, *by_strength(code, self._reading.sparsifier, outlying))

    def _padded(self, prompts: Sequence[np.ndarray], lengths: np.ndarray) -> Tensor:
        """Activations of all prompts in one forward, one prompt after the other, [token, both]."""
        padded = np.zeros((len(prompts), int(lengths.max())), dtype=np.int64)
        inside = np.arange(padded.shape[1]) < lengths[:, None]
        padded[inside] = np.concatenate(prompts)
        x = self._activations(torch.from_numpy(padded), torch.from_numpy(lengths))
        return x.flatten(0, 1) if inside.all() else x[torch.from_numpy(inside).to(x.device)]


def _split(
    lengths: np.ndarray, tokens: np.ndarray, latents: np.ndarray, activations: np.ndarray, outlying: np.ndarray
) -> list[PromptCode]:
    ends = np.cumsum(lengths)
    starts = np.searchsorted(tokens, np.arange(ends[-1] + 1))
    codes: list[PromptCode] = []
    for end, length in zip(ends, lengths, strict=True):
        rows = starts[end - length : end + 1]
        entries = slice(rows[0], rows[-1])
        own = outlying[end - length : end]
        codes.append(PromptCode(rows - rows[0], latents[entries], activations[entries], own))
    return codes
