"""Runs of both models of a pair as CUDA graphs: all kernels of a run in one launch, on fixed memory.

A graph repeats exactly the kernels of the run that it recorded, in which norms are fused (fused_norms.py). It is
compared with a plain run before it is used. Does not know which shapes are wanted.
"""

import logging
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import masking_utils

from crosscope_worker.models.activations import PairActivations
from crosscope_worker.models.fixed_shapes import CannotRecord, Run, Shape
from crosscope_worker.models.fused_norms import FusedNorms
from crosscope_worker.models.probes import ROUNDED_TOLERANCE, probe_ids, standardised_error

_NUM_WARM_UPS = 2
"""Runs on the recording stream before it records, in which libraries choose kernels and take their workspaces."""

log = logging.getLogger(__name__)


class Graphs:
    """Records runs on one device. They share their working memory, so one repetition ends before the next begins."""

    def __init__(self, device: torch.device, fuse: bool = True) -> None:
        """Without `fuse`, the kernels are a plain run's, and so is every bit of the result."""
        self._device = device
        self._fuses = fuse
        self._norms: tuple[PairActivations, FusedNorms] | None = None
        """The norms of the pair that was recorded last."""
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None

    @torch.inference_mode()
    def __call__(self, activations: PairActivations, shape: Shape) -> Run:
        """See Recorder. Other threads may use the device meanwhile."""
        try:
            with torch.cuda.device(self._device):
                return self._recorded(activations, shape)
        except CannotRecord:
            raise
        except Exception as error:  # a model may do anything that cannot be recorded
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise CannotRecord(f"a CUDA graph of {shape.rows} x {shape.pos} tokens failed: {reason}") from error

    def _recorded(self, activations: PairActivations, shape: Shape) -> Run:
        if self._stream is None:
            self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
        ids = probe_ids(activations.pair.models, shape.rows, shape.pos)
        expected = activations.rows(ids)  # finds the shared layers too
        norms, none = self._fused_norms(activations), FusedNorms((), 0)
        error = 0.0
        for each in (norms, none) if len(norms) else (none,):
            run = self._captured(activations, ids.clone(), each)
            found = run.repeat(ids)
            error = 0.0 if torch.equal(found, expected) else standardised_error(found, expected)
            if error <= ROUNDED_TOLERANCE:
                return run
            if each is norms:
                log.warning("norms are not fused: activations differ by %.2g of their spread", error)
                self._norms = activations, none
        raise CannotRecord(
            f"a CUDA graph of {shape.rows} x {shape.pos} tokens gives other activations than a plain run (by "
            f"{error:.2g} of their spread)"
        )

    def _captured(self, activations: PairActivations, ids: Tensor, norms: FusedNorms) -> Run:
        assert self._stream is not None
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream), norms.standing_in():
            for _ in range(_NUM_WARM_UPS):
                activations.unchecked_rows(ids)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()
        graph = torch.cuda.CUDAGraph()
        recording = torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local")
        with _one_text_a_row(), norms.standing_in(), recording:
            x = activations.unchecked_rows(ids)

        def repeat(given: Tensor) -> Tensor:
            ids.copy_(given)
            graph.replay()
            return x

        return Run(repeat, max(x.nbytes, torch.cuda.memory_reserved() - before))

    def _fused_norms(self, activations: PairActivations) -> FusedNorms:
        if self._norms is None or self._norms[0] is not activations:
            models = activations.pair.models if self._fuses else ()
            self._norms = activations, FusedNorms(models, activations.layer)
        return self._norms[1]


@contextmanager
def _one_text_a_row() -> Generator[None]:
    """Spares transformers the question to the device whether rows hold several texts: a graph cannot record it.

    Here each row holds one. In a recording transformers would else build another mask, and take another attention.
    """
    name = "find_packed_sequence_indices"
    own = getattr(masking_utils, name, None)
    if own is None:
        yield
        return
    setattr(masking_utils, name, lambda _positions: None)
    try:
        yield
    finally:
        setattr(masking_utils, name, own)
