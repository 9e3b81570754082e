"""Figures of the job worker for Prometheus. Knows nothing about the queue; the server counts the jobs themselves.

docs/operations.md lists every metric; a test compares it with what is exposed.
"""

import psutil
from prometheus_client import Counter, Gauge

from crosscope_proto.ages import Ages
from crosscope_proto.exposition import new_registry, show_ages
from crosscope_worker.device_use import DeviceUse, UseCollector

PROCESS = "jobs"


class Metrics:
    """Counters and gauges of one job worker."""

    def __init__(self, use: DeviceUse, ages: Ages) -> None:
        self.registry = registry = new_registry()
        self.ages = ages
        show_ages(registry, ages, PROCESS, "main loop", "queue", "job")
        self._child: psutil.Process | None = None
        self._attempts = Counter("crosscope_job_attempts", "Ended attempts at jobs", ["outcome"], registry=registry)
        self._running = Gauge("crosscope_job_attempt_running", "Whether a job runs here", registry=registry)
        resident = Gauge("crosscope_job_resident_bytes", "Memory of the running job's process", registry=registry)
        resident.set_function(self._resident_bytes)
        UseCollector(use, with_memory=True, registry=registry)

    def began(self, pid: int) -> None:
        """Says that a job's process runs."""
        self._running.set(1)
        try:
            self._child = psutil.Process(pid)
        except psutil.NoSuchProcess:  # it has ended already
            self._child = None

    def ended(self, outcome: str) -> None:
        """Counts an attempt: "succeeded", "ended" in another way, "again", "lost" to another, or "unsettled"."""
        self._running.set(0)
        self._child = None
        self._attempts.labels(outcome).inc()
        self.ages.rest("job")

    def _resident_bytes(self) -> int:
        child = self._child
        try:
            return 0 if child is None else child.memory_info().rss
        except psutil.Error:  # it ended just now
            return 0
