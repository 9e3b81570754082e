"""Runs of both models of a pair as CUDA graphs: all kernels of a run in one launch, on fixed memory.

A graph repeats exactly the kernels of the run that it recorded, in which norms are fused (fused_norms.py). It is
compared with a plain run before it is used. Does not know which shapes are wanted.
"""

import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import masking_utils

from crosscope_worker.models.activations import PairActivations
from crosscope_worker.models.fixed_shapes import CannotRecord, Run, Shape
from crosscope_worker.models.fused_norms import FusedNorms
from crosscope_worker.models.probes import ROUNDED_TOLERANCE, probe_ids, rounding_error, standardised_error

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
            if error <= ROUNDED_TOLERANCE or (
                each is norms and error <= 2 * rounding_error(activations.rows, ids, expected)  # of a deep layer
            ):
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
        masks = Masks(activations)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream), norms.standing_in():
            for _ in range(_NUM_WARM_UPS):
                with masks.made():
                    activations.unchecked_rows(ids)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()
        graph = torch.cuda.CUDAGraph()
        recording = torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local")
        with masks.given(), norms.standing_in(), recording:
            x = activations.unchecked_rows(ids)

        @torch.inference_mode()
        def repeat(given: Tensor, _masks: Masks = masks) -> Tensor:  # The graph reads the masks' memory.
            ids.copy_(given)
            graph.replay()
            return x

        return Run(repeat, max(x.nbytes, torch.cuda.memory_reserved() - before) + masks.size_bytes)

    def _fused_norms(self, activations: PairActivations) -> FusedNorms:
        if self._norms is None or self._norms[0] is not activations:
            models = activations.pair.models if self._fuses else ()
            self._norms = activations, FusedNorms(models, activations.layer)
        return self._norms[1]


class Masks:
    """The attention masks of a run of one shape, in the order in which both models ask for them.

    transformers makes masks by copies from the CPU's memory and asks the device whether rows hold several texts. A
    graph can record neither. Here each row holds one text, so masks depend on the shape alone.
    """

    def __init__(self, activations: PairActivations) -> None:
        configs = (model.config.get_text_config() for model in activations.pair.models)
        self._attentions = {config._attn_implementation for config in configs}  # pyright: ignore[reportPrivateUsage]
        self._masks: list[Any] = []

    @property
    def size_bytes(self) -> int:
        """Memory that they take."""
        return sum(mask.nbytes for mask in self._masks if isinstance(mask, Tensor))

    @contextmanager
    def made(self) -> Generator[None]:
        """Notes the masks that a run makes."""
        self._masks.clear()

        def making(own: Callable[..., Any]) -> Callable[..., Any]:
            def make(*args: Any, **kwargs: Any) -> Any:
                self._masks.append(own(*args, **kwargs))
                return self._masks[-1]

            return make

        with self._replaced(making):
            yield

    @contextmanager
    def given(self) -> Generator[None]:
        """Gives a run the masks of the run before."""
        left = list(self._masks)

        def giving(_own: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *_, **__: left.pop(0)

        name = "find_packed_sequence_indices"  # asks the device
        own = getattr(masking_utils, name)
        setattr(masking_utils, name, lambda _positions: None)
        try:
            with self._replaced(giving):
                yield
        finally:
            setattr(masking_utils, name, own)

    @contextmanager
    def _replaced(self, replacing: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Generator[None]:
        functions = masking_utils.ALL_MASK_ATTENTION_FUNCTIONS
        own = {name: functions[name] for name in self._attentions if name in functions}
        for name, function in own.items():
            functions[name] = replacing(function)
        try:
            yield
        finally:
            for name, function in own.items():
                functions[name] = function
