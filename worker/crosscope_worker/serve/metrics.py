"""Figures of the inference process for Prometheus. Knows nothing about models, prompts or batching.

docs/operations.md lists every metric; a test compares it with what is exposed.
"""

import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

from prometheus_client import Counter, Gauge, Histogram

from crosscope_proto.ages import Ages
from crosscope_proto.exposition import new_registry, show_ages
from crosscope_worker.device_use import DeviceUse, UseCollector

P = ParamSpec("P")
R = TypeVar("R")
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128)
_TOKENS = (16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
PROCESS = "inference"


class Metrics:
    """Counters, gauges and histograms of one inference process. Safe to use from its loop and its device thread."""

    def __init__(self, ages: Ages) -> None:
        self.registry = registry = new_registry()
        self.ages = ages
        show_ages(registry, ages, PROCESS, "event loop", "device")
        self._calls = Counter(
            "crosscope_inference_calls", "Ended calls of servers", ["method", "status"], registry=registry
        )
        self._parts = Histogram(
            "crosscope_inference_part_seconds",
            "Time that the parts of a call took",
            ["part"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._batch_texts = Histogram(
            "crosscope_inference_batch_texts", "Prompts of a batch", buckets=_TEXTS, registry=registry
        )
        self._batch_tokens = Histogram(
            "crosscope_inference_batch_tokens", "Tokens of a batch, no padding", buckets=_TOKENS, registry=registry
        )
        self._queued = Gauge("crosscope_inference_queued_tokens", "Tokens that wait", registry=registry)
        self._busy = Counter(
            "crosscope_inference_device_busy",
            "Time in which the device's thread worked",
            unit="seconds",
            registry=registry,
        )
        self._models = Gauge("crosscope_inference_models_bytes", "Weights that are loaded", registry=registry)
        self._allocated = Gauge(
            "crosscope_device_memory_allocated_bytes",
            "Memory of a device that this process uses",
            ["device"],
            registry=registry,
        )
        self._limit = Gauge(
            "crosscope_device_memory_limit_bytes", "All memory of a device", ["device"], registry=registry
        )

    def called(self, method: str, status: str) -> None:
        """Counts a call that has ended."""
        self._calls.labels(method, status).inc()

    def ran_batch(self, queued_s: Sequence[float], num_tokens: int, device_s: float) -> None:
        """Counts a batch: how long each prompt had waited, their tokens together, how long the device took."""
        self._batch_texts.observe(len(queued_s))
        self._batch_tokens.observe(num_tokens)
        for seconds in queued_s:
            self._parts.labels("queue").observe(seconds)
            self._parts.labels("device").observe(device_s)

    @contextmanager
    def part(self, name: str) -> Generator[None]:
        """Measures a part of a call: "tokenise" or "reply"."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._parts.labels(name).observe(time.perf_counter() - started)

    def watch_memory(self, queued: Callable[[], int], models: Callable[[], int]) -> None:
        """Shows tokens that wait, and the bytes of loaded weights."""
        self._queued.set_function(queued)
        self._models.set_function(models)

    def watch_device(self, device: str, allocated: Callable[[], int], limit_bytes: int) -> None:
        """Shows what the process uses of a device's memory, and all of it."""
        self._allocated.labels(device).set_function(allocated)
        self._limit.labels(device).set(limit_bytes)

    def watch_use(self, use: DeviceUse) -> None:
        """Shows how much of its time each device works."""
        UseCollector(use, with_memory=False, registry=self.registry)

    @contextmanager
    def device_works(self) -> Generator[None]:
        """Counts the time of one piece of the device thread's work; the thread's age is how long the piece has run."""
        self.ages.beat("device")
        started = time.perf_counter()
        try:
            yield
        finally:
            self._busy.inc(time.perf_counter() - started)
            self.ages.rest("device")


class DeviceThread(ThreadPoolExecutor):
    """The one thread on which everything of the device runs, with its working time counted."""

    def __init__(self, metrics: Metrics) -> None:
        super().__init__(1, thread_name_prefix="device")
        self._metrics = metrics

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> "Future[R]":
        """Runs a piece of work on the thread."""

        def work(*args: Any, **kwargs: Any) -> R:
            with self._metrics.device_works():
                return fn(*args, **kwargs)

        return super().submit(work, *args, **kwargs)
