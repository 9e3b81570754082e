"""Runs of both models of a pair as CUDA graphs: all kernels of a run in one launch, on fixed memory.

A graph repeats exactly the kernels of the run that it recorded. It is compared with a plain run before it is used.
Does not know which shapes are wanted.
"""

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import masking_utils

from crosscope_worker.models.activations import PairActivations
from crosscope_worker.models.fixed_shapes import CannotRecord, Run, Shape
from crosscope_worker.models.probes import ROUNDED_TOLERANCE, probe_ids, standardised_error

_NUM_WARM_UPS = 2
"""Plain runs on the recording stream, in which libraries choose kernels and take their workspaces."""


class Graphs:
    """Records runs on one device. They share their working memory, so one repetition ends before the next begins."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._pool: tuple[int, int] | None = None

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
        if self._stream is None or self._pool is None:
            self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
        ids = probe_ids(activations.pair.models, shape.rows, shape.pos)
        expected = activations.rows(ids)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(_NUM_WARM_UPS):
                activations.unchecked_rows(ids)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()
        graph = torch.cuda.CUDAGraph()
        with (
            _one_text_a_row(),
            torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
        ):
            x = activations.unchecked_rows(ids)
        size_bytes = max(x.nbytes, torch.cuda.memory_reserved() - before)
        graph.replay()
        if not torch.equal(x, expected) and (error := standardised_error(x, expected)) > ROUNDED_TOLERANCE:
            raise CannotRecord(
                f"a CUDA graph of {shape.rows} x {shape.pos} tokens gives other activations than a plain run (by "
                f"{error:.2g} of their spread)"
            )

        def repeat(given: Tensor) -> Tensor:
            ids.copy_(given)
            graph.replay()
            return x

        return Run(repeat, size_bytes)


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
